"""Peers in int8: close to torch but not equal, quantised graphs, files whole or not there, refusals in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparseflow.engine.measure.bench import BenchOptions, bench, max_relative_error
from sparseflow.engine.measure.peers import PEERS, Subject, installed
from sparseflow.errors import CompileError

NAMES = ("openvino-int8", "onnxruntime-int8")
RNG = np.random.default_rng(0)


class Block(nn.Module):
    """A transformer's feed-forward half."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))
        return y


def convolutions() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.Conv2d(32, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    return Subject("convolutions", model, (RNG.normal(size=(1, 3, 16, 16)).astype("float32"),))


def linear() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), nn.LayerNorm(64), nn.Linear(64, 8)).eval()
    return Subject("linear", model, (RNG.normal(size=(1, 12, 64)).astype("float32"),))


SUBJECTS = {"convolutions": convolutions(), "linear": linear()}


def error(peer: Any, subject: Subject) -> float:
    with torch.inference_mode():
        wanted = subject.model(torch.from_numpy(subject.inputs[0])).numpy()
    return max_relative_error([np.array(output) for output in peer(subject.inputs)], [wanted])


@pytest.mark.parametrize("network", SUBJECTS)
@pytest.mark.parametrize("name", installed(quantised=True))
def test_close_to_torch_but_rounded(
    name: str, network: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    subject = SUBJECTS[network]
    peer = PEERS[name].make(subject, 1, tmp_path)
    assert capfd.readouterr().out == ""
    first = error(peer, subject)
    assert 1e-4 < first < 0.1
    assert error(peer, subject) == first


def test_both_come_with_the_extra() -> None:
    assert set(NAMES) <= set(installed(quantised=True))
    assert not set(NAMES) & set(installed())


@pytest.mark.parametrize("network", SUBJECTS)
def test_openvino_runs_fake_quantised_layers(network: str, tmp_path: Path) -> None:
    model = PEERS["openvino-int8"].model(SUBJECTS[network], tmp_path)  # type: ignore[attr-defined]
    kinds = [operator.get_type_name() for operator in model.get_ops()]
    assert kinds.count("FakeQuantize") >= 4
    assert {
        c.get_element_type().get_type_name() for c in model.get_ops() if c.get_type_name() == "Constant"
    } >= {"i8"}


@pytest.mark.parametrize("network", SUBJECTS)
def test_onnxruntime_reads_a_quantised_graph_written_once(network: str, tmp_path: Path) -> None:
    import onnx

    subject = SUBJECTS[network]
    path = PEERS["onnxruntime-int8"].graph(subject, tmp_path)  # type: ignore[attr-defined]
    graph = onnx.load(str(path)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") >= 4
    weights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert len(weights) >= 4
    written = path.stat().st_mtime_ns
    assert PEERS["onnxruntime-int8"].graph(subject, tmp_path) == path  # type: ignore[attr-defined]
    assert path.stat().st_mtime_ns == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]


@pytest.mark.parametrize("name", NAMES)
def test_ranges_come_from_the_calibration(name: str, tmp_path: Path) -> None:
    plain = SUBJECTS["convolutions"]
    wide = Subject(plain.label, plain.model, plain.inputs, calibration=((plain.inputs[0] * 50,),))
    (tmp_path / "plain").mkdir()
    (tmp_path / "wide").mkdir()
    narrow = error(PEERS[name].make(plain, 1, tmp_path / "plain"), plain)
    assert error(PEERS[name].make(wide, 1, tmp_path / "wide"), plain) > 2 * narrow


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_is_one_line_and_leaves_no_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"openvino-int8": "nncf.quantize", "onnxruntime-int8": "onnxruntime.quantization.quantize_static"}

    def fail(*_args: Any, **_options: Any) -> None:
        raise KeyError("no\nsuch operator")

    monkeypatch.setattr(where[name], fail)
    with pytest.raises(CompileError, match=f"peer {name}: cannot quantise linear: ") as raised:
        PEERS[name].make(SUBJECTS["linear"], 1, tmp_path)
    assert len(str(raised.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "module", "who"),
    [
        ("openvino-int8", "nncf", "openvino-int8: nncf"),
        ("openvino-int8", "openvino", "openvino"),
        ("onnxruntime-int8", "onnx", "onnxruntime-int8: onnx"),
        ("onnxruntime-int8", "onnxruntime", "onnxruntime"),
    ],
)
def test_a_missing_package_is_one_line(
    name: str, module: str, who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    wanted = f"peer {who}: not installed; python -m pip install 'sparseflow\\[peers\\]', or leave it out"
    with pytest.raises(CompileError, match=wanted):
        PEERS[name].make(SUBJECTS["linear"], 1, tmp_path)


def test_litert_tells_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(
        CompileError, match="ai_edge_litert: not installed; python -m pip install litert-torch && "
    ):
        PEERS["litert-int8"].make(SUBJECTS["linear"], 1, tmp_path)


def test_litert_takes_no_onnx_model(tmp_path: Path) -> None:
    import onnx

    plain = SUBJECTS["linear"]
    graph = Subject("linear.onnx", onnx.load(str(plain.as_onnx(tmp_path))), plain.inputs)
    with pytest.raises(
        CompileError, match=r"peer litert-int8: its converter reads torch models, linear\.onnx is ONNX"
    ):
        PEERS["litert-int8"].make(graph, 1, tmp_path)


@pytest.mark.skipif("litert-int8" not in installed(quantised=True), reason="LiteRT's pins clash with TVM's")
def test_litert_computes_in_int8_between_float_inputs_and_outputs(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    subject = SUBJECTS["convolutions"]
    model = PEERS["litert-int8"].model(subject, tmp_path)  # type: ignore[attr-defined]
    interpreter = Interpreter(model_content=model)
    kinds = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1
    types = {detail["dtype"] for detail in interpreter.get_tensor_details() if len(detail["shape"]) == 4}
    assert types == {np.int8, np.float32}
    assert not list(tmp_path.iterdir())


def test_bench_names_them_and_records_their_errors() -> None:
    options = BenchOptions(against=(*NAMES, "openvino"), rounds=1, measure=False)
    data = bench(SUBJECTS["linear"], options).to_json()
    errors = {result["engine"]: result["max_relative_error"] for result in data["results"]}
    assert list(errors) == ["sparseflow", *NAMES, "openvino"]
    assert data["reference"] == "torch"
    assert all(options.limit < errors[name] < 0.1 for name in NAMES)
    assert errors["openvino"] < 1e-4
    assert "nncf" in data["versions"]["openvino-int8"]
