"""Models that are quantised already: their levels are read, and engines on them are near ONNX Runtime's."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tvm
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from torch import nn
from tvm import relax

import sparseflow
from sparseflow.core.calibrated_ranges import CalibratedRanges, LayerRanges, Range
from sparseflow.engine.calibrate import measure_ranges
from sparseflow.engine.export_qdq import export_qdq
from sparseflow.engine.frontends.importer import Imported, import_model
from sparseflow.engine.target.targets import host_target
from sparseflow.errors import CompileError, ImportModelError
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.levels import has_levels, levels
from sparseflow.passes.ops import LayerAttrs, is_layer
from tests.engine.test_compile import NETS, _model
from tests.engine.test_importer import to_onnx
from tests.kernels.conftest import NEEDS_QUADS

WORST, MEAN = 3.0, 1.0
"""Levels of the output by which an engine may differ from ONNX Runtime on the same quantised model, which rounds in the
middle of what is one layer here, and once more at the end."""


class Conv(nn.Module):
    """A residual, a depthwise layer, pools, a concatenation, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(32, 24, 1), nn.Linear(24, 10)
        self.a, self.b = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.deep, self.one = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)

    def forward(self, x: Any) -> Any:
        f = nn.functional
        x = f.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        y = f.relu6(self.one(torch.relu(self.deep(x))))
        return self.head(torch.relu(self.last(torch.cat([x, y], 1))).mean((2, 3)))


class Mlp(nn.Module):
    """Two residual feed-forward blocks with layer norms over 24 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.more, self.less = nn.Linear(32, 64), nn.Linear(64, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x: Any) -> Any:
        x = self.first(x + self.down(torch.relu(self.up(x))))
        return self.second(x + self.less(torch.relu(self.more(x))))


class Activations(nn.Module):
    """Activations that ONNX writes in several operators, which the quantiser puts markers between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.last = nn.Linear(32, 32)
        self.functions = (nn.GELU(), nn.SiLU(), nn.Hardswish())

    def forward(self, x: Any) -> Any:
        for layer, function in zip(self.layers, self.functions, strict=True):
            x = function(layer(x))
        return self.last(x)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv": (Conv, (1, 3, 22, 20), 7),
    "mlp": (Mlp, (1, 24, 32), 4),
    "activations": (Activations, (1, 24, 32), 4),
}
"""Network, shape of its input, layers on levels."""
TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def inputs(name: str, count: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal(MODELS[name][1]).astype(np.float32) for _ in range(count)]


def module(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name][0]().eval()


class _Feeds:
    def __init__(self, name: str, arrays: list[np.ndarray]) -> None:
        self._left = iter([{name: a} for a in arrays])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def quantised(name: str, kind: str, folder: Path, **more: Any) -> Path:
    """The model of `MODELS` as ``quantize_static`` writes it."""
    source = to_onnx(module(name), torch.from_numpy(inputs(name)[0]))
    onnx.save(source, str(folder / "float.onnx"))
    path = folder / f"{name}.{kind}.onnx"
    logging.disable(logging.WARNING)
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.NOTSET)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        quantize_static(
            str(folder / "float.onnx"), str(path), _Feeds(source.graph.input[0].name, inputs(name)),
            quant_format=QuantFormat.QDQ, activation_type=TYPES[kind], weight_type=QuantType.QInt8,
            per_channel=True, **more,
        )  # fmt: skip
    return path


def by_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def level_of_output(path: Path) -> float:
    """What one level of the output is worth."""
    model = onnx.load(str(path))
    node = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    (scale,) = [t for t in model.graph.initializer if t.name == node.input[1]]
    return float(numpy_helper.to_array(scale))


def canonical(imported: Imported) -> list[LayerAttrs]:
    mod = Canonicalise(host_target())(imported.mod)
    return [LayerAttrs.of(b.value) for b in Graph(mod).bindings if is_layer(b.value)]


def layer_ranges(imported: Imported) -> dict[str, tuple[Range | None, Range | None, Range | None]]:
    known = {a.name: a.map_ranges for a in canonical(imported)}
    return {n: (r.source, r.result, r.residual) if r else (None, None, None) for n, r in known.items()}


@NEEDS_QUADS
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_is_within_three_levels_of_onnxruntime(name: str, kind: str, tmp_path: Path) -> None:
    path = quantised(name, kind, tmp_path)
    engine = sparseflow.compile(path, measure=False, precision="int8")
    assert sum(layer.element == "uint8" for layer in engine.plan.layers) == MODELS[name][2]
    assert engine.plan.precision == "int8"
    assert not any("quantised" in note for note in engine.plan.notes)
    results = [by_onnxruntime(path, x) for x in inputs(name)]
    away = np.abs([engine(x) - y for x, y in zip(inputs(name), results, strict=True)])
    assert away.max() <= WORST * level_of_output(path)
    assert away.mean() <= MEAN * level_of_output(path)
    assert away.mean() < 0.2 * min(np.abs(results[0] - y).mean() for y in results[1:])


