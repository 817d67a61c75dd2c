"""MNN as a peer: equal to torch, its sparse run on pruned weights, refusals in one line; its tools stay unimported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparseflow.core import parse_sparsify
from sparseflow.engine.measure.peers import PEERS, Subject, installed
from sparseflow.engine.sparsify import sparsify
from sparseflow.errors import CompileError

pytestmark = pytest.mark.skipif(
    "mnn" not in installed(), reason="MNN is an extra of its own (sparseflow[mnn])"
)


def subject(sparse: bool) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten(),
        nn.Linear(32 * 64, 8),
    ).eval()  # fmt: skip
    if sparse:
        sparsify(model, parse_sparsify("unstructured@0.9"))
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12), dtype=np.float32)
    return Subject("three", model, (x,), "unstructured@0.9" if sparse else "")


@pytest.mark.parametrize("name", ["mnn", "mnn-sparse"])
def test_equals_torch_call_after_call(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pruned = subject(sparse=True)
    peer = PEERS[name].make(pruned, 1, tmp_path)
    rng = np.random.default_rng(1)
    for _ in range(3):
        x = rng.standard_normal(pruned.inputs[0].shape, dtype=np.float32)
        with torch.inference_mode():
            wanted = pruned.model(torch.from_numpy(x)).numpy()
        (got,) = peer([x])
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert "MNN.tools" not in sys.modules
    assert "high precision" not in capfd.readouterr().out


def test_the_sparse_run_stores_fewer_weights(tmp_path: Path) -> None:
    pruned = subject(sparse=True)
    for name in ("mnn", "mnn-sparse"):
        PEERS[name].make(pruned, 1, tmp_path)
    dense, sparse = ((tmp_path / f"{name}.mnn").stat().st_size for name in ("mnn", "mnn-sparse"))
    assert sparse < dense


def test_dense_weights_are_refused_by_the_sparse_run(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no layer has more than 30% zeros"):
        PEERS["mnn-sparse"].make(subject(sparse=False), 1, tmp_path)


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    broken = subject(sparse=False)
    path = broken.as_onnx(tmp_path)
    import onnx

    model = onnx.load(str(path))
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, str(path))
    with pytest.raises((CompileError, RuntimeError)) as raised:
        PEERS["mnn"].make(broken, 1, tmp_path)
    assert len(str(raised.value).splitlines()) == 1
