"""A process that checks cases one after the other: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import traceback
from dataclasses import replace


def main() -> None:
    """Answers each line of standard input on what standard output was; all else goes to standard error."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from sparseflow.core.codec import dumps

    from .check import CRASH, Outcome, check
    from .generate import Case

    for line in sys.stdin:
        start = time.perf_counter()
        try:
            outcome = check(Case.read(json.loads(line)))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = (str(error).strip().splitlines() or [""])[-1]
            outcome = Outcome(
                CRASH, f"{type(error).__name__}: {text} ({os.path.basename(last.filename)}:{last.lineno})"
            )
        outcome = replace(outcome, seconds=time.perf_counter() - start)
        answers.write(dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
