"""A study in stages: each is saved when it is done, and a run that was stopped goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow.core.files import write_json


@dataclass(frozen=True)
class StageEvent:
    """A stage of a study begins, is done, or was found done.

    Attributes
    ----------
    name : str
    status : str
        ``running``, ``done`` or ``kept`` (of an earlier run).
    seconds : float
        Wall time, from the run that did it; 0 while it runs.
    detail : str
        What a running stage is doing.
    """

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""


class Stages:
    """Runs stages in a folder, each at most once for the same settings and the same earlier results.

    Parameters
    ----------
    folder : Path
        Gets ``stages/NAME.json`` for each stage that is done.
    settings : dict
        JSON-ready; whatever changes the results. Other settings make every stage run again.
    progress : callable, optional
        Called with a `StageEvent` when a stage begins and ends.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], progress: Callable[[StageEvent], None] | None = None
    ) -> None:
        self.folder, self.settings = folder, settings
        self._tell = progress or (lambda event: None)
        self._keys: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def do(
        self,
        name: str,
        work: Callable[[], dict[str, Any]],
        *,
        after: tuple[str, ...] = (),
        files: tuple[Path, ...] = (),
    ) -> dict[str, Any]:
        """What ``work`` returns, or what it returned in an earlier run.

        Parameters
        ----------
        name : str
            A file name.
        work : callable
            Returns something JSON-ready.
        after : tuple of str
            Stages whose results it uses; when one of them has another result, it runs again.
        files : tuple of Path
            What it writes; when one is missing or of another size, it runs again.
        """
        key = self._key(name, after)
        path = self.folder / "stages" / f"{name}.json"
        record = self._load(path, key, files)
        status = "kept"
        if record is None:
            self._tell(StageEvent(name, "running"))
            start = time.monotonic()
            result = work()
            sizes = {str(p.relative_to(self.folder)): _size(p) for p in files}
            record = {
                "key": key,
                "seconds": time.monotonic() - start,
                "files": sizes,
                "result": json.loads(json.dumps(result)),
            }
            write_json(path, record)
            status = "done"
        digest = json.dumps([key, record["files"], record["result"]], sort_keys=True)
        self._keys[name] = hashlib.sha256(digest.encode()).hexdigest()
        self.seconds[name] = float(record["seconds"])
        self._tell(StageEvent(name, status, self.seconds[name]))
        found: dict[str, Any] = record["result"]
        return found

    def _key(self, name: str, after: tuple[str, ...]) -> str:
        content = json.dumps([name, self.settings, [self._keys[n] for n in after]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _load(self, path: Path, key: str, files: tuple[Path, ...]) -> dict[str, Any] | None:
        """The record if it is whole, of this key, and its files are there; a damaged one is done again."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        wanted = {"key", "seconds", "files", "result"}
        if not isinstance(record, dict) or not wanted <= record.keys() or record["key"] != key:
            return None
        sizes = {str(p.relative_to(self.folder)): _size(p) for p in files}
        return record if sizes == record["files"] and None not in sizes.values() else None


def _size(path: Path) -> int | None:
    """Bytes of a file, or of all files in a folder; None when there is nothing."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size if path.is_file() else None