@pytest.mark.parametrize("kind", [pytest.param("uint8"), pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_in_float32_the_levels_are_left_out_and_a_note_says_so(name: str, kind: str, tmp_path: Path) -> None:
    path = quantised(name, kind, tmp_path)
    engine = sparseflow.compile(path, measure=False)
    assert {layer.element for layer in engine.plan.layers} == {"float32"}
    assert any("precision='int8' uses them" in note for note in engine.plan.notes)
    x = inputs(name)[0]
    assert np.abs(engine(x) - by_onnxruntime(path, x)).max() <= WORST * level_of_output(path)


@pytest.mark.parametrize("kind", TYPES)
def test_every_layer_gets_the_ranges_that_the_model_says(kind: str, tmp_path: Path) -> None:
    found = layer_ranges(import_model(quantised("conv", kind, tmp_path)))
    assert list(found) == ["stem", "a", "b", "deep", "one", "last", "head"]
    assert all(source and result for source, result, _ in found.values())
    assert found["a"][0] == found["stem"][1] == found["b"][2]
    assert found["deep"][0] == found["b"][1]
    assert [name for name, (*_, residual) in found.items() if residual] == ["b"]


def test_a_relu_that_the_quantiser_left_to_the_rounding_is_there(tmp_path: Path) -> None:
    path = quantised("conv", "uint8", tmp_path)
    assert not {"Relu", "Clip"} & {node.op_type for node in onnx.load(str(path)).graph.node}
    layers = canonical(import_model(path))
    assert [a.workload.activation for a in layers] == ["relu"] * 6 + ["none"]
    kept = quantised("conv", "uint8", tmp_path, extra_options={"QDQKeepRemovableActivations": True})
    assert [a.workload.activation for a in canonical(import_model(kept))] == [
        "relu", "relu", "relu", "relu", "relu6", "relu", "none",
    ]  # fmt: skip


def test_markers_inside_of_an_activation_hinder_no_fusion(tmp_path: Path) -> None:
    layers = canonical(import_model(quantised("activations", "uint8", tmp_path)))
    assert [a.workload.activation for a in layers] == ["gelu", "silu", "hardswish", "none"]


def test_weights_of_four_bits_are_read() -> None:
    model = qdq_model()
    weight = next(t for t in model.graph.initializer if t.name == "conv.weight")
    levels_ = np.random.default_rng(0).integers(-8, 8, (8, 4, 3, 3))
    model.graph.initializer.remove(weight)
    model.graph.initializer.append(
        helper.make_tensor("w", TensorProto.INT4, levels_.shape, levels_.ravel().tolist())
    )
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.02), "w.scale"))
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["w", "w.scale"], ["conv.weight"], "weight")
    )
    assert sparseflow.compile(model, measure=False).plan.layers[0].name == "w"


