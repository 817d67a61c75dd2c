"""Feature-map index types and the reference of what they hold at run time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core import (
    FEATURE_MAP_FORMATS,
    CompactedPixels,
    FeatureMapFormat,
    FeatureMapIndex,
    PixelBitmap,
)
from sparseflow.errors import FormatError
from tests.core.formulas import feature_map_index_share

FORMATS_UNDER_TEST = [*(cls() for cls in FEATURE_MAP_FORMATS.values()), PixelBitmap(4), PixelBitmap(7)]


@pytest.mark.parametrize("fmt", FORMATS_UNDER_TEST, ids=str)
@given(
    shape=st.tuples(*[st.integers(1, n) for n in (2, 19, 5, 5)]),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_maps_come_back(fmt: FeatureMapFormat, shape: tuple[int, ...], density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feature_map = (rng.integers(1, 9, shape) * (rng.random(shape) < density)).astype(np.float32)
    index = FeatureMapIndex(fmt, shape, "float32", shape[1])
    arrays = index.encode(feature_map)
    np.testing.assert_array_equal(index.decode(arrays), feature_map)
    assert index.nbytes == sum(array.nbytes for array in arrays.values())
    assert index.value_bytes == arrays["data"].nbytes


def test_a_bitmap_is_one_bit_of_every_value_or_block() -> None:
    for block in (1, 8):
        index = FeatureMapIndex(PixelBitmap(block), (1, 64, 7, 7), "float32", 64)
        assert index.index_bytes / index.value_bytes == feature_map_index_share(32, block)


def test_bit_zero_is_channel_zero() -> None:
    feature_map = np.zeros((1, 10, 1, 1), np.float32)
    feature_map[0, [1, 9]] = 1
    bits = FeatureMapIndex(PixelBitmap(), (1, 10, 1, 1), "float32", 10).encode(feature_map)["bits"]
    assert bits.reshape(-1).tolist() == [2, 2]


def test_a_full_pixel_is_refused_by_a_small_capacity() -> None:
    index = FeatureMapIndex(CompactedPixels(), (1, 4, 2, 2), "float32", 2)
    feature_map = np.zeros((1, 4, 2, 2), np.float32)
    feature_map[0, :2] = 1
    np.testing.assert_array_equal(index.decode(index.encode(feature_map)), feature_map)
    feature_map[0, 2, 1, 1] = 1
    with pytest.raises(FormatError, match="3 non-zeros; its capacity is 2"):
        index.encode(feature_map)


@pytest.mark.parametrize("fmt", FORMATS_UNDER_TEST, ids=str)
def test_types_and_shapes_are_checked(fmt: FeatureMapFormat) -> None:
    index = FeatureMapIndex(fmt, (1, 8, 3, 3), "float32", 8)
    with pytest.raises(FormatError, match="the index is for"):
        index.encode(np.zeros((1, 8, 3, 3)))
    with pytest.raises(FormatError, match="the index is for"):
        index.encode(np.zeros((1, 8, 3, 4), np.float32))
    arrays = index.encode(np.ones((1, 8, 3, 3), np.float32))
    with pytest.raises(FormatError, match="'data'"):
        index.decode({**arrays, "data": arrays["data"].astype(np.float64)})
    with pytest.raises(FormatError, match="capacity"):
        FeatureMapIndex(fmt, (1, 8, 3, 3), "float32", 9)
    with pytest.raises(FormatError, match="is needed"):
        FeatureMapIndex(fmt, (8, 3, 3), "float32", 8)


def test_damaged_counts_and_channels_are_refused() -> None:
    index = FeatureMapIndex(CompactedPixels(), (1, 5, 2, 2), "float32", 3)
    feature_map = np.zeros((1, 5, 2, 2), np.float32)
    feature_map[0, 3] = 1
    arrays = index.encode(feature_map)
    with pytest.raises(FormatError, match="counts"):
        index.decode({**arrays, "counts": arrays["counts"] + np.uint8(3)})
    with pytest.raises(FormatError, match="indices"):
        index.decode({**arrays, "indices": arrays["indices"] + np.uint8(3)})
