"""The contract of operators on maps: what they mean is what torch computes, and each of their kernels computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparseflow.core.element_type import BFLOAT16, FLOAT32, ElementType
from sparseflow.kernels.incremental.operators import EVERY, MASK_VECTOR, KeptLayout
from sparseflow.kernels.lane.attention import Attention
from sparseflow.kernels.lane.operators import Pool
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import canonical
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.tuning.map_times import parameters_of
from sparseflow.ops.attention import MultiHeadAttention
from sparseflow.ops.concat import Concat
from sparseflow.ops.elementwise import Elementwise
from sparseflow.ops.norm import LayerNorm
from sparseflow.ops.operator import MAPS, OPERATORS, Operator, Setting
from sparseflow.ops.pool import Mean, Pooling
from sparseflow.passes.layout import logical
from tests.kernels.conftest import NEEDS_PAIRS

RNG = np.random.default_rng(6)
LANES = AVX512.vectors.lanes
ATTENTION = Attention(2, 3, 5, 7, 9, 0.4, (0, 2, 1), (1, 3, 1, 9))


@dataclass(frozen=True)
class Example:
    """An operator, the shapes of the maps and small tensors it reads, and the same in torch."""

    operator: Operator
    shapes: tuple[tuple[int, ...], ...]
    torch: Callable[..., torch.Tensor]
    small: tuple[tuple[int, ...], ...] = ()


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    a = ATTENTION
    q, k, v = (
        x[..., f : f + a.heads * a.size].reshape(a.batch, -1, a.heads, a.size).transpose(1, 2)
        for x, f in zip((q, k, v), a.first, strict=True)
    )
    y = F.scaled_dot_product_attention(q, k, v, mask.reshape(a.mask), scale=a.scale)
    return y.transpose(1, 2).reshape(a.batch, a.queries, -1)


MAP = (2, 19, 9, 13)
EXAMPLES = [
    Example(Pooling(Pool("max", (3, 2), (2, 1), (1, 0, 1, 1))), (MAP,), lambda x: F.max_pool2d(
        F.pad(x, (0, 1, 1, 1), value=-torch.inf), (3, 2), (2, 1))),
    Example(Pooling(Pool("max", (2, 2), (2, 2), (0, 0, 0, 0))), (MAP,), lambda x: F.max_pool2d(x, 2)),
    Example(Pooling(Pool("avg", (3, 3), (2, 2), (1, 1, 1, 1))), (MAP,), lambda x: F.avg_pool2d(
        x, 3, 2, 1, count_include_pad=False)),
    Example(Pooling(Pool("avg", (3, 3), (1, 1), (1, 1, 1, 1), True)), (MAP,), lambda x: F.avg_pool2d(x, 3, 1, 1)),
    Example(Mean(), (MAP,), lambda x: x.mean((2, 3), keepdim=True)),
    Example(Concat(), (MAP, (2, 5, 9, 13), MAP), lambda *x: torch.cat(x, 1)),
    Example(Elementwise("relu"), (MAP,), torch.relu),
    Example(Elementwise("gelu"), (MAP,), F.gelu),
    Example(Elementwise("multiply"), (MAP, MAP), torch.multiply),
    Example(Elementwise("subtract"), (MAP, MAP), torch.subtract),
    Example(LayerNorm(1e-3), ((2, 7, 21),), lambda x, g, b: F.layer_norm(x, (21,), g, b, 1e-3), ((21,), (21,))),
    Example(MultiHeadAttention(ATTENTION), ((2, 7, 17), (2, 9, 17), (2, 9, 16)), _attend, ((27,),)),
]  # fmt: skip
NAMES = [f"{e.operator.name}-{i}" for i, e in enumerate(EXAMPLES)]
each = pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)


def _inputs(example: Example) -> list[np.ndarray]:
    """Random maps, of which a good part is zero, and the small tensors."""
    maps = [RNG.standard_normal(s) * (RNG.random(s) < 0.6) for s in example.shapes]
    return [x.astype(np.float32) for x in maps + [RNG.standard_normal(s) for s in example.small]]


def _expected(example: Example, inputs: list[np.ndarray]) -> np.ndarray:
    return example.operator.numpy(*(x.astype(np.float64) for x in inputs))


def test_every_operator_has_an_example() -> None:
    assert {e.operator.kind for e in EXAMPLES} == set(OPERATORS)


@each
def test_the_meaning_is_torchs_and_the_sign_is_true(example: Example) -> None:
    inputs = _inputs(example)
    expected = example.torch(*(torch.from_numpy(x).double() for x in inputs)).numpy()
    np.testing.assert_allclose(_expected(example, inputs), expected, rtol=1e-9, atol=1e-12)
    positive = [True] * len(example.shapes)
    if example.operator.non_negative(positive):
        assert _expected(example, [np.abs(x) for x in inputs]).min() >= 0.0


@each
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("element", [FLOAT32, pytest.param(BFLOAT16, marks=NEEDS_PAIRS)], ids=str)
def test_the_kernel_on_lanes(
    example: Example, element: ElementType, threads: int, compile_kernels: Any
) -> None:
    operator, inputs = example.operator, _inputs(example)
    if element != FLOAT32:
        if operator.kind == "attention":
            assert not operator.takes(element, [4, 4, 4])
            return
        if operator.kind in ("concat", "layer_norm"):  # whole slots
            assert not operator.takes(element, [19, 21])
            even = tuple(
                (*s[:-1], 22) if operator.kind == "layer_norm" else (2, 18, *s[2:]) for s in example.shapes
            )
            example = replace(example, shapes=even, small=tuple((22,) for _ in example.small))
            inputs = _inputs(example)
        inputs = [element.rounded(x) if x.ndim > 1 else x for x in inputs]
    expected = _expected(example, inputs)
    view = MAPS[0] if MAPS[0] in operator.views else "tokens"
    shapes = [logical(s, view) for s in example.shapes]
    shape = shapes[0] if operator.reduces else logical(expected.shape, view)
    out = canonical(*shape, LANES, element)
    assert element == FLOAT32 or operator.takes(element, [s[0] for s in shapes])
    needs = operator.needs(out, shapes, LANES, positive=False)
    if view == MAPS[0]:  # rows have no halo
        out = out.with_halo((0, 1, 1, 0))
    flat = [_nchw(x, view) for x in inputs[: len(shapes)]]
    packed = [need.pack(x) for need, x in zip(needs, flat, strict=True)]
    constants = operator.lane_constants(needs, out)
    make = operator.on_lanes(needs, out, Setting(2, threads, AVX512.vectors))
    kernels = compile_kernels({"kernel": make("kernel")})
    operands = [*packed, *inputs[len(shapes) :], *constants]
    size, dtype = (shape[0], "float32") if operator.reduces else (out.size, element.slot)
    y = kernels("kernel", operands, (2, size), dtype)
    wanted = _nchw(expected, view)
    found = y.reshape(wanted.shape) if operator.reduces else out.unpack(y)
    error = 2e-5 if element == FLOAT32 else 1.5 * element.step
    np.testing.assert_allclose(found, wanted, rtol=error, atol=error)


@each
def test_the_kernel_on_indexed_maps(example: Example, compile_kernels: Any) -> None:
    operator, inputs = example.operator, _inputs(example)
    expected = _expected(example, inputs).astype(np.float32)
    if MAPS[0] not in operator.views:
        return
    sources = [PixelLayout(*s[1:]) for s in example.shapes]
    out = sources[0] if operator.reduces else PixelLayout(*expected.shape[1:], (1, 2, 1, 0))
    make = operator.on_pixels(sources, out, Setting(2, 1, AVX512.vectors))
    if make is None:
        assert operator.name == "avg_pool"  # the only one without
        return
    function = make("kernel")
    count = 1 if operator.reduces else 3
    ones = [np.ones(*spec) for spec in parameters_of(function)[-count:]]
    values = [s.pack(x)[0] for s, x in zip(sources, inputs, strict=True)]
    found = compile_kernels({"kernel": function}).run("kernel", values, ones)
    if operator.reduces:
        np.testing.assert_allclose(found[0].reshape(expected.shape), expected, atol=1e-6)
        return
    np.testing.assert_allclose(out.unpack(found[0]), expected, rtol=1e-5, atol=1e-6)
    if operator.name != "gelu":  # whose results near zero may round to it
        np.testing.assert_array_equal(found[1], out.pack(expected)[1])
        assert found[2][0] == np.count_nonzero(expected)


@each
def test_the_kernel_on_kept_maps(example: Example, compile_kernels: Any) -> None:
    operator, inputs = example.operator, _inputs(example)
    expected = _expected(example, inputs)[:1]
    if not operator.in_streams():
        assert operator.kind in ("mean", "layer_norm", "attention")  # which read whole maps
        return
    sources = [KeptLayout(*s[1:], (2, 2, 2, 2), lanes=LANES) for s in example.shapes]
    target = KeptLayout(*expected.shape[1:], (1, 0, 0, 2), lanes=LANES)
    kernels = compile_kernels({"kernel": operator.on_kept(sources, target)("kernel")})
    operands: list[Any] = []
    for layout, x in zip(sources, inputs, strict=True):
        operands += [_kept(layout, x[0]), np.ones(layout.mask_size, np.int8)]
    fresh = [np.zeros(target.size, np.float32), np.zeros(target.mask_size, np.int8)]
    y, mask = kernels.run("kernel", [*operands, EVERY], fresh)
    np.testing.assert_allclose(y, _kept(target, expected[0]), rtol=1e-5, atol=1e-5)
    assert mask[:-MASK_VECTOR].sum() == target.height * target.width


def _nchw(x: np.ndarray, view: str) -> np.ndarray:
    """A tensor as (N, channels, height, width)."""
    return x if view == MAPS[0] else np.moveaxis(x, -1, 1)[:, :, None]


def _kept(layout: KeptLayout, x: np.ndarray) -> np.ndarray:
    out = np.zeros((layout.rows, layout.cols, layout.depth), np.float32)
    top, left = layout.margin[:2]
    out[top : top + layout.height, left : left + layout.width, : layout.channels] = x.transpose(1, 2, 0)
    return out.reshape(-1)


def test_what_an_operator_reads_follows_its_window() -> None:
    window = Pooling(Pool("max", (3, 2), (2, 1), (1, 0, 1, 1))).window()
    assert (window.reach, window.stride, window.offset) == ((3, 2), (2, 1), (-1, 0))
    assert replace(window, reach=(1, 1), stride=(1, 1), offset=(0, 0)) == Elementwise("relu").window()