class _Everywhere:
    """A module with a marker behind each tensor."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod = Rebuild(mod).run(self._visit)

    def _visit(self, rebuild: Rebuild, _var: Any, value: Any) -> Any:
        new = rebuild.old(value)
        var = new if isinstance(new, relax.Var) else rebuild.emit(new)
        plain = getattr(var.ty, "shape", None) is not None and str(var.ty.dtype.dtype) == "float32"
        return levels(var, -1.0, 1.0) if plain else var


@pytest.mark.parametrize("name", [*NETS, "pool first"])
def test_a_marker_in_every_place_hinders_no_fusion(name: str) -> None:
    if name in NETS:
        imported = import_model(_model(name, "dense"), (torch.randn(1, *NETS[name][1]),))
    else:
        pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()).eval()
        imported = import_model(pooled, (torch.randn(1, 3, 8, 8),))
    marked = _Everywhere(imported.mod).mod
    assert has_levels(marked)
    canonicalise = Canonicalise(host_target())
    plain, found = canonicalise(imported.mod), canonicalise(marked)
    assert not has_levels(found)
    for a, b in zip(Graph(plain).bindings, Graph(found).bindings, strict=True):
        assert is_layer(a.value) == is_layer(b.value)
        if is_layer(a.value):
            assert LayerAttrs.of(a.value) == LayerAttrs.of(b.value).with_(ranges="")
            assert LayerAttrs.of(b.value).map_ranges is not None


def qdq_model(
    scale: Any = 0.1, zero: Any = 3, dtype: int = TensorProto.UINT8, opset: int = 21
) -> onnx.ModelProto:
    """``y = conv(dequantise(quantise(x)))``; no zero point if it is None."""
    weight = np.random.default_rng(0).integers(-127, 128, (8, 4, 3, 3)).astype(np.float32) * 0.01
    weight[::2, 0, 0, 0] = -1.28
    constants = [
        numpy_helper.from_array(weight, "conv.weight"),
        numpy_helper.from_array(np.asarray(scale, np.float32), "scale"),
    ]
    if zero is not None:
        constants.append(helper.make_tensor("zero", dtype, np.shape(zero), np.ravel(zero).tolist()))
    operands = ["scale"] if zero is None else ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *operands], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", *operands], ["d"], "dequantise"),
        helper.make_node("Conv", ["d", "conv.weight"], ["y"], "conv"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 9, 9])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 7, 7])
    graph = helper.make_graph(nodes, "small", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"scale": [0.1, 0.2, 0.3, 0.4], "zero": [1, 2, 3, 4]},
            r"node 'quantise': .* 4 scales; .*per tensor",
        ),
        ({"dtype": TensorProto.UINT4}, r"node 'quantise': quantised map of type uint4; allowed: int8, uint8"),
        ({"dtype": TensorProto.UINT16}, r"node 'quantise': quantised map of type uint16; allowed"),
        ({"scale": 0.0}, r"node 'quantise': quantised map of scale 0; allowed: above 0"),
    ],
)
def test_levels_that_no_kernel_reads_are_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportModelError, match=message) as caught:
        import_model(qdq_model(**arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("zero", "dtype", "low"),
    [(None, TensorProto.UINT8, 0.0), (3, TensorProto.UINT8, -0.3), (-5, TensorProto.INT8, -12.3)],
)
def test_the_range_follows_from_scale_and_zero_point(zero: Any, dtype: int, low: float) -> None:
    (found,) = layer_ranges(import_model(qdq_model(zero=zero, dtype=dtype))).values()
    assert found[0] is not None
    np.testing.assert_allclose((found[0].low, found[0].high), (low, low + 25.5), rtol=1e-6)
    assert found[1:] == (None, None)


@NEEDS_QUADS
def test_a_layer_whose_result_has_no_range_writes_float32(tmp_path: Path) -> None:
    engine = sparseflow.compile(qdq_model(), measure=False, precision="int8")
    assert [layer.element for layer in engine.plan.layers] == ["uint8"]
    onnx.save(qdq_model(), str(tmp_path / "model.onnx"))
    x = np.random.default_rng(1).uniform(0, 20, (1, 4, 9, 9)).astype(np.float32)
    expected = by_onnxruntime(tmp_path / "model.onnx", x)
    np.testing.assert_allclose(engine(x), expected, atol=1e-5 * float(np.abs(expected).max()))


@NEEDS_QUADS
def test_without_levels_and_calibration_int8_is_refused() -> None:
    with pytest.raises(CompileError, match=r"give calibration=\[inputs, \.\.\.\]"):
        sparseflow.compile(nn.Linear(8, 8).eval(), (torch.randn(2, 8),), measure=False, precision="int8")


quantised_decomposed = torch.ops.quantized_decomposed


def _on_levels(x: Any, scale: float, zero: int, low: int, high: int, dtype: torch.dtype) -> Any:
    """As PT2E writes a map on levels."""
    q = quantised_decomposed.quantize_per_tensor(x, scale, zero, low, high, dtype)
    return quantised_decomposed.dequantize_per_tensor(q, scale, zero, low, high, dtype)


class Pt2e(nn.Module):
    """Two convolutions as PT2E and torchao leave them: weights in int8, a bias in int32, maps through levels."""

    def __init__(self, highest: int = 255) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.highest = highest
        for i, filters in enumerate((16, 8)):
            weight = torch.randint(-127, 128, (filters, 4 if i == 0 else 16, 3, 3), generator=generator)
            self.register_buffer(f"weight{i}", weight.to(torch.int8))
            self.register_buffer(f"scales{i}", torch.rand(filters, generator=generator) * 1e-3 + 1e-3)
            self.register_buffer(f"zeros{i}", torch.zeros(filters, dtype=torch.int64))
        self.register_buffer("bias", torch.randint(-900, 900, (16,), generator=generator, dtype=torch.int32))

    def weight(self, i: int) -> Any:
        operands = (getattr(self, f"{name}{i}") for name in ("weight", "scales", "zeros"))
        return quantised_decomposed.dequantize_per_channel(*operands, 0, -127, 127, torch.int8)

    def forward(self, x: Any) -> Any:
        x = _on_levels(x, 0.03, 120, 0, self.highest, torch.uint8)
        bias = quantised_decomposed.dequantize_per_tensor(
            self.bias, 1e-4, 0, -(2**31), 2**31 - 1, torch.int32
        )
        x = torch.relu(nn.functional.conv2d(x, self.weight(0), bias))
        x = _on_levels(x, 0.02, -128, -128, 127, torch.int8)
        return _on_levels(nn.functional.conv2d(x, self.weight(1)), 0.05, 1, -128, 127, torch.int8)


@NEEDS_QUADS
@pytest.mark.parametrize("saved", [False, True])
def test_programs_of_pt2e_are_within_a_level_of_torch(saved: bool, tmp_path: Path) -> None:
    model, x = Pt2e().eval(), torch.randn(2, 4, 11, 9)
    program: Any = torch.export.export(model, (x,))
    if saved:
        torch.export.save(program, tmp_path / "model.pt2")
        program = tmp_path / "model.pt2"
    found = layer_ranges(import_model(program))
    assert list(found) == ["weight0", "weight1"]
    np.testing.assert_allclose(
        [(r.low, r.high) for ranges in found.values() for r in ranges[:2] if r],
        [(-3.6, 4.05), (0.0, 5.1), (0.0, 5.1), (-6.45, 6.3)], rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    engine = sparseflow.compile(program, measure=False, precision="int8")
    assert [layer.element for layer in engine.plan.layers] == ["uint8", "uint8"]
    expected = model(x)
    assert float((engine(x) - expected).abs().max()) <= 0.05
    assert float(expected.std()) > 0.5


def test_few_levels_of_a_torch_map_are_one_clear_line() -> None:
    with pytest.raises(
        ImportModelError, match=r"quantize_per_tensor.*: quantised map of 16 levels"
    ) as caught:
        import_model(Pt2e(highest=15).eval(), (torch.randn(1, 4, 11, 9),))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", ["onnx", "torch"])
@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "mlp")]
)
def test_an_export_keeps_the_ranges_and_runs_in_onnxruntime(name: str, written: str, tmp_path: Path) -> None:
    model, calls = module(name), inputs(name)
    example = (torch.from_numpy(calls[0]),)
    source: Any = model if written == "torch" else to_onnx(model, *example)
    imported = import_model(source, example if written == "torch" else None)
    ranges, path = measure_ranges(imported, calls), tmp_path / "model.onnx"
    export_qdq(source, ranges, path, example)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    found = layer_ranges(import_model(path))
    for layer, (read, result, residual) in zip(ranges.layers, found.values(), strict=True):
        assert near(layer.source, read)
        assert near(layer.result, result)
        assert near(layer.residual, residual) or residual is None
    level = max(float(np.ptp(model(torch.from_numpy(x)).detach().numpy())) for x in calls) / 255
    for x in calls:
        assert np.abs(by_onnxruntime(path, x) - model(torch.from_numpy(x)).detach().numpy()).max() < 4 * level


@NEEDS_QUADS
@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "mlp")]
)
def test_an_export_compiles_to_what_calibration_gives(name: str, tmp_path: Path) -> None:
    source, calls, path = (
        to_onnx(module(name), torch.from_numpy(inputs(name)[0])),
        inputs(name),
        tmp_path / "m.onnx",
    )
    ranges = measure_ranges(import_model(source), calls)
    export_qdq(source, ranges, path)
    read = sparseflow.compile(path, measure=False, precision="int8")
    calibrated = sparseflow.compile(source, measure=False, precision="int8", calibration=ranges)
    assert [x.element for x in read.plan.layers] == [x.element for x in calibrated.plan.layers]
    level = max(float(np.ptp(calibrated(x))) for x in calls) / 255
    assert np.abs([read(x) - calibrated(x) for x in calls]).max() <= level


def near(a: Range | None, b: Range | None) -> bool:
    """Whether both lie within a level of each other."""
    if a is None or b is None:
        return a is b
    return max(abs(a.low - b.low), abs(a.high - b.high)) <= (a.high - a.low) / 255


def test_weights_on_few_levels_are_exported_on_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3).eval()
    steps = torch.linspace(0.01, 0.03, 8).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-7, 8, layer.weight.shape) * steps)
    x = torch.randn(1, 4, 8, 8)
    ranges = measure_ranges(import_model(layer, (x,)), [x.numpy()])
    export_qdq(layer, ranges, tmp_path / "model.onnx", (x,))
    stored = onnx.load(str(tmp_path / "model.onnx")).graph.initializer
    (weight,) = [numpy_helper.to_array(t) for t in stored if t.name == "weight_quantized"]
    np.testing.assert_array_equal(weight, np.rint((layer.weight / steps).detach().numpy()))


def test_ranges_of_another_model_are_one_clear_line(tmp_path: Path) -> None:
    ranges = CalibratedRanges((LayerRanges("other", Range(0, 1), Range(0, 1)),), "minmax", 1)
    source = to_onnx(module("conv"), torch.from_numpy(inputs("conv")[0]))
    with pytest.raises(
        CompileError, match=r"ranges of 1 layers \(other, .*the model has 7 \(stem, a"
    ) as caught:
        export_qdq(source, ranges, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
