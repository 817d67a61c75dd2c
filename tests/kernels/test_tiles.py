"""Kept maps and tiles: which pixels a change reaches, that tiles cover them, and that a linear layer's parts add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseflow.kernels.incremental import operators as kept
from sparseflow.kernels.incremental import tiles
from sparseflow.kernels.incremental.operators import EVERY, KeptLayout, Window

WINDOW = Window((3, 3), (2, 2), (-1, -1))
SOURCE, TARGET = KeptLayout(3, 13, 70, (1, 1, 1, 1), lanes=16), KeptLayout(5, 7, 35, lanes=16)
TILES = tiles.Tiles(7, 35, (3, 4))
SLOTS = 64
LINEAR = KeptLayout(5, 3, 2, (1, 0, 2, 1), lanes=16), KeptLayout(300, 1, 1, lanes=16)


@pytest.fixture(scope="module")
def kernels(compile_kernels: Any) -> Any:
    return compile_kernels(
        {
            "reach": tiles.reach(TARGET, [(SOURCE, WINDOW)], "reach"),
            "find": tiles.find(TARGET, TILES, SLOTS, "find"),
            "linear": kept.linear(*LINEAR, ("relu", None), "linear"),
        }
    )


def mask_of(layout: KeptLayout, marked: np.ndarray) -> np.ndarray:
    """The mask that marks the pixels of a (height, width) array."""
    out = np.zeros((layout.rows, layout.cols), np.int8)
    out[layout.margin[0] :, layout.margin[1] :][: layout.height, : layout.width] = marked
    return np.concatenate([out.reshape(-1), np.zeros(kept.MASK_VECTOR, np.int8)])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 69)), max_size=6))
def test_reach_and_tiles(kernels: Any, pixels: set[tuple[int, int]]) -> None:
    marked = np.zeros((SOURCE.height, SOURCE.width), np.int8)
    for pixel in pixels:
        marked[pixel] = 1
    need, rows = kernels.run(
        "reach",
        [mask_of(SOURCE, marked)],
        [np.ones(TARGET.mask_size, np.int8), np.ones(TARGET.height, np.int8)],
    )
    padded = np.pad(marked, 1)
    wanted = np.zeros((TARGET.height, TARGET.width), np.int8)
    for row in range(TARGET.height):
        for col in range(TARGET.width):
            wanted[row, col] = padded[row * 2 : row * 2 + 3, col * 2 : col * 2 + 3].any()
    got = need[: TARGET.height * TARGET.width].reshape(wanted.shape)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(rows, wanted.any(axis=1))

    found, count = kernels.run(
        "find", [mask_of(TARGET, wanted), rows], [np.full(SLOTS, -1, np.int32), np.full(1, -1, np.int32)]
    )
    assert count[0] <= TILES.count
    covered = np.zeros_like(wanted)
    for first in found[: count[0]]:
        row, col = divmod(int(first), TILES.width)
        assert row + 3 <= TILES.height
        assert col + 4 <= TILES.width
        covered[row : row + 3, col : col + 4] = 1
    assert (covered >= wanted).all()
    assert (count[0] > 0) == bool(wanted.any())
    if count[0]:
        assert set(found[count[0] :]) <= {found[count[0] - 1]}


def test_a_linear_layer_reads_the_weights_of_changed_pixels_only(kernels: Any) -> None:
    source, target = LINEAR
    random = np.random.default_rng(0)
    x = random.standard_normal((source.channels, source.height, source.width)).astype(np.float32)
    x[2] = 0.0
    weight = random.standard_normal((target.channels, x.size)).astype(np.float32)
    bias = np.zeros(target.depth, np.float32)
    bias[: target.channels] = random.standard_normal(target.channels)
    data, limit = kept.pack_linear(weight, source, target), np.float32(EVERY)
    pixels = source.height * source.width

    def call(changed: np.ndarray, data: np.ndarray, state: list[np.ndarray]) -> list[np.ndarray]:
        values = np.zeros((source.rows, source.cols, source.depth), np.float32)
        values[1:4, 0:2, : source.channels] = x.transpose(1, 2, 0)
        made = [kernels.tensor(a) for a in state]
        arguments = [values.reshape(-1), mask_of(source, changed), data, bias]
        unread = kernels.tensor(mask_of(target, np.zeros((1, 1))))
        read = [kernels.tensor(a) for a in arguments]
        kernels.module["linear"](*read, made[0], float(limit), made[1], unread)
        return [np.asarray(m.numpy()) for m in made]

    start = [np.zeros(pixels * target.depth, np.float32), np.zeros(target.size, np.float32)]
    state = call(np.ones((3, 2)), data, start)

    def wanted() -> np.ndarray:
        return np.maximum(weight.astype(np.float64) @ x.reshape(-1) + bias[: target.channels], 0)

    np.testing.assert_allclose(state[1][: target.channels], wanted(), rtol=1e-4, atol=1e-4)
    x[:, 1, 1] += 1.0
    changed = np.zeros((3, 2))
    changed[1, 1] = 1
    others = data.reshape(pixels, -1).copy()
    others[np.arange(pixels) != 3] = np.nan  # not read
    part = call(changed, others.reshape(-1), state)
    np.testing.assert_allclose(part[1][: target.channels], wanted(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(part[1], call(np.ones((3, 2)), data, start)[1])
