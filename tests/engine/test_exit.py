"""A process ends soon after its last line, also where its threads share a busy processor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sparseflow
from sparseflow.engine.runtime.threads import SPINS, SPINS_VARIABLE, set_threads

CALLER = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[2])})
import numpy as np
from sparseflow import Engine
engine = Engine.load(sys.argv[1])
engine(np.zeros(engine.inputs[0].shape, "float32"))
print(time.time(), flush=True)
"""
BUSY = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
LIMIT_S = 30.0
"""Longest that the end may take: it takes 1 to 3 s, and took minutes with TVM's own number of looks."""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="processes cannot be tied to a processor here"
)
def test_a_process_on_a_busy_processor_ends(tmp_path: Path) -> None:
    model = torch.nn.Conv2d(16, 64, 3, padding=1).eval()
    engine = sparseflow.compile(model, (torch.zeros(1, 16, 56, 56),), threads=2, measure=False)
    saved = engine.save(tmp_path / "engine")
    processor = str(min(os.sched_getaffinity(0)))
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
    environment.pop(SPINS_VARIABLE, None)
    busy = subprocess.Popen([sys.executable, "-c", BUSY, processor])
    try:
        done = subprocess.run(
            [sys.executable, "-c", CALLER, str(saved), processor],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert time.time() - float(done.stdout) < LIMIT_S
    finally:
        busy.kill()
        busy.wait()


def test_a_number_of_looks_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SPINS_VARIABLE, raising=False)
    set_threads(2)
    assert os.environ[SPINS_VARIABLE] == str(SPINS)
    monkeypatch.setenv(SPINS_VARIABLE, "7")
    set_threads(2)
    assert os.environ[SPINS_VARIABLE] == "7"
