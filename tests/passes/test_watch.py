"""Steps that run long are named while they run, TVM's own passes and the code generation included."""

from __future__ import annotations

import time

import pytest
import torch

import sparseflow
from sparseflow.errors import CompileError
from sparseflow.passes import watch


def test_a_long_step_is_named_whenever_its_time_has_doubled() -> None:
    said: list[str] = []
    with watch.watched("finish: pass FuseOps", said.append, 0.05):
        time.sleep(0.3)
    lines = [f"finish: pass FuseOps has been running for {s} s" for s in ("0.05", "0.1", "0.2")]
    assert said[:2] == lines[:2]
    assert said == lines[: len(said)]


def test_a_short_step_is_not_named_and_without_progress_it_is_a_warning() -> None:
    said: list[str] = []
    with watch.watched("short", said.append, 10.0):
        pass
    assert said == []
    expected = pytest.warns(RuntimeWarning, match=r"long has been running for 0\.05 s")
    with expected, watch.watched("long", first_s=0.05):
        time.sleep(0.08)


def test_an_error_ends_the_watch() -> None:
    said: list[str] = []
    with pytest.raises(CompileError), watch.watched("step", said.append, 0.05):
        raise CompileError("no")
    time.sleep(0.1)
    assert said == []


def test_passes_and_code_generation_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_WARNING_S", 1e-4)
    said: list[str] = []
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Softplus()).eval()
    sparseflow.compile(model, (torch.zeros(1, 3, 9, 9),), measure=False, progress=said.append)
    for step in ("import", "finish: pass LegalizeOps", "finish: pass ScheduleRest", "code generation"):
        assert any(line.startswith(f"{step} has been running for") for line in said), step
