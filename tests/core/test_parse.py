"""The grammar of structures and of ``STRUCTURE@SPARSITY``."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow.core import (
    NM,
    STRUCTURES,
    Block,
    BlockPunched,
    Column,
    Connectivity,
    DenseBlocks,
    Pattern,
    PatternConnectivity,
    Product,
    Unstructured,
    parse_sparsify,
    parse_structure,
)
from sparseflow.errors import RegistryError, SparseflowError, StructureError


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("unstructured", Unstructured()),
        ("nm:2:4", NM(2, 4)),
        ("nm:1:4:0", NM(1, 4, 0)),
        ("block:4x1", Block(4, 1)),
        ("block-punched:8x4", BlockPunched(8, 4)),
        ("pattern", Pattern()),
        ("pattern:4:6", Pattern(4, None, 6)),
        ("pattern:2:=14/34", Pattern(2, ((1, 4), (3, 4)))),
        ("pattern:4+connectivity", PatternConnectivity()),
        ("pattern:3:5+connectivity", PatternConnectivity(3, None, 5)),
        ("pattern:4/4x4", Pattern(4, shared=(4, 4))),
        ("pattern:4:6/1x4", Pattern(4, None, 6, (1, 4))),
        ("pattern:2:=14/34/2x1", Pattern(2, ((1, 4), (3, 4)), shared=(2, 1))),
        ("pattern:4/4x4+connectivity", PatternConnectivity(shared=(4, 4))),
        ("connectivity:4x4", Connectivity(4, 4)),
        ("nm:2:4+block:4x8", Product(NM(2, 4), Block(4, 8))),
        ("dense-blocks:16x32:column", DenseBlocks(16, 32, Column())),
        ("dense-blocks:16x32:nm:2:4", DenseBlocks(16, 32, NM(2, 4))),
    ],
)
def test_structures_are_read(text: str, structure: object) -> None:
    assert parse_structure(text) == structure
    assert parse_structure(str(structure)) == structure


@pytest.mark.parametrize(
    "text",
    [
        "block",
        "block:4",
        "block:4x",
        "block:4x-1",
        "block:0x1",
        "block:4x1x1",
        "nm",
        "nm:2",
        "nm:4:2",
        "nm:2:4:1:1",
        "filter:2",
        "pattern:four",
        "pattern:4:=",
        "pattern:4/4",
        "pattern:4/0x4",
        "connectivity:4",
        "pattern:4:=01",
        "pattern:4:5:6",
        "pattern:4:=0a34",
        "product",
        "nm:2:4+",
        "+filter",
        "filter+channel",
        "filter+filter+filter",
        "dense-blocks:4x4",
        "dense-blocks:4x4:",
        "dense-blocks:4:filter",
        "",
        "block:9999999999x1",
    ],
)
def test_what_is_no_structure_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SparseflowError) as error:
        parse_structure(text)
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RegistryError) as error:
        parse_structure("blok:4x1")
    assert all(name in str(error.value) for name in STRUCTURES)


@given(st.text(alphabet="abcdefilnoprstuk:+x0123456789=/-@. ", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(SparseflowError):
        assert parse_structure(str(parse_structure(text))) == parse_structure(text)


@pytest.mark.parametrize(
    ("text", "density", "sparsity"),
    [
        ("unstructured@0.9", 0.1, 0.9),
        ("block:4x1@0.9", 0.1, 0.9),
        ("nm:2:4", 0.5, 0.5),
        ("nm:2:4@0.5", 0.5, 0.5),
        ("pattern:4", 4 / 9, 5 / 9),
        ("pattern:4@0.556", 4 / 9, 5 / 9),
        ("filter@0.5", 0.5, 0.5),
        ("pattern:4+connectivity@0.877", 0.123, 0.877),
        ("unstructured@0", 1.0, 0.0),
        ("unstructured@1", 0.0, 1.0),
        (" channel@0.25 ", 0.75, 0.25),
    ],
)
def test_sparsity_becomes_density(text: str, density: float, sparsity: float) -> None:
    spec = parse_sparsify(text)
    assert spec.density == pytest.approx(density, abs=1e-12)
    assert spec.sparsity == pytest.approx(sparsity, abs=1e-12)
    assert spec.structure == parse_structure(text.strip().partition("@")[0])
    assert spec.text == text.strip()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block:4x1", "@SPARSITY"),
        ("filter@1.5", "not a number in"),
        ("filter@-0.1", "not a number in"),
        ("filter@nan", "not a number in"),
        ("filter@", "not a number in"),
        ("filter@half", "not a number in"),
        ("nm:2:4@0.9", "always keeps 0.5"),
        ("pattern:4+connectivity@0.3", "at most 0.4444"),
    ],
)
def test_a_sparsity_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(StructureError, match=message) as error:
        parse_sparsify(text)
    assert "\n" not in str(error.value)
