"""The walked examples of CONTRIBUTING.md: their code runs, and what it registers passes the contract tests."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sparseflow.core import ELEMENT_TYPES, FLOAT32, FORMATS, STRUCTURES, parse_structure
from sparseflow.core.activations import ACTIVATIONS
from sparseflow.kernels.ir.elements import WIDEN
from sparseflow.kernels.target.base import TARGETS
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.template import TEMPLATES
from sparseflow.ops import activations as fused_activations
from sparseflow.ops.operator import OPERATORS
from sparseflow.registry import Registry
from tests.core import test_activations as activation_contract
from tests.core import test_element_type as element_contract
from tests.core import test_formats as format_contract
from tests.core import test_structures as structure_contract
from tests.docs.snippets import BLOCK, ROOT
from tests.kernels import test_operators as operator_contract
from tests.kernels.conftest import compile_kernels, dense_reference, host  # noqa: F401  (fixtures)
from tests.kernels.test_contract import (
    CASES,
    Case,
    pruned,
)
from tests.kernels.test_contract import (
    test_weights_stored_in_another_type_are_read_exactly as narrow_contract,
)

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {s.split("\n")[0]: s for s in re.split(r"^## ", TEXT, flags=re.M)[1:]}
REGISTRIES: tuple[Registry[Any], ...] = (
    STRUCTURES, FORMATS, TEMPLATES, ACTIVATIONS, OPERATORS, ELEMENT_TYPES, TARGETS
)  # fmt: skip


def forget_activations() -> None:
    """Empties what is remembered of the registry of activations: the package does not expect it to grow."""
    for function in vars(fused_activations).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    """What a test registers is gone after it."""
    kept, widen = [dict(registry) for registry in REGISTRIES], dict(WIDEN)
    forget_activations()
    yield
    forget_activations()
    WIDEN.clear()
    WIDEN.update(widen)
    for registry, entries in zip(REGISTRIES, kept, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``walk(title)`` executes the blocks of a section in turn, as one module."""

    def run(title: str) -> None:
        module = ModuleType("walked")
        monkeypatch.setitem(sys.modules, "walked", module)
        blocks = [match[2] for match in BLOCK.finditer(SECTIONS[title]) if match[1] == "python"]
        assert len(blocks) == 2
        assert blocks[0].startswith("# src/sparseflow/")
        for number, block in enumerate(blocks):
            exec(compile(block, f"CONTRIBUTING.md: {title}, block {number}", "exec"), module.__dict__)

    return run


def test_every_walked_example_is_run() -> None:
    walked = {title for title, text in SECTIONS.items() if "```python" in text}
    assert walked == {
        "Add a structure",
        "Add an index format",
        "Add a kernel template",
        "Add an activation",
        "Add an operator",
        "Add an element type",
        "Add a target",
    }


def test_the_structure_keeps_the_contract(walk: Any) -> None:
    walk("Add a structure")
    structure = parse_structure("kernel-row")
    contract = structure_contract
    contract.test_mask_keeps_the_best_units_exactly_and_ties_go_to_the_lower_index(structure=structure)
    contract.test_cover_is_of_the_structure_contains_the_mask_and_is_a_fixed_point(structure=structure)
    contract.test_text_reads_back(structure)


def test_the_format_keeps_the_contract(walk: Any) -> None:
    walk("Add an index format")
    (fmt,) = FORMATS["coordinates"].examples()
    format_contract.test_decode_gives_back_what_was_encoded(fmt=fmt)
    format_contract.test_bytes_are_those_of_the_arrays_and_types_are_as_specified(fmt=fmt)
    format_contract.test_arrays_that_differ_from_the_specification_are_refused(fmt)
    format_contract.test_contents_changed_anywhere_are_refused_or_decode_without_harm(fmt=fmt)


def test_the_kernel_template_keeps_the_contract(
    walk: Any,
    compile_kernels: Any,  # noqa: F811
    dense_reference: Any,  # noqa: F811
) -> None:
    walk("Add a kernel template")
    template = TEMPLATES["csr-rows"]
    TEMPLATES._entries.clear()
    TEMPLATES.register("csr-rows")(template)
    linear = [(name, case) for name, case in CASES.items() if case[0].op == "linear"]
    assert len(linear) > 3
    for _, (workload, structure, density) in linear:
        case = Case(workload, pruned(workload, structure, density, 3), 3, dense_reference)
        assert case.check(compile_kernels, (0, 0, 0, 0), 0) == (template.refusal(case.w) is None)
    reason = template.rejects(CASES["primes"][0])
    assert reason == "it computes linear layers only"
    assert np.isfinite(template.predict_cycles(linear[0][1][0], template.candidates(linear[0][1][0])[0]))


def test_the_activation_keeps_the_contract(walk: Any) -> None:
    walk("Add an activation")
    activation_contract.test_the_meaning_is_torchs("softsign")
    activation_contract.test_the_facts_are_true("softsign")
    activation_contract.test_torch_has_the_operators_that_are_named("softsign")


def test_the_operator_keeps_the_contract(walk: Any, compile_kernels: Any) -> None:  # noqa: F811
    walk("Add an operator")
    example = operator_contract.Example(
        OPERATORS["largest"](), ((2, 19, 9, 13),), lambda x: x.amax((2, 3), keepdim=True)
    )
    operator_contract.test_the_meaning_is_torchs_and_the_sign_is_true(example)
    operator_contract.test_the_kernel_on_lanes(example, FLOAT32, 2, compile_kernels)


def test_the_element_type_keeps_the_contract(
    walk: Any,
    compile_kernels: Any,  # noqa: F811
    dense_reference: Any,  # noqa: F811
) -> None:
    walk("Add an element type")
    element = ELEMENT_TYPES["float8"]
    element_contract.test_the_error_keeps_the_stated_step(element=element)
    element_contract.test_zeros_signs_infinities_and_nan_are_kept(element)
    narrow_contract("classifier", AVX512, element, compile_kernels, dense_reference)


def test_the_target_compiles(walk: Any) -> None:
    walk("Add a target")
    assert TARGETS["zen2"].vectors.lanes == 8
