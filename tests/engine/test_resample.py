"""Interpolation and padding against torch's and ONNX's own, in all modes."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional as F

import sparseflow
from sparseflow.engine.frontends.onnx_resize import resize_axes
from sparseflow.engine.frontends.resample import Taps
from sparseflow.engine.frontends.torch_resample import axis_taps

MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "nearest": ("upsample_nearest2d", {"mode": "nearest"}),
    "nearest-exact": ("_upsample_nearest_exact2d", {"mode": "nearest-exact"}),
    "bilinear": ("upsample_linear1d", {"mode": "bilinear"}),
    "bilinear corners": ("upsample_linear1d", {"mode": "bilinear", "align_corners": True}),
    "bicubic": ("upsample_bicubic2d", {"mode": "bicubic"}),
    "bicubic corners": ("upsample_bicubic2d", {"mode": "bicubic", "align_corners": True}),
    "bilinear antialiased": ("_upsample_bilinear2d_aa", {"mode": "bilinear", "antialias": True}),
    "bicubic antialiased": ("_upsample_bicubic2d_aa", {"mode": "bicubic", "antialias": True}),
}


class Several(torch.nn.Module):
    """Functions of one input, side by side."""

    def __init__(self, functions: Any) -> None:
        super().__init__()
        self.functions = list(functions)

    def forward(self, x: Any) -> Any:
        return tuple(f(x) for f in self.functions)


def compiled(functions: Any, x: Any) -> list[Any]:
    """What an engine of the functions gives for ``x``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = sparseflow.compile(Several(functions).eval(), (x,), measure=False)
    out = engine(x)
    return list(out) if isinstance(out, tuple) else [out]


def assert_equal(functions: Any, x: Any) -> None:
    functions = list(functions)
    for f, found in zip(functions, compiled(functions, x), strict=True):
        torch.testing.assert_close(found, f(x), rtol=1e-5, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_positions_and_weights_are_torchs_for_all_sizes(mode: str) -> None:
    operator, options = MODES[mode]
    generator = torch.Generator().manual_seed(1)
    for size, out in itertools.product(range(1, 21), range(1, 21)):
        x = torch.randn(1, 1, size, 3, generator=generator)
        expected = F.interpolate(x, size=(out, 3), **options)[0, 0]
        weights = axis_taps(operator, size, out, None, options.get("align_corners", False)).matrix(size)
        np.testing.assert_allclose(weights @ x[0, 0].numpy(), expected, atol=1e-5, err_msg=f"{size} to {out}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [0.35, 0.5, 1.0, 1.3, 1.7, 2.0, 2.999])
def test_positions_and_weights_are_torchs_for_scales(mode: str, scale: float) -> None:
    operator, options = MODES[mode]
    for size in range(3, 21):
        x = torch.randn(1, 1, size, 3)  # the other axis is doubled, since torch copies a map whose size stays
        expected = F.interpolate(x, scale_factor=(scale, 2.0), **options)[0, 0]
        taps = axis_taps(operator, size, len(expected), scale, options.get("align_corners", False))
        wide = axis_taps(operator, 3, 6, 2.0, options.get("align_corners", False))
        found = taps.matrix(size) @ x[0, 0].numpy() @ wide.matrix(3).T
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{size}")


@pytest.mark.parametrize("mode", MODES)
def test_a_scale_that_keeps_the_size(mode: str) -> None:
    options = MODES[mode][1]
    scales: list[Any] = [1.3, (1.3, 1.0), (1.0, 2.0)]
    assert_equal(
        [lambda x, s=s: F.interpolate(x, scale_factor=s, **options) for s in scales], torch.randn(1, 2, 3, 3)
    )


@pytest.mark.parametrize("mode", MODES)
def test_engines_interpolate_like_torch(mode: str) -> None:
    options = MODES[mode][1]
    sizes = [(7, 3), (13, 11), (1, 4), (5, 12), (5, 6)]
    by_size = [lambda x, s=s: F.interpolate(x, size=s, **options) for s in sizes]
    scales: list[Any] = [1.7, 0.6, 2, (2.0, 1.3)]
    by_scale = [lambda x, s=s: F.interpolate(x, scale_factor=s, **options) for s in scales]
    assert_equal(by_size + by_scale, torch.randn(2, 3, 5, 6))


def test_upsampling_behind_a_convolution_to_a_size_that_is_no_multiple() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.Upsample(size=(7, 3))).eval()
    x = torch.randn(1, 3, 9, 9)
    found = sparseflow.compile(model, (x,), measure=False)(x)
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "modes"),
    [(1, ["nearest", "nearest-exact", "linear"]), (3, ["nearest", "nearest-exact", "trilinear"])],
)
def test_engines_interpolate_other_ranks(rank: int, modes: list[str]) -> None:
    x = torch.randn(2, 3, *(5, 4, 3)[:rank])
    sizes = [(3, 7, 2)[:rank], (11, 4, 5)[:rank]]
    assert_equal([lambda x, m=m, s=s: F.interpolate(x, size=s, mode=m) for m in modes for s in sizes], x)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_engines_interpolate_like_torch_for_many_sizes(mode: str) -> None:
    options = MODES[mode][1]
    for size in (1, 2, 3, 7, 12, 20):
        outs = range(1, 21, 2 if size % 2 else 3)
        functions = [lambda x, o=o: F.interpolate(x, size=(o, 21 - o), **options) for o in outs]
        assert_equal(functions, torch.randn(1, 2, size, 21 - size))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_engines_pad_like_torch(mode: str) -> None:
    widths = [(1, 2, 0, 1), (2, 0, -1, 1), (3, 3, 3, 3)]
    assert_equal([lambda x, w=w: F.pad(x, w, mode=mode) for w in widths], torch.randn(2, 3, 5, 6))
    assert_equal([lambda x: F.pad(x, (2, 1), mode=mode)], torch.randn(2, 3, 5))


