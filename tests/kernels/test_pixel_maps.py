"""Indexed maps made, changed back and operated on: values, bits and count equal those of `PixelLayout.pack`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparseflow.core import ELEMENT_TYPES, ElementType
from sparseflow.kernels.indexed import operators as pixel_maps
from sparseflow.kernels.lane.conversions import Strides
from sparseflow.kernels.lane.operators import Pool
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import canonical
from sparseflow.kernels.tuning.map_times import parameters_of

SHAPES = [(1, 64, 14, 14), (2, 19, 7, 7), (1, 3, 5, 3), (2, 70, 1, 1), (1, 130, 9, 17), (3, 16, 4, 4)]
HALO = (1, 2, 1, 0)


def _map(shape: tuple[int, ...], seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * (random.random(shape) < 0.4)).astype(np.float32)


@pytest.fixture
def run(compile_kernels: Any) -> Any:
    """``run(kernel, inputs, n)``: its last ``n`` parameters, which hold ones before."""

    def call(function: Any, inputs: list[Any], outputs: int) -> list[Any]:
        ones = [np.ones(*spec) for spec in parameters_of(function)[-outputs:]]
        return list(compile_kernels({"kernel": function}).run("kernel", inputs, ones))

    return call


def _same(found: list[Any], expected: tuple[Any, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("element", ELEMENT_TYPES.values(), ids=str)
def test_unpack_gives_back_what_was_packed(element: ElementType) -> None:
    layout, x = PixelLayout(19, 7, 7, HALO, element), _map((2, 19, 7, 7))
    packed = layout.pack(x)
    assert tuple((a.shape, str(a.dtype)) for a in packed) == layout.tensors(2)
    np.testing.assert_array_equal(layout.unpack(packed[0]), element.rounded(x))
    assert packed[2] == np.count_nonzero(x)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lanes", [0, 4, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back(run: Any, shape: tuple[int, ...], lanes: int, threads: int) -> None:
    x, layout = _map(shape), PixelLayout(*shape[1:], HALO)
    if lanes:
        plain: Any = canonical(*shape[1:], lanes).with_halo((1, 1, 1, 1))
        flat = plain.pack(x)
    else:
        plain, flat = Strides.nchw(*shape[2:]), x.reshape(len(x), -1)
    packed = layout.pack(x)
    _same(run(pixel_maps.to_pixels(shape[0], plain, layout, threads, "kernel"), [flat], 3), packed)
    back = run(pixel_maps.from_pixels(shape[0], layout, plain, threads, "kernel"), [packed[0]], 1)[0]
    if lanes:
        np.testing.assert_array_equal(plain.unpack(back), x)
        if plain.plane == plain.rows * plain.cols:
            np.testing.assert_array_equal(back, flat)
    else:
        np.testing.assert_array_equal(back, flat)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_operators_keep_the_index(run: Any, shape: tuple[int, ...], threads: int) -> None:
    x, other, layout = _map(shape), _map(shape, 1), PixelLayout(*shape[1:], HALO)
    plain = layout.with_halo((0, 0, 0, 0))
    values = [plain.pack(x)[0], plain.pack(other)[0]]
    added = pixel_maps.elementwise("add", shape[0], [plain, plain], layout, threads, "kernel")
    _same(run(added, values, 3), layout.pack(x + other))
    rectified = pixel_maps.elementwise("relu", shape[0], [plain], layout, threads, "kernel")
    _same(run(rectified, values[:1], 3), layout.pack(np.maximum(x, 0)))
    joined = PixelLayout(2 * shape[1], *shape[2:], HALO)
    both = pixel_maps.concatenate(shape[0], [plain, plain], joined, threads, "kernel")
    _same(run(both, values, 3), joined.pack(np.concatenate([x, other], axis=1)))
    mean = run(pixel_maps.global_mean(shape[0], plain, threads, "kernel"), values[:1], 1)[0]
    np.testing.assert_allclose(mean, x.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("shape", [(1, 64, 14, 14), (2, 19, 7, 7)])
def test_a_max_pool_equals_torch(
    run: Any, shape: tuple[int, ...], kernel: int, stride: int, padding: int
) -> None:
    import torch

    x = _map(shape)
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(x), kernel, stride, padding).numpy()
    out = PixelLayout(*expected.shape[1:], HALO)
    window = Pool("max", (kernel, kernel), (stride, stride), (padding,) * 4)
    source = PixelLayout(*shape[1:])
    function = pixel_maps.pool(window, shape[0], source, out, 1, "kernel")
    _same(run(function, [source.pack(x)[0]], 3), out.pack(expected))
