"""The closed storage formulas against the arrays' real bytes."""

from __future__ import annotations

import numpy as np
import pytest

from sparseflow.core import (
    BSR,
    CSR,
    ELL,
    FKW,
    FORMATS,
    Bitmap,
    NMFormat,
    RunLength,
    parse_structure,
    storage_table,
)
from sparseflow.errors import StructureError
from tests.core import formulas

SHAPE = (64, 96, 3, 3)


def pruned(text: str, density: float, shape: tuple[int, ...] = SHAPE, dtype: str = "float32") -> np.ndarray:
    scores = np.random.default_rng(0).integers(1, 100, shape)
    return (scores * parse_structure(text).mask(scores, density).keep).astype(dtype)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_formulas_of_unstructured_formats(density: float, dtype: str) -> None:
    weight = pruned("unstructured", density, dtype=dtype)
    n, v, d = weight.size, 8 * weight.itemsize, np.count_nonzero(weight) / weight.size
    longest = int(np.count_nonzero(weight.reshape(64, -1), axis=1).max())
    assert 8 * CSR().encode(weight).nbytes == pytest.approx(formulas.csr_bits(n, d, 64, v, 16))
    assert 8 * CSR("int32").encode(weight).nbytes == pytest.approx(formulas.csr_bits(n, d, 64, v, 32))
    assert 8 * Bitmap().encode(weight).nbytes == pytest.approx(formulas.bitmap_bits(n, d, v))
    assert 8 * ELL().encode(weight).nbytes == pytest.approx(formulas.ell_bits(64, longest, v, 16))


@pytest.mark.parametrize("gap_bits", [1, 2, 4, 8])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 1.0])
def test_run_length_formula_is_the_mean(gap_bits: int, density: float) -> None:
    weight = pruned("unstructured", density, (128, 256, 3, 3))
    d = np.count_nonzero(weight) / weight.size
    real = 8 * RunLength(gap_bits).encode(weight).nbytes
    assert real == pytest.approx(formulas.run_length_bits(weight.size, d, 32, gap_bits), rel=0.02)


def test_run_length_of_zeros_is_empty() -> None:
    assert RunLength().encode(np.zeros((5, 5))).nbytes == 0
    assert formulas.run_length_bits(25, 0.0, 64, 4) == 0


@pytest.mark.parametrize(("out", "in_"), [(4, 1), (1, 4), (4, 4), (8, 2)])
def test_bsr_formula(out: int, in_: int) -> None:
    weight = pruned(f"block:{out}x{in_}", 0.1)
    d = np.count_nonzero(weight) / weight.size
    real = 8 * BSR(out, in_).encode(weight).nbytes
    i = 16 if 9 * 96 // in_ > 256 else 8
    assert real == pytest.approx(formulas.bsr_bits(weight.size, d, 64, (out, in_), 32, i))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 6)])
def test_nm_formula(n: int, m: int) -> None:
    weight = pruned(f"nm:{n}:{m}", n / m)
    assert 8 * NMFormat(n, m).encode(weight).nbytes == formulas.nm_bits(weight.size, n, m, 32)


def test_two_of_four_in_fp16_takes_nine_sixteenths() -> None:
    weight = pruned("nm:2:4", 0.5, dtype="float16")
    assert NMFormat(2, 4).encode(weight).nbytes / weight.nbytes == 9 / 16


def test_fkw_formula() -> None:
    weight = pruned("pattern:4+connectivity", 0.123)
    index = FKW().encode(weight)
    kernels, patterns = len(index.arrays["indices"]), len(index.arrays["patterns"])
    assert kernels == round(0.123 * 9 / 4 * 64 * 96)
    assert 8 * index.nbytes == formulas.fkw_bits(kernels, 64, patterns, 4, 32, (8, 8, 32, 8))


def test_the_index_outweighs_the_values_of_a_byte_above_a_fifth() -> None:
    for v, limit in ((32, 0.5), (8, 0.2)):
        n, rows = 10**6, 0
        assert formulas.csr_bits(n, limit, rows, v, 32, 0) == pytest.approx(n * v)


def test_survivors_are_their_weights_and_a_list() -> None:
    weight = pruned("filter", 0.25)
    alive = weight[(weight != 0).any(axis=(1, 2, 3))]
    listed = 8 * (alive.nbytes + len(alive) * 4)
    assert formulas.survivors_bits(weight.size, 64, len(alive), 32, 32) == listed


@pytest.mark.parametrize(
    ("text", "density", "best"),
    [
        ("nm:2:4", 0.5, "nm(2:4)"),
        ("block:16x1", 0.1, "bsr(16x1)"),
        ("pattern:4+connectivity", 0.123, "fkw(entries=4)"),
    ],
)
def test_the_table_puts_the_format_of_the_structure_first(text: str, density: float, best: str) -> None:
    weight = pruned(text, density)
    table = storage_table(weight)
    assert table[0].format == "dense"
    assert table[0].nbytes == weight.nbytes
    assert table[1].format == best
    assert len({row.format for row in table}) == len(table)
    assert {row.format.partition("(")[0] for row in table[1:]} == set(FORMATS)
    stored = [row for row in table[1:] if not row.reason]
    assert [row.nbytes for row in stored] == sorted(row.nbytes for row in stored)
    for row in stored:
        assert row.relative == pytest.approx(row.nbytes / weight.nbytes)
    for row in table[1 + len(stored) :]:
        assert row.reason
        assert "\n" not in row.reason


def test_a_table_of_named_formats() -> None:
    weight = pruned("unstructured", 0.1)
    table = storage_table(weight, (CSR(), NMFormat(1, 5)))
    assert [row.format for row in table] == ["dense", "csr", "nm(1:5)"]
    assert "does not divide" in table[2].reason
    with pytest.raises(StructureError):
        storage_table(np.zeros(3))
