"""Interleaved timing: outputs compared first, every peer equal to torch, the record complete."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from sparseflow.engine.measure.bench import BenchOptions, bench, interleave, max_relative_error, pinned
from sparseflow.engine.measure.peers import PEERS, Array, Peer, Subject, installed
from sparseflow.engine.measure.peers.base import require
from sparseflow.errors import CompileError, InputError, RegistryError

RNG = np.random.default_rng(0)


class Two(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.conv(x)) * scale
        return y, self.fc(y.mean((2, 3)))


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    inputs = (
        RNG.normal(size=(1, 3, 8, 8)).astype("float32"),
        RNG.normal(size=(1, 6, 1, 1)).astype("float32"),
    )
    return Subject("two", Two().eval(), inputs)


@pytest.mark.parametrize("name", [name for name in installed() if name != "mnn-sparse"])
def test_every_peer_equals_torch(name: str, subject: Subject, tmp_path: Path) -> None:
    with torch.inference_mode():
        wanted = subject.model(*[torch.from_numpy(a) for a in subject.inputs])
    peer = PEERS[name].make(subject, 1, tmp_path)
    for _ in range(2):
        got = peer(subject.inputs)
        assert len(got) == 2
        for g, w in zip(got, wanted, strict=True):
            np.testing.assert_allclose(g, w.numpy(), rtol=1e-4, atol=1e-5)


def test_torch_as_a_peer_leaves_the_process_as_it_was(subject: Subject, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    PEERS["torch"].make(subject, before + 1, tmp_path)(subject.inputs)
    assert torch.get_num_threads() == before


def test_an_exported_program_runs_in_every_peer(subject: Subject, tmp_path: Path) -> None:
    program = torch.export.export(subject.model, tuple(torch.from_numpy(a) for a in subject.inputs))
    exported = Subject("two.pt2", program, subject.inputs)
    outputs = [
        PEERS[name].make(exported, 1, tmp_path)(subject.inputs)
        for name in ("torch", "onnxruntime", "openvino")
    ]
    assert all(max_relative_error(o, outputs[0]) < 1e-4 for o in outputs)


def test_the_record_of_a_run(subject: Subject) -> None:
    lines: list[str] = []
    options = BenchOptions(against=("onnxruntime", "torch"), rounds=2, measure=False)
    result = bench(subject, options, lines.append)
    assert [r.engine for r in result.results] == ["sparseflow", "onnxruntime", "torch"]
    assert result.reference == "torch"
    assert all(r.max_relative_error < 1e-4 for r in result.results)
    assert result.best_peer is not None
    assert result.best_peer.latency.median_s == min(r.latency.median_s for r in result.results[1:])
    assert result.speedup_vs_best_peer == pytest.approx(
        result.best_peer.latency.median_s / result.results[0].latency.median_s
    )
    data = result.to_json()
    assert set(data["versions"]) == {"sparseflow", "onnxruntime", "torch"}
    assert len(data["plan"]["layers"]) == 2
    assert data["sparsify"] is None
    assert lines.index("compare outputs") < lines.index("round 1 of 2")


def test_without_peers_there_is_no_ratio(subject: Subject) -> None:
    result = bench(subject, BenchOptions(against=(), rounds=1, measure=False))
    assert result.speedup_vs_best_peer is None
    assert result.to_json()["best_peer"] is None


class Wrong(Peer):
    """A peer whose outputs are a little off."""

    package: ClassVar[str] = "numpy"

    @classmethod
    def make(cls, subject: Subject, threads: int, folder: Path) -> Wrong:
        return cls()

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        return [np.ones((1, 6, 8, 8), "float32"), np.ones((1, 4), "float32")]


def test_nothing_is_timed_when_outputs_differ(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS._entries, "wrong", Wrong)
    lines: list[str] = []
    with pytest.raises(CompileError, match=r"outputs of wrong differ from torch's by .*nothing was timed"):
        bench(subject, BenchOptions(against=("torch", "wrong"), measure=False), lines.append)
    assert not any(line.startswith("round") for line in lines)


def test_torch_is_the_reference_though_it_is_not_timed(subject: Subject) -> None:
    result = bench(subject, BenchOptions(against=("onnxruntime",), rounds=1, measure=False))
    assert [r.engine for r in result.results] == ["sparseflow", "onnxruntime"]
    assert result.reference == "torch"
    assert "torch" not in result.to_json()["versions"]


class Coarse(Wrong):
    """A quantised peer with an error that none in float32 may have."""

    quantised: ClassVar[bool] = True


class Infinite(Coarse):
    """A quantised peer that ran out of its range."""

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        return [output / 0 for output in super().__call__(inputs)]


def test_the_error_of_a_quantised_peer_is_recorded(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS._entries, "coarse", Coarse)
    lines: list[str] = []
    options = BenchOptions(against=("coarse",), rounds=1, measure=False)
    result = bench(subject, options, lines.append)
    assert [r.engine for r in result.results] == ["sparseflow", "coarse"]
    assert result.reference == "torch"
    assert result.results[1].max_relative_error > options.limit
    assert "quantise for coarse" in lines
    assert "coarse" not in BenchOptions().against


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_quantised_peer_has_to_be_finite(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS._entries, "infinite", Infinite)
    with pytest.raises(CompileError, match=r"outputs of infinite differ from torch's by inf relative"):
        bench(subject, BenchOptions(against=("infinite",), measure=False))


def test_relative_error() -> None:
    a, b = np.array([1.0, -2.0], "float32"), np.array([1.0, -4.0], "float32")
    assert max_relative_error([a], [b]) == 0.5
    assert max_relative_error([b], [b]) == 0
    assert max_relative_error([a], [b, b]) == math.inf
    assert max_relative_error([a[:1]], [b]) == math.inf
    assert max_relative_error([np.array([np.nan, 1], "float32")], [b]) == math.inf
    assert max_relative_error([np.zeros(2)], [np.zeros(2)]) == 0
    assert max_relative_error([np.ones(2)], [np.zeros(2)]) == math.inf


def test_turns_alternate_and_each_is_warmed_up() -> None:
    order: list[str] = []

    def engine(name: str) -> object:
        order.append(name)
        time.sleep(0.08)
        return None

    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == cores
        samples = interleave([lambda: engine("a"), lambda: engine("b")], 2, cores)
    assert os.sched_getaffinity(0) == before
    assert [len(s) for s in samples] == [4, 4]
    assert "".join(order) == "aaabbb" + ("aaa" + "bbb") * 2
    assert all(0.07 < s < 1 for s in samples[0])


def test_options_that_cannot_be(subject: Subject) -> None:
    with pytest.raises(RegistryError, match=f"unknown peer 'tvm'; known: {', '.join(sorted(PEERS))}"):
        BenchOptions(against=("tvm",))
    with pytest.raises(InputError, match="threads=0: allowed: whole numbers 1 to"):
        BenchOptions(threads=0)
    with pytest.raises(InputError, match="rounds=0: allowed: whole numbers from 1 on"):
        BenchOptions(rounds=0)
    with pytest.raises(CompileError, match="no_such_package: not installed; python -m pip install"):
        require("no_such_package")
