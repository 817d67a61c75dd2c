"""Structure found from zeros alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core import (
    BlockPunched,
    Channel,
    Connectivity,
    Filter,
    Pattern,
    PatternConnectivity,
    Product,
    Unstructured,
    best_rows,
    detect,
    parse_structure,
)
from sparseflow.core.detect import TOLERANCE
from sparseflow.core.formats import TapList
from sparseflow.errors import StructureError
from tests.core.formulas import tap_list_bits

CONV, POINT, LINEAR = (48, 64, 3, 3), (64, 96, 1, 1), (96, 128)
FOUND = [
    ("unstructured", 0.1, CONV),
    ("unstructured", 0.5, POINT),
    ("unstructured", 0.3, LINEAR),
    ("filter", 0.5, CONV),
    ("filter", 0.9, POINT),
    ("filter", 0.25, LINEAR),
    ("channel", 0.5, CONV),
    ("channel", 0.25, LINEAR),
    ("column", 0.3, CONV),
    ("connectivity", 0.3, CONV),
    ("block:2x1", 0.1, CONV),
    ("block:4x1", 0.1, CONV),
    ("block:4x1", 0.5, POINT),
    ("block:8x1", 0.2, LINEAR),
    ("block:16x1", 0.2, LINEAR),
    ("block:1x4", 0.2, CONV),
    ("block:1x16", 0.2, LINEAR),
    ("block:4x4", 0.2, LINEAR),
    ("block:16x16", 0.5, LINEAR),
    ("block-punched:8x4", 0.3, CONV),
    ("block-punched:4x4", 0.5, CONV),
    ("nm:2:4", 0.5, CONV),
    ("nm:2:4", 0.5, LINEAR),
    ("nm:4:8", 0.5, POINT),
    ("nm:1:4", 0.25, CONV),
    ("nm:2:4:0", 0.5, LINEAR),
    ("nm:2:4+filter", 0.25, CONV),
    ("nm:1:4:0+channel", 0.125, LINEAR),
]


def pruned(text: str, density: float, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return weight * parse_structure(text).mask(np.abs(weight), density).keep


@pytest.mark.parametrize(("text", "density", "shape"), FOUND)
def test_the_structure_that_made_the_zeros_is_found(
    text: str, density: float, shape: tuple[int, ...]
) -> None:
    weight = pruned(text, density, shape)
    found = detect(weight)
    assert str(found.structure) == text
    assert found.density == np.count_nonzero(weight) / weight.size
    assert found.density <= found.cover_density <= TOLERANCE * found.density
    assert text in found.reason
    assert "\n" not in found.reason


@pytest.mark.parametrize(
    ("text", "density", "kind"),
    [
        ("pattern:4", 4 / 9, Pattern),
        ("pattern:3", 1 / 3, Pattern),
        ("pattern:4+connectivity", 0.123, PatternConnectivity),
        ("pattern:5:4+connectivity", 0.3, PatternConnectivity),
        ("pattern:4+filter", 0.2, Product),
    ],
)
def test_patterns_are_found_with_their_library(text: str, density: float, kind: type) -> None:
    weight = pruned(text, density, CONV)
    found = detect(weight)
    assert isinstance(found.structure, kind)
    assert found.structure.brief.split("+")[0] == ":".join(text.split("+")[0].split(":")[:2])
    assert found.structure.admits(weight != 0)
    assert found.cover_density == found.density


@pytest.mark.parametrize(
    ("text", "structure"),
    [("dense-blocks:16x32:column", "block:16x1"), ("dense-blocks:16x32:filter", "block:1x32")],
)
def test_rows_and_columns_of_dense_blocks_are_the_blocks_that_they_are(text: str, structure: str) -> None:
    assert str(detect(pruned(text, 0.25, LINEAR)).structure) == structure


@pytest.mark.parametrize(("text", "density", "shape"), FOUND)
def test_accidental_zeros_do_not_hide_it(text: str, density: float, shape: tuple[int, ...]) -> None:
    weight = pruned(text, density, shape)
    nonzero = np.flatnonzero(weight)
    weight.flat[np.random.default_rng(1).choice(nonzero, len(nonzero) // 500, replace=False)] = 0
    found = detect(weight)
    assert str(found.structure) == text
    assert found.cover_density > found.density or text == "unstructured"


def test_many_zeros_inside_a_structure_make_it_another() -> None:
    weight = pruned("filter", 0.5, CONV)
    weight[np.random.default_rng(2).random(CONV) < 0.2] = 0
    assert detect(weight).structure == Unstructured()
    assert detect(weight).dead_filters == 24


def test_dense_weights_have_no_structure() -> None:
    weight = np.ones(CONV, np.float32)
    assert detect(weight).structure is None
    assert detect(weight).density == 1.0
    weight.flat[::100] = 0
    found = detect(weight)
    assert found.structure is None
    assert found.density == pytest.approx(0.99, abs=1e-3)
    assert "too few" in found.reason


def test_a_few_dead_filters_are_found_all_the_same() -> None:
    weight = np.ones(CONV, np.float32)
    weight[[3, 17]] = 0
    found = detect(weight)
    assert found.structure == Filter()
    assert (found.dead_filters, found.dead_channels) == (2, 0)
    weight = np.ones(CONV, np.float32)
    weight[:, 5] = 0
    assert detect(weight).structure == Channel()
    assert detect(weight).dead_channels == 1


def test_all_zero_weights_are_dead_filters() -> None:
    found = detect(np.zeros(CONV, np.float32))
    assert found.structure == Filter()
    assert found.density == found.cover_density == 0
    assert found.dead_filters == CONV[0]


@given(
    shape=st.sampled_from(
        [(1, 1), (1, 1, 1, 1), (7, 11), (3, 1, 3, 3), (5, 7, 3, 3), (1, 13, 1, 1), (2, 2, 5)]
    ),
    density=st.floats(0, 1),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_every_explanation_covers_every_non_zero(shape: tuple[int, ...], density: float, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal(shape)
    weight[np.random.default_rng(seed + 1).random(shape) >= density] = 0
    found = detect(weight)
    keep = weight != 0
    for explanation in found.explanations:
        covered = explanation.structure.cover(keep)
        assert covered is not None
        assert (covered | ~keep).all()
        assert covered.mean() == pytest.approx(explanation.cover_density)
        assert covered.sum() <= TOLERANCE * keep.sum()
    bits = [e.description_bits for e in found.explanations]
    assert bits == sorted(bits)


def test_kinds_of_weights() -> None:
    with pytest.raises(StructureError, match="neither"):
        detect(np.zeros(5))
    assert detect(pruned("block:4x1", 0.2, LINEAR).astype(np.float16)).structure == parse_structure(
        "block:4x1"
    )
    assert detect((pruned("block:4x1", 0.2, LINEAR) != 0).astype(np.int8)).structure == parse_structure(
        "block:4x1"
    )
    assert not isinstance(detect(pruned("block:4x4", 0.2, POINT)).structure, BlockPunched)
    assert detect(pruned("connectivity", 0.3, (48, 64, 1, 5))).structure == Connectivity()


@pytest.mark.parametrize("shape", [(48, 64, 3, 3), (13, 7, 3, 3), (1, 5), (16, 32)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_best_rows_are_the_taps_that_a_tap_list_holds(shape: tuple[int, ...], density: float) -> None:
    weight = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    weight[np.random.default_rng(6).random(shape) >= density] = 0
    densities = best_rows(weight)
    assert list(densities) == [1, 2, 4, 8, 16]
    assert densities[1] == np.count_nonzero(weight) / weight.size
    for rows, found in densities.items():
        index = TapList(rows).encode(weight)
        lengths = [min(rows, shape[0] - first) for first in range(0, shape[0], rows)]
        taps = np.diff(index.arrays["indptr"])
        assert found == pytest.approx((taps * lengths).sum() / weight.size)
        assert 8 * index.nbytes == tap_list_bits(int(taps.sum()), rows, len(taps), 32)
