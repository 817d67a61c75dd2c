"""Contract of every registered structure, against loops written out over the weights."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core import (
    NM,
    STRUCTURES,
    Block,
    BlockPunched,
    Connectivity,
    DenseBlocks,
    Filter,
    Mask,
    Pattern,
    PatternConnectivity,
    Product,
    Structure,
    Unstructured,
    natural_patterns,
    parse_structure,
)
from sparseflow.core.structures import GroupStructure, ProductStructure, UnitStructure
from sparseflow.errors import StructureError

MORE = [
    "nm:1:4",
    "nm:3:5:0",
    "nm:1:1",
    "block:3x2",
    "block:1x8",
    "block:64x64",
    "block-punched:2x3",
    "pattern:2:3",
    "pattern:4:=0134/1345/4578",
    "pattern:3+connectivity",
    "pattern:4+filter",
    "pattern:4/4x4",
    "pattern:2:3/1x4",
    "pattern:4/2x3+connectivity",
    "connectivity:4x3",
    "nm:2:4:0+channel",
    "nm:1:2+block:3x4",
    "dense-blocks:4x6:unstructured",
    "dense-blocks:3x8:nm:2:4",
    "dense-blocks:5x5:filter",
    "dense-blocks:8x4:nm:1:2+filter",
]
TEXTS = [cls.example for cls in STRUCTURES.values()] + MORE
STRUCTURES_UNDER_TEST = [pytest.param(parse_structure(text), id=text) for text in TEXTS]

sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 13, 16])
kernels = st.sampled_from([(), (1, 1), (3, 3), (1, 5), (2,)])


def fits(structure: Structure, shape: tuple[int, ...]) -> bool:
    try:
        structure.check(shape)
    except StructureError:
        return False
    return True


def roomy(structure: Structure) -> tuple[int, ...]:
    """A shape of many units."""
    return next(s for s in ((40, 24, 3, 3), (40, 24), (60, 24)) if fits(structure, s))


@st.composite
def shapes_for(draw: st.DrawFn, structure: Structure) -> tuple[int, ...]:
    """A shape that the structure accepts, awkward where it can be."""
    out, in_, kernel = draw(sizes), draw(sizes), draw(kernels)
    spatial = [kernel, (3, 3), ()]
    grown = [(out, in_), (4 * out, 4 * in_), (5 * out, 4 * in_), (24, 40)]
    for (o, i), k in itertools.product(grown, spatial):
        if fits(structure, (o, i, *k)):
            return (o, i, *k)
    raise AssertionError(f"no shape found for {structure}")


@st.composite
def cases(draw: st.DrawFn, structure: Structure) -> tuple[np.ndarray, float]:
    """Scores (small integers, so that there are ties and sums are exact) and a density."""
    shape = draw(shapes_for(structure))
    seed, top = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0, 1, 3, 1000]))
    scores = np.random.default_rng(seed).integers(0, top + 1, shape).astype(np.float32)
    share = draw(st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.1]), st.floats(0, 1)))
    fixed = structure.fixed_density
    return scores, fixed if fixed is not None else share * structure.max_density


def expected_count(density: float, units: int) -> int:
    return math.floor(round(density * units, 9) + 0.5)


def unit_slices(shape: tuple[int, ...], unit: tuple[int, ...]) -> list[tuple[slice, ...]]:
    axes = [[slice(a, min(a + u, n)) for a in range(0, n, u)] for n, u in zip(shape, unit, strict=True)]
    return list(itertools.product(*axes))


def slow_units(structure: UnitStructure, scores: np.ndarray, density: float) -> np.ndarray:
    units = unit_slices(scores.shape, structure.unit(scores.shape))
    means = [float(scores[u].astype(np.float64).sum()) / scores[u].size for u in units]
    order = sorted(range(len(units)), key=lambda i: (-means[i], i))
    keep = np.zeros(scores.shape, bool)
    for i in order[: expected_count(density, len(units))]:
        keep[units[i]] = True
    return keep


def slow_nm(structure: NM, scores: np.ndarray) -> np.ndarray:
    keep = np.zeros(scores.shape, bool)
    axis = structure.axis
    for index in itertools.product(*(range(n) for a, n in enumerate(scores.shape) if a != axis)):
        for start in range(0, scores.shape[axis], structure.m):
            places = [(*index[:axis], start + j, *index[axis:]) for j in range(structure.m)]
            best = sorted(range(structure.m), key=lambda j: (-scores[places[j]], j))[: structure.n]
            for j in best:
                keep[places[j]] = True
    return keep


def slow_pattern(structure: Pattern, scores: np.ndarray) -> np.ndarray:
    groups = unit_slices(scores.shape, (*structure.shared, 3, 3))
    flat = np.array([scores[group].sum(axis=(0, 1)).reshape(9) for group in groups])
    library = structure.library
    if library is None:
        votes: Counter[tuple[int, ...]] = Counter()
        for kernel in flat:
            if kernel.any():
                rest = sorted((p for p in range(9) if p != 4), key=lambda p: (-kernel[p], p))
                votes[tuple(sorted([4, *rest[: structure.entries - 1]]))] += 1
        candidates = natural_patterns(structure.entries)
        ranked = sorted(candidates, key=lambda p: (-votes[p], candidates.index(p)))
        library = tuple(p for p in ranked if votes[p] or not votes)[: structure.patterns]
    keep = np.zeros(flat.shape, bool)
    for row, kernel in zip(keep, flat, strict=True):
        best = min(range(len(library)), key=lambda i: (-sum(kernel[p] for p in library[i]), i))
        row[list(library[best])] = True
    spread = np.zeros(scores.shape, bool)
    for group, row in zip(groups, keep, strict=True):
        spread[group] = row.reshape(3, 3)
    return spread


def slow_mask(structure: Structure, scores: np.ndarray, density: float) -> np.ndarray:
    if isinstance(structure, UnitStructure):
        return slow_units(structure, scores, density)
    if isinstance(structure, NM):
        return slow_nm(structure, scores)
    if isinstance(structure, Pattern):
        return slow_pattern(structure, scores)
    if isinstance(structure, ProductStructure):
        inner, outer = structure.parts
        keep = slow_mask(inner, scores, inner.max_density)
        return keep & slow_mask(outer, np.where(keep, scores, 0), density / inner.max_density)
    if isinstance(structure, DenseBlocks):
        keep = np.zeros(scores.shape, bool)
        for block in unit_slices(scores.shape, (structure.rows, structure.cols)):
            keep[block] = slow_mask(structure.inner, scores[block], density)
        return keep
    raise AssertionError(f"no slow mask is written for {structure}")


@pytest.mark.parametrize("structure", STRUCTURES_UNDER_TEST)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_mask_keeps_the_best_units_exactly_and_ties_go_to_the_lower_index(
    structure: Structure, data: st.DataObject
) -> None:
    scores, density = data.draw(cases(structure))
    mask = structure.mask(scores, density)
    np.testing.assert_array_equal(mask.keep, slow_mask(structure, scores, density))
    assert mask.structure == structure
    assert structure.admits(mask.keep)
    assert mask.sparsity == pytest.approx(1 - mask.keep.mean())


@pytest.mark.parametrize("structure", STRUCTURES_UNDER_TEST)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_cover_is_of_the_structure_contains_the_mask_and_is_a_fixed_point(
    structure: Structure, data: st.DataObject
) -> None:
    scores, density = data.draw(cases(structure))
    keep = structure.mask(scores, density).keep.copy()
    holes = np.random.default_rng(data.draw(st.integers(0, 99))).random(keep.shape) < 0.1
    covered = structure.cover(keep & ~holes)
    if covered is None:  # only a chosen library may become too small when its patterns lose positions
        assert "pattern" in str(structure)
        return
    assert not (keep & ~holes & ~covered).any()
    assert structure.admits(covered)
    assert structure.cover(keep) is not None
    np.testing.assert_array_equal(structure.cover(keep), keep)


@pytest.mark.parametrize("structure", STRUCTURES_UNDER_TEST)
def test_text_reads_back(structure: Structure) -> None:
    assert parse_structure(str(structure)) == structure
    assert parse_structure(f"  {structure} ") == structure
    assert "=" not in structure.brief


@pytest.mark.parametrize("structure", STRUCTURES_UNDER_TEST)
@pytest.mark.parametrize("density", [-0.1, 1.1, math.nan, math.inf])
def test_density_outside_the_unit_interval_is_refused(structure: Structure, density: float) -> None:
    with pytest.raises(StructureError, match=r"outside \[0, 1\]") as error:
        structure.mask(np.ones(roomy(structure)), density)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("structure", STRUCTURES_UNDER_TEST)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_scores_that_are_no_scores_are_refused(structure: Structure, bad: float) -> None:
    scores = np.ones(roomy(structure), np.float32)
    scores.flat[-1] = bad
    with pytest.raises(StructureError, match="must be finite and >= 0"):
        structure.mask(scores, structure.max_density)


@pytest.mark.parametrize("structure", STRUCTURES_UNDER_TEST)
@pytest.mark.parametrize("shape", [(), (5,), (4, 0), (1, 2, 3, 4, 5, 6)])
def test_what_is_no_weight_is_refused(structure: Structure, shape: tuple[int, ...]) -> None:
    with pytest.raises(StructureError, match="neither"):
        structure.check(shape)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64])
def test_scores_of_any_type_are_taken(dtype: type) -> None:
    scores = np.arange(36).reshape(6, 6).astype(dtype)
    assert Unstructured().mask(scores, 0.25).keep.sum() == 9
    np.testing.assert_array_equal(np.flatnonzero(Unstructured().mask(scores, 0.25).keep), np.arange(27, 36))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NM(3, 2), "N must not exceed M"),
        (lambda: NM(1, 4, 2), "axis is 0"),
        (lambda: NM(0, 4), "positive integer"),
        (lambda: Block(0, 1), "positive integer"),
        (lambda: BlockPunched(4, True), "positive integer"),
        (lambda: Pattern(9), "1 to 8"),
        (lambda: Pattern(4, ((0, 1, 3),)), "ascending positions"),
        (lambda: Pattern(2, ((4, 1),)), "ascending positions"),
        (lambda: Pattern(2, ()), "empty"),
        (lambda: PatternConnectivity(2, ((1, 4), (1, 4))), "repeats"),
        (lambda: Product(Filter(), NM(2, 4)), "fixed density"),
        (lambda: Product(Pattern(), Connectivity()), "PatternConnectivity"),
        (lambda: DenseBlocks(4, 4, DenseBlocks(2, 2, Filter())), "other than dense-blocks"),
        (lambda: DenseBlocks(4, 0, Filter()), "positive integer"),
    ],
)
def test_parameters_that_cannot_be_are_refused_when_made(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(StructureError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("nm:2:4", (8, 6, 3, 3), "4 does not divide"),
        ("nm:2:4:0", (6, 8), "axis 0"),
        ("pattern:4", (8, 8, 1, 1), "no 3x3 kernels"),
        ("connectivity", (8, 8), "no kernels"),
        ("block-punched:4x4", (8, 8, 1, 1), "use block:4x4"),
        ("dense-blocks:4x4:filter", (8, 8, 3, 3), "not a linear layer"),
        ("dense-blocks:4x6:nm:2:4", (8, 12), "4 does not divide"),
        ("nm:2:4+channel", (8, 8), "does not hold"),
        ("pattern:4+column", (8, 8, 3, 3), "does not hold"),
    ],
)
def test_a_structure_that_does_not_fit_says_why(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(StructureError, match=message) as error:
        parse_structure(text).mask(np.ones(shape), 0.1)
    assert str(shape) in str(error.value) or "of shape (4, 6)" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fixed_density_is_the_only_one() -> None:
    with pytest.raises(StructureError, match=r"always keeps 0\.5"):
        NM(2, 4).mask(np.ones((4, 4)), 0.3)
    with pytest.raises(StructureError, match=r"at most 0\.4444"):
        PatternConnectivity().mask(np.ones((4, 4, 3, 3)), 0.5)
    assert Pattern().mask(np.ones((4, 4, 3, 3)), 0.444).density == pytest.approx(4 / 9)


def test_halves_round_up() -> None:
    assert Unstructured().mask(np.ones((1, 5)), 0.5).keep.sum() == 3
    assert Unstructured().mask(np.ones((9, 5)), 0.1).keep.sum() == 5
    assert Unstructured().mask(np.ones((9, 5)), 0.0999).keep.sum() == 4


def test_a_ragged_block_competes_by_its_mean() -> None:
    scores = np.array([[1.0], [1.0], [1.0], [1.0], [3.0]])
    np.testing.assert_array_equal(Block(4, 1).mask(scores, 0.5).keep[:, 0], [False] * 4 + [True])


def test_the_56_natural_patterns_hold_the_centre() -> None:
    patterns = natural_patterns(4)
    assert len(patterns) == len(set(patterns)) == 56
    assert all(len(p) == 4 and 4 in p for p in patterns)


def test_pattern_connectivity_keeps_patterns_in_whole_kernels() -> None:
    scores = np.random.default_rng(0).random((16, 12, 3, 3))
    keep = PatternConnectivity().mask(scores, 0.123).keep.reshape(-1, 9)
    assert set(keep.sum(axis=1)) == {0, 4}
    assert (keep.sum(axis=1) == 4).sum() == expected_count(0.123 * 9 / 4, 16 * 12)
    assert len({tuple(row) for row in keep if row.any()}) <= 8


def test_grouped_and_unit_structures_are_apart() -> None:
    for cls in STRUCTURES.values():
        structure = parse_structure(cls.example)
        assert isinstance(structure, cls)
        assert not (isinstance(structure, GroupStructure) and isinstance(structure, UnitStructure))


def test_a_mask_holds_its_invariant() -> None:
    keep = np.zeros((4, 4), bool)
    keep[0, 0] = True
    mask = Mask(keep, Unstructured())
    keep[:] = True
    assert mask.density == 1 / 16
    assert mask.sparsity == 15 / 16
    assert mask == Mask(mask.keep, Unstructured())
    assert mask != Mask(~mask.keep, Unstructured())
    with pytest.raises(ValueError, match="read-only"):
        mask.keep[0, 0] = False
    with pytest.raises(StructureError, match="not of structure filter"):
        Mask(mask.keep, Filter())
    with pytest.raises(StructureError, match="bool is needed"):
        Mask(np.ones((4, 4)), Unstructured())  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES_UNDER_TEST)
def test_a_layer_of_millions_of_weights_is_masked_without_loops(structure: Structure) -> None:
    shape = next(s for s in ((512, 512, 3, 3), (1500, 1600), (510, 512, 3, 3)) if fits(structure, s))
    scores = np.random.default_rng(0).random(shape, dtype=np.float32)
    start = time.process_time()
    mask = structure.mask(scores, structure.fixed_density or structure.max_density / 10)
    assert time.process_time() - start < 2  # about 0.1 s; a loop over weights takes minutes
    assert 0 < mask.density < 1 or structure.fixed_density == 1
