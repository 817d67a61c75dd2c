"""Pools, global mean, element-wise operators and concatenation in lanes against torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparseflow.core.activations import fused
from sparseflow.kernels.lane import operators as maps
from sparseflow.kernels.lane.operators import Pool
from sparseflow.kernels.layouts.lane import LaneLayout, canonical
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.workload import Workload
from sparseflow.ops.binary import BINARY

RNG = np.random.default_rng(2)
SHAPES = [(3, 14, 14), (5, 7, 9), (2, 1, 1), (17, 13, 6)]
LOW = float("-inf")


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _compare(y: np.ndarray, expected: np.ndarray, layout: LaneLayout) -> None:
    shape = (len(y), layout.channels, layout.plane, layout.lanes)
    used = slice(0, layout.rows * layout.cols)
    np.testing.assert_allclose(
        y.reshape(shape)[:, :, used], layout.pack(expected).reshape(shape)[:, :, used], rtol=1e-5, atol=1e-5
    )


def _pool_layouts(
    pool: Pool, shape: tuple[int, int, int], out: tuple[int, int], fill: float
) -> tuple[LaneLayout, LaneLayout]:
    target = canonical(shape[0], *out, 16)
    w = Workload("conv2d", 2, *shape, shape[0], pool.kernel_size, pool.stride, pool.padding, target=AVX512)
    return replace(w.input_layout(target), fill=fill), target.with_halo((0, 1, 1, 0))


POOLS = [
    ((2, 2), (2, 2), 0, False),
    ((3, 3), (2, 2), 1, False),
    ((3, 3), (2, 2), 1, True),
    ((3, 2), (1, 2), 1, False),
    ((5, 5), (3, 3), 2, True),
]


@pytest.mark.parametrize("threads", [1, 2])
def test_max_pools_of_negative_values(threads: int, compile_kernels: Any) -> None:
    functions, runs = {}, []
    for shape in [(3, 14, 14), (5, 7, 9), (2, 13, 6)]:
        x = -1.0 - np.abs(_random(2, *shape))
        for kernel, stride, padding, ceil in POOLS:
            padding_hw = (padding, min(padding, kernel[1] // 2))
            expected = torch.nn.functional.max_pool2d(
                torch.from_numpy(x), kernel, stride, padding_hw, ceil_mode=ceil
            ).numpy()
            pool = Pool("max", kernel, stride, (*padding_hw, *padding_hw))
            source, out = _pool_layouts(pool, shape, expected.shape[2:], LOW)
            name = f"k{len(runs)}"
            functions[name] = maps.pool(pool, 2, source, out, threads, name)
            runs.append((name, source.pack(x), expected, out))
    kernels = compile_kernels(functions)
    for name, packed, expected, out in runs:
        _compare(kernels(name, [packed], (2, out.size)), expected, out)


@pytest.mark.parametrize("include", [False, True])
def test_average_pools_count_as_torch_does(include: bool, compile_kernels: Any) -> None:
    functions, runs = {}, []
    for shape in [(3, 14, 14), (5, 7, 9), (2, 13, 6)]:
        x = _random(2, *shape)
        for kernel, stride, padding, _ceil in POOLS:
            padding_hw = (padding, min(padding, kernel[1] // 2))
            expected = torch.nn.functional.avg_pool2d(
                torch.from_numpy(x), kernel, stride, padding_hw, count_include_pad=include
            ).numpy()
            pool = Pool("avg", kernel, stride, (*padding_hw, *padding_hw), include)
            source, out = _pool_layouts(pool, shape, expected.shape[2:], 0.0)
            name = f"k{len(runs)}"
            functions[name] = maps.pool(pool, 2, source, out, 1, name)
            runs.append((name, [source.pack(x), maps.pool_scale(pool, source, out)], expected, out))
    kernels = compile_kernels(functions)
    for name, inputs, expected, out in runs:
        _compare(kernels(name, inputs, (2, out.size)), expected, out)


@pytest.mark.parametrize("threads", [1, 2])
def test_global_mean(threads: int, compile_kernels: Any) -> None:
    layouts = [canonical(*s, 16).with_halo(h) for s in SHAPES for h in ((0, 0, 0, 0), (1, 1, 1, 1))]
    kernels = compile_kernels(
        {f"k{i}": maps.global_mean(2, layout, threads, f"k{i}") for i, layout in enumerate(layouts)}
    )
    for i, layout in enumerate(layouts):
        x = _random(2, layout.channels, layout.height, layout.width)
        y = kernels(f"k{i}", [layout.pack(x)], (2, layout.channels))
        np.testing.assert_allclose(y, x.mean(axis=(2, 3)), rtol=1e-5, atol=1e-5)


def test_every_binary_operator_with_unequal_halos(compile_kernels: Any) -> None:
    assert set(BINARY) == set(maps.BINARY)
    base = canonical(5, 7, 9, 16)
    sources = [base.with_halo((1, 0, 0, 1)), base]
    out = base.with_halo((1, 2, 1, 2))
    kernels = compile_kernels({n: maps.elementwise(n, 2, sources, out, 2, n) for n in BINARY})
    x = [_random(2, 5, 7, 9), _random(2, 5, 7, 9)]
    for name, function in BINARY.items():
        packed = [s.pack(v) for s, v in zip(sources, x, strict=True)]
        _compare(kernels(name, packed, (2, out.size)), function.numpy(*x), out)


def test_every_activation_fills_ragged_lanes(compile_kernels: Any) -> None:
    f = torch.nn.functional
    source = canonical(3, 13, 6, 16)
    out = replace(source, halo=(1, 1, 1, 1), fill=LOW)
    names = [n for n, a in fused().items() if a.torch and not a.has_parameter]
    kernels = compile_kernels({n: maps.elementwise(n, 1, [source], out, 1, n) for n in names})
    x = 6.0 * _random(1, 3, 13, 6)
    for name in names:
        expected = getattr(f, name)(torch.from_numpy(x)).numpy()
        _compare(kernels(name, [source.pack(x)], (1, out.size)), expected, out)


def test_activations_far_from_zero(compile_kernels: Any) -> None:
    x = np.array([-1e4, -120, -89, -88, -30, -6, -3, -1e-4, 0, 1e-4, 3, 6, 30, 88, 120, 1e4], np.float32)
    layout = canonical(1, 4, 4, 16)
    names = [n for n, a in fused().items() if a.torch and not a.has_parameter]
    kernels = compile_kernels({n: maps.elementwise(n, 1, [layout], layout, 1, n) for n in names})
    for name in names:
        y = layout.unpack(kernels(name, [layout.pack(x.reshape(1, 1, 4, 4))], (1, layout.size)))
        expected = getattr(torch.nn.functional, name)(torch.from_numpy(x).double()).numpy()
        np.testing.assert_allclose(y.reshape(-1), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_concatenation_of_channels(threads: int, compile_kernels: Any) -> None:
    sources = [canonical(c, 7, 9, 16).with_halo((c % 2, 0, 1, 0)) for c in (3, 1, 8)]
    out = canonical(12, 7, 9, 16).with_halo((1, 1, 1, 1))
    kernels = compile_kernels({"cat": maps.concatenate(2, sources, out, threads, "cat")})
    x = [_random(2, s.channels, 7, 9) for s in sources]
    y = kernels("cat", [s.pack(v) for s, v in zip(sources, x, strict=True)], (2, out.size))
    _compare(y, np.concatenate(x, axis=1), out)


@pytest.mark.parametrize("threads", [1, 2])
def test_layer_norm_over_channels(threads: int, compile_kernels: Any) -> None:
    shapes = [(768, 1, 128), (5, 1, 37), (1, 1, 3), (32, 3, 10)]
    layouts = [canonical(*s, lanes) for s in shapes for lanes in (16, 8)]
    kernels = compile_kernels(
        {f"k{i}": maps.layer_norm(2, s, s, 1e-5, threads, f"k{i}") for i, s in enumerate(layouts)}
    )
    for i, layout in enumerate(layouts):
        x = 50.0 + _random(
            2, layout.channels, layout.height, layout.width
        )  # the mean is large: no cancellation
        gamma, beta = _random(layout.channels), _random(layout.channels)
        rows = torch.from_numpy(x).double().permute(0, 2, 3, 1)
        weights = (torch.from_numpy(v).double() for v in (gamma, beta))
        expected = torch.nn.functional.layer_norm(rows, (layout.channels,), *weights, 1e-5)
        y = kernels(f"k{i}", [layout.pack(x), gamma, beta], (2, layout.size))
        np.testing.assert_allclose(
            layout.unpack(y), expected.permute(0, 3, 1, 2).numpy(), rtol=1e-4, atol=1e-4
        )


def test_gelu_is_within_5e_7_everywhere(compile_kernels: Any) -> None:
    x = np.linspace(-9.0, 9.0, 1 << 18, dtype=np.float32).reshape(1, 1, 512, 512)
    layout = canonical(1, 512, 512, 16)
    kernels = compile_kernels({"k": maps.elementwise("gelu", 1, [layout], layout, 1, "k")})
    y = layout.unpack(kernels("k", [layout.pack(x)], (1, layout.size)))
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert np.abs(y - exact).max() < 5e-7
    tiny = layout.pack(np.full((1, 1, 512, 512), 1e-6, np.float32))
    small = layout.unpack(kernels("k", [tiny], (1, layout.size)))
    np.testing.assert_allclose(small, 5e-7, rtol=1e-4)  # relative where the function is small
