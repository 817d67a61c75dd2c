"""Linear layers of few rows on levels of 8 bits: bit-equal to integer arithmetic with one rounding at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core import FLOAT32
from sparseflow.core.activations import ACTIVATIONS, fused
from sparseflow.core.element_type import INT8, UINT8
from sparseflow.kernels.gemv.bitmap import FewRowsBitmap
from sparseflow.kernels.gemv.levels import FewRowsInt8, FewRowsLevels
from sparseflow.kernels.rescale import rescaling
from sparseflow.kernels.target.cpu import AVX512, Cpu
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Layouts, Workload
from tests.kernels.conftest import NEEDS_QUADS
from tests.kernels.test_contract import DRAWN, PAIRS, linear, pruned, thinned

TEMPLATES_HERE = [t for t in TEMPLATES.values() if isinstance(t, FewRowsLevels)]


def on_levels(rows: int, channels: int, filters: int, **more: Any) -> Workload:
    """A workload of these kernels, for a processor that has what they need."""
    types: dict[str, Any] = {"maps": UINT8, "weights": INT8, "bias": True, "target": PAIRS}
    return linear(rows, channels, filters, **{**types, **more})


class Case:
    """A workload with operands and its exact result."""

    def __init__(self, workload: Workload, weight: np.ndarray, seed: int, numbers: int = 0) -> None:
        random = np.random.default_rng(seed)
        most = np.abs(weight).max(initial=1e-9)
        levels = np.where(
            weight != 0, np.sign(weight) * np.maximum(np.rint(np.abs(weight) / most * 127), 1), 0
        )
        if numbers:  # of so many different ones
            table = random.permutation(np.concatenate([np.arange(-127, 0), np.arange(1, 128)]))[:numbers]
            levels = np.where(levels != 0, random.choice(table, levels.shape), 0)
        self.levels = levels.astype(np.float32)
        self.w = w = workload.with_zeros_of(self.levels)
        source = UINT8.covering(*sorted(random.standard_normal(2)))
        self.x = random.standard_normal((w.width, w.channels)).astype(np.float32)  # beyond the range too
        step = random.uniform(1e-3, 3e-3, w.filters).astype(np.float32)
        bias = random.standard_normal(w.filters).astype(np.float32)
        self.residual = (
            random.standard_normal((w.width, w.filters)).astype(np.float32) if w.residual else None
        )
        other = FLOAT32 if w.residual else None
        self.operands = rescaling(w, self.levels, step, bias, source, FLOAT32, other)
        factors = self.operands["rescale"][: w.filters].astype(np.float64)
        inverse, zero = self.operands["rescale"][-2:].astype(np.float64)
        quantised = np.rint((self.x * inverse + zero).astype(np.float32)).clip(0, 255).astype(np.int64)
        matrix = self.levels.reshape(w.filters, w.channels).astype(np.int64)
        self.sums = quantised @ matrix.T + self.operands["start"]
        value = self.sums.astype(np.float32).astype(np.float64) * factors
        self.expected = value if self.residual is None else value + self.residual
        real = (source.decode(source.encode(self.x)) @ matrix.T) * step + bias
        real = real if self.residual is None else real + self.residual
        np.testing.assert_allclose(self.expected, real, atol=0.05 * np.abs(real).max() + 0.01)

    def check(self, compile_kernels: Any) -> int:
        """Runs the candidates of these templates; returns how many there were."""
        w, runs, functions = self.w, [], {}
        for template in TEMPLATES_HERE:
            if template.refusal(w) is not None:
                continue
            for candidate in thinned(template.candidates(w)):
                assert template.predict_cycles(w, candidate) > 0
                kernel = f"kernel{len(runs)}"
                functions[kernel] = template.build(w, candidate, Layouts(), kernel)
                runs.append((kernel, template, candidate))
        kernels = compile_kernels(functions)
        more = [] if self.residual is None else [self.residual]
        for kernel, template, candidate in runs:
            packed = template.pack(w, candidate, LayerWeight(self.levels, w.weight_shape), Layouts())
            inputs = [self.x, *packed.values(), *self.operands.values(), *more]
            y = kernels(kernel, inputs, (w.width, w.filters))
            where = f"{candidate.to_json()} on {w}"
            if w.activation in ("none", "relu"):
                exact = ACTIVATIONS[w.activation].numpy(self.expected, 0.0).astype(np.float32)
                np.testing.assert_array_equal(y, exact, err_msg=where)
            else:
                value = ACTIVATIONS[w.activation].numpy(self.expected, w.parameter)
                atol = 1e-5 * max(1.0, float(np.abs(value).max()))
                np.testing.assert_allclose(y, value, rtol=0, atol=atol, err_msg=where)
        return len(runs)


CASES: dict[str, tuple[Workload, str, float]] = {
    "classifier": (on_levels(1, 100, 37), "dense", 1.0),
    "half": (on_levels(1, 256, 160, activation="relu"), "unstructured", 0.5),
    "one input": (on_levels(1, 1, 33), "dense", 1.0),
    "one output": (on_levels(1, 67, 1, residual=True), "unstructured", 0.3),
    "one of each": (on_levels(2, 1, 1), "unstructured", 0.3),
    "all zero": (on_levels(1, 40, 50), "zero", 0.0),
    "all zero, rows": (on_levels(7, 3, 16, residual=True), "zero", 0.0),
    "empty filters": (on_levels(2, 61, 40, activation="gelu"), "empty filters", 0.4),
    "three rows": (on_levels(3, 31, 47, residual=True), "unstructured", 0.7),
    "seven rows": (on_levels(7, 130, 65), "unstructured", 0.1),
    "seven rows, dense": (on_levels(7, 18, 129, activation="silu"), "dense", 1.0),
    "two threads": (on_levels(1, 50, 600, threads=2, residual=True, activation="gelu"), "unstructured", 0.5),
    "two threads, rows": (on_levels(2, 50, 333, threads=2), "dense", 1.0),
    "two threads, one block": (on_levels(1, 9, 20, threads=2), "unstructured", 0.5),
    "skipped masks": (on_levels(1, 128, 144, residual=True), "block:16x4", 0.1),
    "skipped masks, rows": (on_levels(3, 64, 96), "filter", 0.2),
    "whole lines": (on_levels(1, 64, 128), "block:1x4", 0.5),
    "zero inputs": (on_levels(1, 99, 64, map_density=0.3), "channel", 0.4),
}  # fmt: skip


@NEEDS_QUADS
@pytest.mark.parametrize("name", CASES)
def test_awkward_case_equals_integer_arithmetic(name: str, compile_kernels: Any) -> None:
    workload, structure, density = CASES[name]
    weight = pruned(workload, structure, density, seed=len(name))
    case = Case(workload, weight, seed=len(name))
    dense = case.w.weight_density > 0.85
    taken = {t.name for t in TEMPLATES_HERE if t.refusal(case.w) is None} - {"few-rows-codes"}
    assert taken == ({"few-rows-int8"} if dense else {"few-rows-int8", "few-rows-bitmap"})
    assert case.check(compile_kernels) > (1 if dense else 3)


@NEEDS_QUADS
@pytest.mark.parametrize("numbers", [1, 2, 15, 16])
@pytest.mark.parametrize("name", ["half", "three rows", "seven rows, dense", "two threads", "skipped masks"])
def test_codes_stand_for_few_numbers(name: str, numbers: int, compile_kernels: Any) -> None:
    workload, structure, density = CASES[name]
    case = Case(workload, pruned(workload, structure, density, seed=numbers), numbers, numbers)
    assert TEMPLATES["few-rows-codes"].refusal(case.w) is None
    assert case.check(compile_kernels) > 3
    seventeen = Case(workload, pruned(workload, structure, density, seed=numbers), numbers, 17)
    assert "at most 16 different" in str(TEMPLATES["few-rows-codes"].refusal(seventeen.w))


@NEEDS_QUADS
@pytest.mark.parametrize("activation", fused())
def test_every_activation(activation: str, compile_kernels: Any) -> None:
    workload = on_levels(2, 20, 40, residual=True, activation=activation)
    assert Case(workload, pruned(workload, "unstructured", 0.5, 5), 5).check(compile_kernels) > 0


@st.composite
def cases(draw: Any) -> tuple[Workload, str, float]:
    """Workloads with their pruning."""
    workload = on_levels(
        draw(st.integers(1, 7)),
        draw(st.integers(1, 150)),
        draw(st.integers(1, 300)),
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from(["none", "none", "relu", "silu"])),
        threads=draw(st.integers(1, 2)),
    )
    structures = ["unstructured", "block:4x4", "block:16x4", "dense", "filter", "channel"]
    return workload, draw(st.sampled_from(structures)), draw(st.floats(0.02, 0.98))


@NEEDS_QUADS
@given(case=cases(), seed=st.integers(0, 99), numbers=st.sampled_from([0, 3, 16]))
@settings(DRAWN, max_examples=12)
def test_drawn_cases_equal_integer_arithmetic(
    case: tuple[Workload, str, float], seed: int, numbers: int, compile_kernels: Any
) -> None:
    workload, structure, density = case
    weight = pruned(workload, structure, density, seed)
    assert Case(workload, weight, seed, numbers).check(compile_kernels) > 0


@NEEDS_QUADS
def test_inputs_that_are_no_numbers_are_level_zero(compile_kernels: Any) -> None:
    w = on_levels(1, 40, 16)
    case = Case(w, pruned(w, "dense", 1.0, 0), 0)
    case.x[0, [3, 37]], case.x[0, [5, 38]], case.x[0, [6, 39]] = np.nan, np.inf, -np.inf
    template, candidate = FewRowsInt8(), Candidate("few-rows-int8", {"B": 1, "ahead": 0})
    kernels = compile_kernels({"kernel": template.build(case.w, candidate, Layouts(), "kernel")})
    packed = template.pack(case.w, candidate, LayerWeight(case.levels, w.weight_shape), Layouts())
    found = kernels("kernel", [case.x, *packed.values(), *case.operands.values()], (1, 16))
    clean = np.nan_to_num(case.x, nan=-1e9, posinf=1e9, neginf=-1e9)
    expected = kernels("kernel", [clean, *packed.values(), *case.operands.values()], (1, 16))
    np.testing.assert_array_equal(found, expected)


def test_a_bitmap_holds_the_non_zeros_and_a_line_of_zeros() -> None:
    w = on_levels(1, 70, 50)
    weight = np.rint(30 * pruned(w, "unstructured", 0.4, 1))
    w, template = w.with_zeros_of(weight), FewRowsBitmap()
    candidate = Candidate("few-rows-bitmap", {"B": 2, "ahead": 0, "skip": 0})
    packed = template.pack(w, candidate, LayerWeight(weight, w.weight_shape), Layouts())
    count = np.count_nonzero(weight)
    assert packed["bits"].shape == (18 * 4,)
    assert sum(map(int.bit_count, packed["bits"].tolist())) == count
    assert count + 64 <= packed["data"].nbytes < count + 68
    assert packed["indptr"].tolist() == [0, np.count_nonzero(weight[:32])]
    data = packed["data"].view(np.int8)
    assert not data[count:].any()
    np.testing.assert_array_equal(np.sort(data[:count]), np.sort(weight[weight != 0]))


def test_rejections_name_the_reason() -> None:
    sparse = {"weight_density": 0.5, "covers": ((1, 0.9), (16, 1.0))}
    w = on_levels(1, 64, 32, **sparse)
    assert [t.refusal(replace(w, few_values=True)) for t in TEMPLATES_HERE] == [None] * len(TEMPLATES_HERE)
    cascade = Cpu.of({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"})
    assert FewRowsInt8().refusal(replace(w, target=cascade)) is None
    for changed, reason in (
        ({"maps": FLOAT32}, "these are float32"),
        ({"target": AVX512}, "the target multiplies no uint8"),
        ({"target": cascade}, "lacks avx512vbmi2"),
        ({"width": 8}, "8 rows, more than 7"),
        ({"result": UINT8}, "writes float32"),
        ({"op": "conv2d"}, "linear layers only"),
        ({"weight_density": 0.9}, "density 0.90 is above"),
    ):
        assert reason in str(FewRowsBitmap().refusal(replace(w, **changed))), reason


def test_the_cost_model_ranks_by_bytes() -> None:
    def best(density: float, rows: int = 1, full: float = 1.0) -> tuple[float, str]:
        w = on_levels(rows, 4096, 11008, weight_density=density, covers=((1, 1.0), (16, full)))
        found = [
            (t.predict_cycles(w, c), t.name)
            for t in TEMPLATES_HERE
            if t.refusal(w) is None
            for c in t.candidates(w)
        ]
        return min(found)

    times = [best(d) for d in (1.0, 0.7, 0.5, 0.3)]
    assert [name for _, name in times] == ["few-rows-int8"] + ["few-rows-bitmap"] * 3
    assert [t for t, _ in times] == sorted((t for t, _ in times), reverse=True)
    assert times[0][0] / times[2][0] > 1.5
    assert best(0.5, 7)[0] > best(0.5)[0]
    assert best(0.05, full=0.05)[0] < best(0.05)[0]
