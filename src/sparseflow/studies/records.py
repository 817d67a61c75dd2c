"""Records of a long benchmark: one JSON entry for each finished case, kept when the run is stopped and resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparseflow.core.files import atomic_write
from sparseflow.errors import SparseflowError

Case = tuple[str, Callable[[], dict[str, Any]]]
"""A case's name and what measures it."""


@dataclass
class Records:
    """A JSON file ``{**head, "cases": {name: record}}``, written anew after each case.

    Parameters
    ----------
    path : Path
    head : dict
        Entries beside the cases; ``machine`` among them.
    resume : bool
        Keep the cases that the file has already. Without it they are measured anew.
    """

    path: Path
    head: dict[str, Any]
    resume: bool = False
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resume and self.path.is_file():
            try:
                data = json.loads(self.path.read_text(encoding="utf-8"))
                self.cases, machine = dict(data["cases"]), data["machine"]
            except (ValueError, KeyError, TypeError) as error:
                raise SparseflowError(
                    f"{self.path}: not the records of a benchmark; run without --resume"
                ) from error
            if machine != self.head["machine"]:
                raise SparseflowError(
                    f"{self.path}: measured on {machine}, not on {self.head['machine']}; run without --resume"
                )

    def run(self, cases: Sequence[Case], say: Callable[[str], None], minutes: float | None = None) -> int:
        """Measures the cases that are missing, in order; the number of those that failed.

        After ``minutes`` no further case is begun; ``resume`` goes on from there.
        """
        missing = [case for case in cases if case[0] not in self.cases]
        start, failed = time.monotonic(), 0
        for i, (name, measure) in enumerate(missing):
            spent = (time.monotonic() - start) / 60
            if minutes is not None and spent >= minutes:
                say(f"{len(missing) - i} cases left after {spent:.0f} minutes; --resume goes on")
                break
            left = f", about {spent / i * (len(missing) - i):.0f} min left" if i else ""
            say(f"[{i + 1}/{len(missing)}{left}] {name}")
            try:
                self.cases[name] = measure()
            except SparseflowError as error:
                failed += 1
                say(f"  failed: {error}")
                continue
            self.write()
        self.write()
        return failed

    def to_json(self) -> dict[str, Any]:
        """The whole file."""
        return {**self.head, "cases": self.cases}

    def write(self) -> None:
        """One line a case; a stopped run leaves whole files only."""
        cases = ",\n".join(f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in self.cases.items())
        head = json.dumps(self.head | {"cases": None}, indent=1)
        text = head.replace('"cases": null', f'"cases": {{\n{cases}\n }}')
        atomic_write(self.path, text + "\n")
