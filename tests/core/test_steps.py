"""Steps of levels: the largest weight is the last level, and weights that lie on levels stay as they are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparseflow.core.steps import LARGEST, filter_steps, on_levels


def test_the_largest_weight_of_each_filter_is_the_last_level() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 5, 3, 3)).astype(np.float32)
    steps = filter_steps(weight)
    assert steps.dtype == np.float32
    levels = on_levels(weight, steps)
    np.testing.assert_array_equal(np.abs(levels).max(axis=(1, 2, 3)), LARGEST)
    assert float(np.abs(levels * steps[:, None, None, None] - weight).max()) <= float(steps.max()) / 2 * 1.001


@given(
    count=st.integers(1, LARGEST),
    step=st.floats(1e-6, 1e3),
    seed=st.integers(0, 999),
    density=st.floats(0.05, 1.0),
)
def test_weights_on_levels_keep_their_values(count: int, step: float, seed: int, density: float) -> None:
    random = np.random.default_rng(seed)
    levels = random.integers(-count, count + 1, (3, 4, 9)) * (random.random((3, 4, 9)) < density)
    weight = (levels * np.array([1.0, 0.37, 11.0])[:, None, None] * step).astype(np.float32)
    steps = filter_steps(weight)
    found = on_levels(weight, steps)
    np.testing.assert_allclose(found * steps[:, None, None], weight, rtol=1e-3 / LARGEST, atol=0)
    np.testing.assert_array_equal(found == 0, weight == 0)


def test_zeros_have_a_step() -> None:
    weight = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(filter_steps(weight), [1.0, 1.0])
    np.testing.assert_array_equal(on_levels(weight, filter_steps(weight)), weight)
