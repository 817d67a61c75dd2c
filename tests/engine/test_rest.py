"""The operators between the layers in a measured plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sparseflow
from sparseflow.core.codec import decode, encode
from sparseflow.core.plan import Plan


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    conv, pool = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.MaxPool2d(2)
    return torch.nn.Sequential(conv, pool, conv, pool, torch.nn.Flatten(), torch.nn.Linear(128, 4)).eval()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sparseflow.Engine:
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    return sparseflow.compile(_model(), [torch.randn(1, 8, 16, 16)])


def test_a_measured_plan_times_what_a_call_runs_between_the_layers(engine: sparseflow.Engine) -> None:
    plan = engine.plan
    assert plan.rest
    assert all(r.calls >= 1 and r.time_s > 0 for r in plan.rest)
    layers = {layer.name for layer in plan.layers}
    profiled = [o.kind for o in engine.profile(torch.randn(1, 8, 16, 16)) if o.name not in layers]
    assert sorted(profiled) == sorted(r.kernel for r in plan.rest for _ in range(r.calls))
    assert plan.rest_s == pytest.approx(sum(r.calls * r.time_s for r in plan.rest))
    assert plan.layers_s == pytest.approx(sum(layer.chosen.time_s for layer in plan.layers))


def test_it_survives_saving_and_a_prediction_has_none(engine: sparseflow.Engine) -> None:
    assert decode(Plan, encode(engine.plan)) == engine.plan
    predicted = sparseflow.compile(_model(), [torch.randn(1, 8, 16, 16)], measure=False)
    assert predicted.plan.rest == ()
