"""Many cases in worker processes, their outcomes in a file of JSON lines, failures shrunk."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparseflow.core.codec import dumps, encode, loads

from .check import CRASH, HANG, Outcome
from .generate import Case

LIMIT_S = 60.0
CASES_OF_A_WORKER = 100
"""After which a worker is replaced, so that what it keeps in memory stays bounded."""


class Worker:
    """A process that checks cases; when one kills it or takes too long, the next case gets a new process."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self._process: Any = None
        self._cases = 0
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115

    def check(self, case: Case) -> Outcome:
        """The outcome of a case."""
        if self._process is None or self._cases >= CASES_OF_A_WORKER:
            self.close()
            self._start()
        self._cases += 1
        process = self._process
        try:
            process.stdin.write(dumps(case) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._died()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(self.limit_s):
                self.close()
                return Outcome(HANG, f"no result after {self.limit_s:.0f} s", self.limit_s)
        line = process.stdout.readline()
        return loads(Outcome, line) if line else self._died()

    def _start(self) -> None:
        self._errors.seek(0)
        self._errors.truncate()
        self._cases = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.fuzz.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def _died(self) -> Outcome:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        told = next((line for line in lines if "Fatal" in line), lines[-1] if lines else "")
        self.close()
        return Outcome(CRASH, f"the process ended with {code}: {told}")

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(BrokenPipeError):  # what was not read
                self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def known(path: Path) -> dict[int, dict[str, Any]]:
    """Seed → record of a file that `record` wrote; a last line that was cut off is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            data = json.loads(line)
        except ValueError:
            continue
        found[data["seed"]] = data
    return found


def record(path: Path, case: Case, outcome: Outcome) -> None:
    """Appends one outcome."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"seed": case.seed, **encode(outcome)}) + "\n")


def shrunk(case: Case, kind: str, check: Callable[[Case], Outcome]) -> Case:
    """A smaller case with an outcome of the same kind: fewer steps and outputs, plainer options."""
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(case):
            try:
                same = check(smaller).kind == kind
            except Exception:  # the network without that step fits no longer
                same = False
            if same:
                case, progress = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    plain: dict[str, Any] = {
        "sparsify": "", "route": "module", "target": "native", "threads": 1, "measure": False, "exact": True,
        "calibrate": False, "reload": False,
    }  # fmt: skip
    network = case.network
    if len(network.outputs) > 1:
        for output in network.outputs:
            yield replace(case, network=replace(network, outputs=(output,)))
    for i in reversed(range(len(network.steps))):
        without = network.without(i)
        if without is not None and without.steps:
            yield replace(case, network=without)
    for name, value in plain.items():
        if getattr(case, name) != value:
            yield replace(case, **{name: value})
