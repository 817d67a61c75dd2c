"""The study of allocations: budgets are fitted to what the engine takes, decisions become plain rules."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sparseflow.core.latency_table import KIND, LayerOption
from sparseflow.core.plan import Measurement
from sparseflow.studies.allocation import Content, Subject, fitted, scanned
from sparseflow.train import parse_recipe
from sparseflow.train.allocation import Assigned, LatencyAware, Uniform
from sparseflow.train.rules import weight_of

CHOICES = ["unstructured", "block:4x1"]


def content(allocation: Content) -> Content:
    return {
        "name": "study",
        "data": {"name": "mnist5k", "batch_size": 16},
        "model": {"name": "mnist_cnn", "arguments": {"widths": [8, 16]}},
        "rules": [{"layers": "features.*", "choose": CHOICES}],
        "allocation": allocation,
        "stages": [{"kind": "magnitude"}],
    }


def strategy(path: Path, subject: Subject) -> LatencyAware:
    """With a table in which a layer's time is 0.1 ms times its density, and 0.1 ms are left for the rest."""
    cases = {}
    for slot in subject.problem.slots:
        options = [
            LayerOption(s, d, 1e-4 * d, int(4 * slot.size * d), "taps")
            for s in CHOICES
            for d in (0.5, 0.2, 0.1)
        ]
        dense = LayerOption("dense", 1.0, 1e-4, 4 * slot.size, "direct")
        cases[slot.name] = {
            "shape": slot.shape,
            "dense": asdict(dense),
            "options": [asdict(o) for o in options],
        }
    head: dict[str, Any] = {"kind": KIND, "model": "m", "machine": "x", "target": "t", "threads": 1}
    seconds = 1e-4 * (len(cases) + 1)
    path.write_text(json.dumps({**head, "network_s": seconds, "network_nbytes": 10**6, "cases": cases}))
    return LatencyAware(table=str(path), latency_ms=1.0, samples=16, estimate="second-order")


def test_a_budget_is_corrected_by_what_the_engine_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(content({"strategy": "uniform", "sparsity": 0.5}))
    aware = strategy(tmp_path / "table.json", subject)
    options = scanned(subject, aware, tmp_path / "options.json")
    assert scanned(subject, aware, tmp_path / "options.json") == options

    def slower(self: Subject, assigned: tuple[Assigned, ...]) -> Measurement:
        return Measurement.of([1.25 * (1e-4 + sum(a.time_s or 0.0 for a in assigned))], 1, "x")

    monkeypatch.setattr(Subject, "latency", slower)
    said: list[str] = []
    assigned, latency = fitted(subject, aware, options, 3e-4, said.append)
    assert len(said) > 1
    assert 2e-4 < latency.median_s <= 3e-4
    decided = parse_recipe(subject.decided(assigned))
    assert decided.allocation is None
    rules = {c.rule().layers: c.rule() for c in decided.rules}
    assert {a.name: a.density for a in assigned} == pytest.approx({n: r.density for n, r in rules.items()})


def test_an_engine_of_the_decision_is_timed_and_the_network_left() -> None:
    subject = Subject(content({"strategy": "uniform", "sparsity": 0.5}), repeats=3, measure=False)
    before = {s.name: weight_of(subject.model, s.name).clone() for s in subject.problem.slots}
    chosen = subject.problem.slots[0].structures[0]
    assigned = [Assigned(s.name, chosen, 0.5) for s in subject.problem.slots]
    assert subject.latency(assigned).median_s > 0
    assert all((weight_of(subject.model, n) == w).all() for n, w in before.items())
    assert Uniform(sparsity=0.5).identity() == {"strategy": "uniform", "sparsity": 0.5}
