"""The fuzzer finds what it is to find: wrong results, crashes and hangs; its cases are reproducible and shrink."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseflow.core import codec

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    """The package ``tools.fuzz``, its modules as attributes."""
    sys.path.insert(0, str(ROOT))
    try:
        import tools.fuzz.campaign
        import tools.fuzz.check
        import tools.fuzz.generate
        import tools.fuzz.network

        yield tools.fuzz
    finally:
        sys.path.remove(str(ROOT))


def test_a_seed_gives_one_case_which_survives_json(fuzz: Any) -> None:
    for seed in range(30):
        case = fuzz.generate.draw(seed)
        assert case == fuzz.generate.draw(seed)
        assert fuzz.generate.Case.read(json.loads(codec.dumps(case))) == case
    assert len({fuzz.generate.draw(seed).code() for seed in range(30)}) == 30


def test_a_small_error_is_found(fuzz: Any) -> None:
    found = 0
    for seed in range(12):
        case = replace(fuzz.generate.draw(seed), exact=True)
        model, inputs = fuzz.check.prepared(case)
        with torch.no_grad():
            result = model(*inputs)
        outputs = [y.clone() for y in (result if isinstance(result, tuple) else (result,))]
        assert fuzz.check.compared(case, model, inputs, outputs).kind == "right"
        outputs[0].view(-1)[0] += 0.02 * outputs[0].abs().max() + 1e-6
        found += fuzz.check.compared(case, model, inputs, outputs).kind == "wrong"
    assert found >= 10


def test_failures_shrink(fuzz: Any) -> None:
    """With "reads a ReLU" for a failure, little else is left."""
    relu = lambda case: any(s.module == "ReLU" for s in case.network.steps)  # noqa: E731
    case = next(c for c in map(fuzz.generate.draw, range(200)) if relu(c) and len(c.network.steps) > 4)

    def outcome(case: Any) -> Any:
        fuzz.network.Module(case.network, case.seed)(*fuzz.network.example(case.network, case.seed))
        return fuzz.check.Outcome("wrong" if relu(case) else "right")

    small = fuzz.campaign.shrunk(case, "wrong", outcome)
    assert relu(small)
    assert len(small.network.steps) < len(case.network.steps)
    assert (small.sparsify, small.route, small.threads, small.reload) == ("", "module", 1, False)


def test_what_kills_or_blocks_a_worker_is_told_and_the_next_case_runs(fuzz: Any, monkeypatch: Any) -> None:
    case = replace(fuzz.generate.draw(3), sparsify="", measure=False, calibrate=False)
    worker = fuzz.campaign.Worker(limit_s=60.0)
    try:
        assert worker.check(case).kind == "right"
        worker._process.kill()
        worker._process.wait()
        assert worker.check(case).kind == "crash"
        worker.limit_s = 0.01
        assert worker.check(case).kind == "hang"
        worker.limit_s = 60.0
        assert worker.check(case).kind == "right"
    finally:
        worker.close()


def test_a_record_that_was_cut_off_is_done_again(fuzz: Any, tmp_path: Path) -> None:
    path, case = tmp_path / "outcomes.jsonl", fuzz.generate.draw(0)
    fuzz.campaign.record(path, case, fuzz.check.Outcome("right"))
    with path.open("a") as file:
        file.write('{"seed": 1, "kin')
    assert list(fuzz.campaign.known(path)) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 100])
def test_random_networks(fuzz: Any, first: int) -> None:
    worker = fuzz.campaign.Worker()
    try:
        outcomes = {seed: worker.check(fuzz.generate.draw(seed)) for seed in range(first, first + 50)}
    finally:
        worker.close()
    failed = {seed: o for seed, o in outcomes.items() if o.kind in fuzz.check.FAILURES}
    assert not failed
    assert sum(o.kind == "right" for o in outcomes.values()) >= 45


@pytest.mark.parametrize(
    "kept", json.loads(Path(__file__).with_name("fuzz_cases.json").read_text()), ids=lambda k: k["why"]
)
def test_what_failed_once(fuzz: Any, kept: dict[str, Any]) -> None:
    outcome = fuzz.check.check(fuzz.generate.Case.read(kept["case"]))
    assert outcome.kind == "right", outcome.detail
