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
def quantising(peer: str, subject: Subject) -> Iterator[None]:
    """Nothing of what a quantiser prints, logs or warns of is shown; a caller may write JSON to standard output.

    Raises
    ------
    CompileError
        In place of whatever the quantiser raises.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = first_line(error)
        raise CompileError(f"peer {peer}: cannot quantise {subject.label}: {reason}") from error
    finally:
        logging.disable(before)
