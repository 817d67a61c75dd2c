"""A line about each step that runs long, while it runs, so that nobody waits without knowing for what."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_WARNING_S = 30.0
"""Seconds after which a step is named; then again whenever its time has doubled."""

Say = Callable[[str], None]


@contextmanager
def watched(step: str, say: Say | None = None, first_s: float | None = None) -> Iterator[None]:
    """Names ``step`` as long as the block under it runs for more than ``first_s`` seconds.

    TVM releases Python's lock while it compiles, so that another thread can tell.

    Parameters
    ----------
    step : str
    say : callable, optional
        Receives the line; without it the line is a `RuntimeWarning`.
    first_s : float, optional
        `FIRST_WARNING_S` by default.
    """
    ended = threading.Event()

    def watch() -> None:
        seconds = FIRST_WARNING_S if first_s is None else first_s
        wait = seconds
        while not ended.wait(wait):
            line = f"{step} has been running for {seconds:.3g} s"
            if say is not None:
                say(line)
            else:
                warnings.warn(line, RuntimeWarning, stacklevel=1)
            wait, seconds = seconds, 2 * seconds

    watcher = threading.Thread(target=watch, name=f"watch {step}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
