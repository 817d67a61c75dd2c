"""Contract of every registered index format."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core import (
    BSR,
    CSR,
    FKW,
    FORMATS,
    NM,
    IndexFormat,
    KernelIndex,
    NMFormat,
    PatternConnectivity,
    RunLength,
    TapList,
    Unstructured,
)
from sparseflow.errors import FormatError

MORE = [
    TapList(3),
    TapList(2, 3),
    TapList(16, 1),
    TapList(5, 100),
    RunLength(3),
    BSR(3, 2),
    BSR(64, 64),
    NMFormat(3, 5),
]
FORMATS_UNDER_TEST = [
    pytest.param(f, id=f.label) for f in [*(f for cls in FORMATS.values() for f in cls.examples()), *MORE]
]
SHAPES = [
    (1, 1),
    (7, 13),
    (16, 24),
    (1, 1, 1, 1),
    (5, 7, 3, 3),
    (8, 16, 3, 3),
    (20, 40, 1, 1),
    (6, 4, 1, 5),
    (3, 5, 2),
]
FILLS = ["random", "zero", "dense", "one", "empty rows"]


def make_weight(shape: tuple[int, ...], fill: str, dtype: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 100, shape).astype(dtype)
    if fill == "zero":
        values[...] = 0
    elif fill == "one":
        values[...] = 0
        values.flat[rng.integers(values.size)] = 1
    elif fill != "dense":
        values[rng.random(shape) > rng.choice([0.02, 0.1, 0.5, 0.9])] = 0
        if fill == "empty rows":
            values[rng.random(shape[0]) < 0.5] = 0
    return values


weights = st.builds(
    make_weight,
    st.sampled_from(SHAPES),
    st.sampled_from(FILLS),
    st.sampled_from(["float32", "float16", "int8", "float64"]),
    st.integers(0, 2**32 - 1),
)


def fitted(fmt: IndexFormat, weight: np.ndarray) -> np.ndarray:
    """``weight``, pruned to what the format can hold where it holds only some zeros."""
    if isinstance(fmt, NMFormat):
        structure = NM(fmt.n, fmt.m, fmt.axis)
        size = -(-weight.shape[fmt.axis] // fmt.m) * fmt.m
        weight = np.take(weight, np.arange(size) % weight.shape[fmt.axis], axis=fmt.axis)
        return weight * structure.mask(np.abs(weight.astype(float)), fmt.n / fmt.m).keep
    if isinstance(fmt, FKW):
        weight = np.resize(weight, (*weight.shape[:2], 3, 3))
        density = fmt.entries / 9 * 0.6
        return weight * PatternConnectivity(fmt.entries).mask(np.abs(weight.astype(float)), density).keep
    return weight


@pytest.mark.parametrize("fmt", FORMATS_UNDER_TEST)
@given(weight=weights)
@settings(max_examples=30, deadline=None)
def test_decode_gives_back_what_was_encoded(fmt: IndexFormat, weight: np.ndarray) -> None:
    weight = fitted(fmt, weight)
    index = fmt.encode(weight)
    decoded = index.decode()
    assert decoded.dtype == weight.dtype
    assert decoded.shape == weight.shape
    np.testing.assert_array_equal(decoded, weight)
    np.testing.assert_array_equal(fmt.decode(index), weight)


@pytest.mark.parametrize("fmt", FORMATS_UNDER_TEST)
@given(weight=weights)
@settings(max_examples=15, deadline=None)
def test_bytes_are_those_of_the_arrays_and_types_are_as_specified(
    fmt: IndexFormat, weight: np.ndarray
) -> None:
    weight = fitted(fmt, weight)
    index = fmt.encode(weight)
    specs = fmt.array_specs(weight.shape, weight.dtype)
    assert list(index.arrays) == [spec.name for spec in specs]
    assert index.nbytes == sum(array.nbytes for array in index.arrays.values())
    values = [spec for spec in specs if spec.role == "value"]
    assert [spec.name for spec in values] == ["data"]
    assert index.value_bytes == index.arrays["data"].nbytes
    assert index.index_bytes == index.nbytes - index.value_bytes
    assert index.value_bytes >= np.count_nonzero(weight) * weight.dtype.itemsize
    for spec in specs:
        array = index.arrays[spec.name]
        assert str(array.dtype) == spec.dtype
        assert array.ndim == len(spec.shape)
        assert not array.flags.writeable


@pytest.mark.parametrize("fmt", FORMATS_UNDER_TEST)
def test_arrays_that_differ_from_the_specification_are_refused(fmt: IndexFormat) -> None:
    weight = fitted(fmt, make_weight((16, 24, 3, 3), "random", "float32", 1))
    index = fmt.encode(weight)

    def refused(arrays: dict[str, np.ndarray], match: str) -> None:
        with pytest.raises(FormatError, match=match) as error:
            KernelIndex(fmt, weight.shape, weight.dtype, arrays)
        assert "\n" not in str(error.value)

    whole = dict(index.arrays)
    refused({}, "give exactly these")
    refused({**whole, "extra": whole["data"]}, "give exactly these")
    for name, array in whole.items():
        refused({**whole, name: array.astype(np.complex64)}, f"array '{name}' is complex64")
        refused({**whole, name: array[None]}, f"array '{name}' has shape")
        if array.size:
            refused({**whole, name: array[: len(array) // 2]}, f"{fmt.name}.*array")


@pytest.mark.parametrize("fmt", FORMATS_UNDER_TEST)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_contents_changed_anywhere_are_refused_or_decode_without_harm(
    fmt: IndexFormat, data: st.DataObject
) -> None:
    """An index from a damaged file raises `FormatError` or still describes a weight of its shape."""
    weight = fitted(fmt, make_weight((8, 16, 3, 3), "random", "float32", data.draw(st.integers(0, 9))))
    arrays = {name: array.copy() for name, array in fmt.encode(weight).arrays.items()}
    indices = [s.name for s in fmt.array_specs(weight.shape, weight.dtype) if s.role == "index"]
    name = data.draw(st.sampled_from(indices))
    if not arrays[name].size:
        return
    place = data.draw(st.integers(0, arrays[name].size - 1))
    info = np.iinfo(arrays[name].dtype)
    arrays[name].flat[place] = data.draw(st.integers(int(info.min), int(info.max)))
    with contextlib.suppress(FormatError):
        index = KernelIndex(fmt, weight.shape, weight.dtype, arrays)
        assert index.decode().shape == weight.shape


@pytest.mark.parametrize("fmt", FORMATS_UNDER_TEST)
@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (1, 1, 1, 1, 1, 1)])
def test_what_is_no_weight_is_refused(fmt: IndexFormat, shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match="neither"):
        fmt.check(shape)
    with pytest.raises(FormatError):
        fmt.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("fmt", FORMATS_UNDER_TEST)
def test_an_index_of_another_format_is_not_decoded(fmt: IndexFormat) -> None:
    other = CSR("int32") if fmt != CSR("int32") else CSR()
    with pytest.raises(FormatError, match="cannot decode"):
        fmt.decode(other.encode(np.eye(4, dtype=np.float32)))


@pytest.mark.parametrize(
    ("fmt", "weight", "message"),
    [
        (NMFormat(2, 4), np.ones((4, 4)), "4 non-zeros; at most 2"),
        (NMFormat(2, 4), np.zeros((4, 6)), "4 does not divide"),
        (FKW(4), np.ones((2, 2, 3, 3)), "more than 4"),
        (FKW(4), np.zeros((2, 2, 1, 1)), "no 3x3"),
    ],
)
def test_zeros_that_a_format_cannot_hold_are_named(
    fmt: IndexFormat, weight: np.ndarray, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        fmt.encode(weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TapList(0), "positive"),
        (lambda: TapList(1, 0), "positive"),
        (lambda: BSR(0, 1), "positive"),
        (lambda: RunLength(0), "1 to 16"),
        (lambda: RunLength(17), "1 to 16"),
        (lambda: NMFormat(5, 4), "1 <= N <= M"),
        (lambda: FKW(9), "1 to 8"),
        (lambda: CSR("int64"), "smallest or int32"),  # type: ignore[arg-type]
    ],
)
def test_parameters_that_cannot_be_are_refused_when_made(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FormatError, match=message):
        make()


def slow_taps(weight: np.ndarray, rows: int, chunk: int) -> tuple[list[int], list[int], list[list[float]]]:
    filters, channels = weight.shape[:2]
    taps = weight.size // filters // channels
    matrix = weight.reshape(filters, -1)
    indptr, indices, data = [0], [], []
    for first_channel in range(0, channels, chunk):
        for first in range(0, filters, rows):
            block = matrix[first : first + rows]
            for column in range(first_channel * taps, min(first_channel + chunk, channels) * taps):
                if block[:, column].any():
                    indices.append(column)
                    data.append([*block[:, column], *[0] * (rows - len(block))])
            indptr.append(len(indices))
    return indptr, indices, data


@given(weight=weights, rows=st.integers(1, 9), chunk=st.one_of(st.none(), st.integers(1, 30)))
@settings(max_examples=60, deadline=None)
def test_taps_are_ordered_by_chunk_block_and_column(weight: np.ndarray, rows: int, chunk: int | None) -> None:
    arrays = TapList(rows, chunk).encode(weight).arrays
    indptr, indices, data = slow_taps(weight, rows, chunk or weight.shape[1])
    assert arrays["indptr"].tolist() == indptr
    assert arrays["indices"].tolist() == indices
    assert arrays["data"].tolist() == data
    assert arrays["data"].shape == (len(indices), rows)
    assert arrays["indptr"].dtype == arrays["indices"].dtype == np.int32


def test_index_types_are_the_smallest_that_fit() -> None:
    for columns, dtype in [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]:
        weight = np.zeros((2, columns), np.float32)
        weight[1, -1] = 1
        index = CSR().encode(weight)
        assert str(index.arrays["indices"].dtype) == dtype
        assert index.arrays["indices"][0] == columns - 1


def test_fkw_groups_kernels_by_pattern_and_filters_by_length() -> None:
    scores = np.random.default_rng(3).random((32, 24, 3, 3))
    weight = (scores * PatternConnectivity().mask(scores, 0.15).keep).astype(np.float32)
    arrays = FKW().encode(weight).arrays
    lengths = np.diff(arrays["indptr"])
    assert (np.diff(lengths) >= 0).all()
    kept = (weight != 0).any(axis=(2, 3)).sum(axis=1)
    np.testing.assert_array_equal(kept[arrays["reorder"]], lengths)
    for place, original in enumerate(arrays["reorder"]):
        for pattern, positions in enumerate(arrays["patterns"]):
            start, end = arrays["indptr"][place] + arrays["stride"][place, pattern : pattern + 2].astype(int)
            for channel in arrays["indices"][start:end]:
                np.testing.assert_array_equal(np.flatnonzero(weight[original, channel]), positions)


def test_negative_zero_is_a_zero_and_nan_is_a_value() -> None:
    weight = np.array([[-0.0, np.nan, 1.0, 0.0]], np.float32)
    for cls in FORMATS.values():
        if cls.name in ("nm", "fkw"):
            continue
        decoded = cls.examples()[0].encode(weight).decode()
        np.testing.assert_array_equal(decoded, weight)
        assert not np.signbit(decoded[0, 0])


def test_an_index_keeps_its_arrays_when_the_weight_changes() -> None:
    weight = np.eye(5, dtype=np.float32)
    index = TapList(2).encode(weight)
    weight[:] = 7
    np.testing.assert_array_equal(index.decode(), np.eye(5))
    dense = Unstructured().mask(np.ones((3, 3)), 1.0).keep * np.float32(2)
    np.testing.assert_array_equal(RunLength().encode(dense).decode(), dense)
