"""Element types: rounding, range and exact decoding, against NumPy and against exact arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sparseflow.core import BFLOAT16, ELEMENT_TYPES, FLOAT16, FLOAT32, ElementType
from sparseflow.errors import ElementTypeError, RegistryError

REFERENCE = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TYPES = pytest.mark.parametrize("element", ELEMENT_TYPES.values(), ids=str)
ANY = arrays(np.float32, array_shapes(min_dims=0, max_dims=3), elements=st.floats(width=32))


def test_every_type_has_a_reference() -> None:
    assert set(REFERENCE) == set(ELEMENT_TYPES)


@TYPES
@given(values=ANY)
def test_rounding_is_that_of_the_reference(element: ElementType, values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        wanted = values.astype(REFERENCE[element.name]).astype(np.float32)
    if (np.isfinite(values) & ~np.isfinite(wanted)).any():
        with pytest.raises(ElementTypeError, match="keep such weights in float32"):
            element.encode(values)
        return
    stored = element.encode(values)
    assert stored.dtype == element.dtype
    assert stored.nbytes == values.size * element.nbytes
    np.testing.assert_array_equal(element.decode(stored), wanted)
    np.testing.assert_array_equal(element.rounded(wanted), wanted)  # what it holds stays as it is


@TYPES
@given(values=arrays(np.float32, 20, elements=st.floats(-6e4, 6e4, width=32)))
def test_the_error_keeps_the_stated_step(element: ElementType, values: np.ndarray) -> None:
    error = np.abs(element.rounded(values).astype(np.float64) - values)
    assert (error <= np.maximum(element.step * np.abs(values.astype(np.float64)), element.tiny)).all()


@TYPES
def test_zeros_signs_infinities_and_nan_are_kept(element: ElementType) -> None:
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    kept = element.rounded(values)
    np.testing.assert_array_equal(kept, values)
    assert list(np.signbit(kept)[:4]) == [False, True, False, True]
    noisy = np.array([0x7F80FFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(element.rounded(noisy)).all()


@TYPES
def test_views_that_are_not_contiguous(element: ElementType) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    np.testing.assert_array_equal(element.rounded(values), values)


def test_what_lies_outside_of_the_range_is_refused_in_one_line() -> None:
    with pytest.raises(
        ElementTypeError, match=r"float16: found a value of magnitude 7e\+04; allowed: up to 6.55e\+04"
    ):
        FLOAT16.encode(np.array([1.0, -7e4], np.float32))
    assert FLOAT16.rounded(np.array([65519.0], np.float32)) == 65504.0
    with pytest.raises(ElementTypeError, match="bfloat16"):
        BFLOAT16.encode(np.array([3.4e38], np.float32))


def test_another_array_is_refused() -> None:
    with pytest.raises(ElementTypeError, match="bfloat16: found an array of float32; allowed: uint16"):
        BFLOAT16.decode(np.zeros(2, np.float32))
    with pytest.raises(RegistryError, match="known: bfloat16, float16, float32"):
        ELEMENT_TYPES["fp8"]


def test_float32_is_itself() -> None:
    values = np.array([1.1, -2.2e-45], np.float32)
    np.testing.assert_array_equal(FLOAT32.encode(values), values)


@TYPES
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_neighbours_share_slots_of_32_bits(element: ElementType, axis: int) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    slots = element.joined(values, axis)
    assert slots.dtype == element.slot
    assert slots.itemsize == 4
    assert slots.shape[axis] == -(-values.shape[axis] // element.per_slot)
    found = element.parted(slots, axis, values.shape[axis])
    np.testing.assert_array_equal(found, element.rounded(values))


@pytest.mark.parametrize("element", [FLOAT16, BFLOAT16], ids=str)
def test_a_slot_of_zeros_is_zero_whatever_their_signs(element: ElementType) -> None:
    values = np.array([[0.0, -0.0, -1e-45, 1e-45], [-0.0, -0.0, 1.0, -0.0]], np.float32)
    np.testing.assert_array_equal(element.joined(values, 1) != 0, [[False, False], [False, True]])
