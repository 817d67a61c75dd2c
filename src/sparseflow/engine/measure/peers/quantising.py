"""What the quantisers of all peers need: silence, and their failures in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from sparseflow.engine.measure.peers.base import Subject, quiet
from sparseflow.errors import CompileError, first_line


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing is shown of what Python code prints, logs or warns of, nor what C++ code writes to standard output."""
    before, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            quiet(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def quantising(peer: str, subject: Subject) -> Iterator[None]:
    """`silent`, for a caller may write JSON to standard output.

    Raises
    ------
    CompileError
        In place of whatever the quantiser raises.
    """
    try:
        with silent():
            yield
    except Exception as error:
        reason = first_line(error)
        raise CompileError(f"peer {peer}: cannot quantise {subject.label}: {reason}") from error
