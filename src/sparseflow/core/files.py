"""Files and folders that are whole or not there: written under another name in the same folder, then renamed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sparseflow.errors import SparseflowError

BROKEN_FILE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
"""What torch and pickle raise for a file that holds something else."""


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` at the end, removed on an error.

    What is found under ``path`` is therefore always complete, even after a kill or while another process writes.

    Raises
    ------
    SparseflowError
        If the disk refuses.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise SparseflowError(f"{path}: cannot be written ({reason}); choose another folder") from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` to fill; it takes the place of ``path`` at the end.

    On an error it is removed, and what stood at ``path`` stands there still.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = partial.with_name(partial.name + ".old")
    try:
        yield partial
        if path.exists():
            path.replace(old)
        partial.chmod(0o755)
        partial.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write ``content``, text as UTF-8, so that ``path`` always holds a complete file.

    Raises
    ------
    SparseflowError
        If it cannot be written.
    """
    with complete_file(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """`atomic_write` of ``content`` as JSON.

    Raises
    ------
    SparseflowError
        If it cannot be written.
    """
    atomic_write(path, json.dumps(content, indent=1) + "\n")
