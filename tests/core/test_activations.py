"""The contract of activations: meaning equal to torch, and the stated facts true, for everything registered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparseflow.core.activations import ACTIVATIONS

T = 0.75
NAN, INF = float("nan"), float("inf")
AWKWARD = np.array(
    [NAN, INF, -INF, 0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, T, -3.0, 3.0, 6.0, -6.0, 90.0, -90.0]
)
PLAIN = np.linspace(-9.0, 9.0, 4001)


def meaning(name: str, x: Any) -> Any:
    """What torch computes."""
    f = torch.nn.functional
    special = {
        "none": lambda v: v,
        "fatrelu": lambda v: torch.where(v > T, v, 0.0),
        "leaky_relu": lambda v: f.leaky_relu(v, T),
    }
    return special.get(name, getattr(f, name, None))(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_meaning_is_torchs(name: str) -> None:
    ours = ACTIVATIONS[name].numpy
    np.testing.assert_allclose(ours(PLAIN, T), meaning(name, PLAIN), rtol=1e-12, atol=1e-14)
    awkward = AWKWARD[~np.isinf(AWKWARD)] if name == "gelu" else AWKWARD  # where torch's own may give NaN
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(ours(awkward, T), meaning(name, awkward), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_facts_are_true(name: str) -> None:
    activation, y = ACTIVATIONS[name], ACTIVATIONS[name].numpy(PLAIN, T)
    assert activation.monotone == bool((np.diff(y) >= 0.0).all())
    assert activation.non_negative == bool((y >= 0.0).all())
    assert activation.keeps_zero() == (meaning(name, np.zeros(1))[0] == 0.0)
    assert activation.has_parameter == (not np.array_equal(y, activation.numpy(PLAIN, 0.5)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_torch_has_the_operators_that_are_named(name: str) -> None:
    assert ACTIVATIONS[name].name == name
    assert all(hasattr(torch.ops.aten, operator) for operator in ACTIVATIONS[name].torch)