def test_engines_pool_adaptively_like_torch() -> None:
    sizes = [(2, 3), (1, 1), (5, 6), (7, 4), (1, 6)]
    assert_equal([lambda x, s=s: F.adaptive_max_pool2d(x, s) for s in sizes], torch.randn(2, 3, 5, 6))
    assert_equal(
        [lambda x, s=s: F.adaptive_avg_pool2d(x, s) for s in [*sizes, (5, 3)]], torch.randn(2, 3, 5, 6)
    )
    assert_equal([lambda x, s=s: F.adaptive_avg_pool1d(x, s) for s in (1, 3, 9)], torch.randn(2, 3, 7))
    assert_equal([lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1))], torch.randn(1, 2, 5, 4, 3))
    assert_equal([lambda x, s=s: F.adaptive_max_pool1d(x, s) for s in (1, 3, 9)], torch.randn(2, 3, 7))
    assert_equal([lambda x: F.adaptive_max_pool3d(x, (2, 3, 1))], torch.randn(1, 2, 5, 4, 3))


def test_positions_of_adaptive_maxima_are_refused() -> None:
    with pytest.raises(sparseflow.errors.ImportModelError, match="positions of the maxima"):
        compiled([lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[1]], torch.randn(1, 2, 5, 5))


# ONNX

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
CASES = [
    *(
        {"mode": "nearest", "nearest_mode": n, "coordinate_transformation_mode": c}
        for n in NEAREST
        for c in COORDINATES
    ),
    *(
        {"mode": m, "coordinate_transformation_mode": c, "exclude_outside": e, "antialias": a}
        for m in ("linear", "cubic")
        for c in COORDINATES
        for e in (0, 1)
        for a in (0, 1)
    ),
    {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.5},
]


def _label(attrs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in attrs.values())


def resize_model(shape: Any, attrs: dict[str, Any], constants: dict[str, Any], opset: int = 19) -> Any:
    """A model of one Resize node with constant operands."""
    tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    names = ["x", *(n if n in constants else "" for n in ("roi", "scales", "sizes"))]
    node = helper.make_node("Resize", names, ["y"], **attrs)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def by_taps(x: Any, axes: dict[int, Taps], fill: float = 0.0) -> Any:
    """What the taps make of ``x``, in NumPy."""
    outside = np.zeros((1,) * x.ndim, bool)
    for axis, taps in axes.items():
        x = np.moveaxis(np.tensordot(taps.matrix(x.shape[axis]), x, ([1], [axis])), 0, axis)
        if taps.outside is not None:
            outside = outside | taps.outside.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return np.where(outside, fill, x)


@pytest.mark.parametrize("attrs", CASES, ids=_label)
def test_positions_and_weights_are_onnxs(attrs: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 13):
        x = rng.standard_normal((size, 2)).astype("float32")
        for out in (1, 2, 4, 5, 9, 20):
            model = resize_model([size, 2], attrs, {"sizes": np.array([out, 2])})
            expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
            found = by_taps(x, resize_axes(x.shape, attrs, None, [out, 2], None))
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{size} to {out}")
        for scale in (0.4, 1.3, 2.7):
            if int(scale * size) < 1:
                continue
            model = resize_model([size, 2], attrs, {"scales": np.array([scale, 1], "float32")})
            expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
            scales = np.array([scale, 1], "float32").tolist()
            found = by_taps(x, resize_axes(x.shape, attrs, scales, None, None))
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{size} times {scale}")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_cropping_and_filling(mode: str) -> None:
    attrs = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.5}
    x = np.random.default_rng(1).standard_normal((1, 2, 6, 7)).astype("float32")
    roi = np.array([0, 0, 0.3, -0.2, 1, 1, 0.8, 1.3], "float32")
    model = resize_model(x.shape, attrs, {"roi": roi, "sizes": np.array([1, 2, 5, 9])})
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(sparseflow.compile(model, measure=False)(x), expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_aspect_ratios_and_axes(policy: str) -> None:
    attrs = {"mode": "linear", "keep_aspect_ratio_policy": policy, "axes": [2, 3]}
    x = np.random.default_rng(1).standard_normal((1, 2, 6, 7)).astype("float32")
    model = resize_model(x.shape, attrs, {"sizes": np.array([11, 8])})
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(sparseflow.compile(model, measure=False)(x), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attrs", CASES, ids=_label)
def test_engines_resize_like_onnx(attrs: dict[str, Any]) -> None:
    x = np.random.default_rng(2).standard_normal((1, 2, 5, 8)).astype("float32")
    model = resize_model(x.shape, attrs, {"sizes": np.array([1, 2, 7, 3])})
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(sparseflow.compile(model, measure=False)(x), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_onnx_pads(mode: str) -> None:
    x = np.random.default_rng(3).standard_normal((1, 2, 5, 6)).astype("float32")
    node = helper.make_node("Pad", ["x", "pads"], ["y"], mode=mode)
    pads = onnx.numpy_helper.from_array(np.array([0, 0, 2, 1, 0, 0, 1, 3]), "pads")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    graph = helper.make_graph(
        [node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [pads]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    expected = np.pad(x, [(0, 0), (0, 0), (2, 1), (1, 3)], mode=mode)
    np.testing.assert_array_equal(sparseflow.compile(model, measure=False)(x), expected)
