"""The contract of functions of two tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparseflow.ops.binary import BINARY, Binary, binary

VALUES = np.array([-3.0, -0.5, -0.0, 0.0, 0.25, 7.0])
LEFT, RIGHT = (v.reshape(-1) for v in np.meshgrid(VALUES, VALUES))


@pytest.mark.parametrize("name", BINARY)
def test_the_meaning_is_torchs_and_the_facts_are_true(name: str) -> None:
    operator = BINARY[name]
    expected = getattr(torch, name)(torch.from_numpy(LEFT), torch.from_numpy(RIGHT)).numpy()
    np.testing.assert_array_equal(operator.numpy(LEFT, RIGHT), expected)
    assert operator.numpy(np.zeros(1), np.zeros(1))[0] == 0.0
    both = (LEFT >= 0.0) & (RIGHT >= 0.0)
    assert operator.non_negative == bool((expected[both] >= 0.0).all())
    assert binary(f"relax.{name}") is operator
    assert binary(name) is None


@pytest.mark.parametrize("name", BINARY)
def test_what_is_unknown_stays_unknown_but_for_zero_times_it(name: str) -> None:
    found = BINARY[name].numpy(np.array([0.0, 2.0]), np.array([np.nan, np.nan]))
    assert np.isnan(found).tolist() == [name != "multiply", True]


def test_an_operator_without_code_is_refused() -> None:
    with pytest.raises(ValueError, match="'power' has no code; known: add"):
        Binary("power", np.power, True)
