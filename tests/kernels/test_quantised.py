"""Kernels on levels of 8 bits: bit-equal to integer arithmetic with one rounding at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core import BFLOAT16, FLOAT32
from sparseflow.core.activations import ACTIVATIONS
from sparseflow.core.element_type import INT8, UINT8, ElementType, Quantised
from sparseflow.kernels.rescale import rescaling, saturates
from sparseflow.kernels.target.cpu import AVX2, Cpu
from sparseflow.kernels.template import TEMPLATES, Candidate, KernelTemplate
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Layouts, Workload
from tests.kernels.conftest import NEEDS_QUADS
from tests.kernels.test_contract import DRAWN, PAIRS, conv, layouts_of, linear, pruned, thinned

pytestmark = NEEDS_QUADS


def typed(layouts: Layouts, source: ElementType, result: ElementType, residual: ElementType) -> Layouts:
    """The layouts with types of their own."""
    x, y, other = layouts.in_lanes("test")
    return Layouts(
        replace(x, element=source), replace(y, element=result), other and replace(other, element=residual)
    )


class Case:
    """A workload on levels with operands, its exact result, and all kernels that take it in one module."""

    def __init__(self, workload: Workload, weight: np.ndarray, seed: int, reference: Any) -> None:
        random = np.random.default_rng(seed)
        most = np.abs(weight).max(initial=1e-9)
        self.levels = np.rint(weight / most * 127) + (weight != 0) * (np.abs(weight) < most / 254)
        self.levels = self.levels.astype(np.float32)
        self.levels[workload.live :] = 0.0
        self.w = w = replace(workload, maps=UINT8, weights=INT8, bias=True).with_zeros_of(self.levels)
        self.source = UINT8.at(0.03, int(random.integers(0, 200)))
        self.x = self.source.decode(
            random.integers(0, 256, (w.batch, w.channels, w.height, w.width), np.uint8)
        )
        self.step = random.uniform(1e-3, 3e-3, w.filters).astype(np.float32)
        self.bias = random.standard_normal(w.filters).astype(np.float32)
        shape = (w.batch, w.residual_channels or w.filters, w.out_height, w.out_width)
        levels = random.integers(0, 256, shape, np.uint8)
        self.added: ElementType = UINT8.at(0.01, 99) if isinstance(w.result, Quantised) else w.result
        other = self.added.decode(levels) if isinstance(self.added, Quantised) else levels.astype(np.float32)
        self.residual = other if w.residual else None
        self.picks = np.full(w.padded, -1, np.int32)
        self.picks[1 : w.filters] = random.integers(-1, w.residual_channels or w.filters, w.filters - 1)
        if w.residual_channels:
            other = np.where(
                (self.picks >= 0)[: w.filters, None, None], other[:, self.picks[: w.filters]], 0.0
            )
        plain = replace(w, maps=FLOAT32, weights=FLOAT32, result=FLOAT32, activation="none", bias=False)
        units = np.rint(
            self.x / np.float32(self.source.scale)
        )  # whole numbers, so that the reference is exact
        self.sums = reference(plain, units.astype(np.float32), self.levels, None, None)
        real = self.sums * (self.source.scale * self.step)[:, None, None] + self.bias[:, None, None]
        real = ACTIVATIONS[w.activation].numpy(real + (0 if other is None or not w.residual else other), 0.0)
        low = 0.0 if ACTIVATIONS[w.activation].non_negative else float(np.quantile(real, 0.02))
        high = 6.0 if w.activation == "relu6" else float(np.quantile(real, 0.98))
        self.result: ElementType = UINT8.covering(low, high) if isinstance(w.result, Quantised) else w.result

    def check(self, compile_kernels: Any, halo: tuple[int, int, int, int], slack: int) -> int:
        """Runs every template's candidates; returns how many there were."""
        runs, functions = [], {}
        for name, template in TEMPLATES.items():
            if template.refusal(self.w) is not None:
                continue
            found = template.candidates(self.w)
            assert found, f"{name} takes {self.w} but offers no candidate"
            for candidate in thinned(found):
                assert template.predict_cycles(self.w, candidate) > 0
                layouts = typed(
                    layouts_of(template, self.w, halo, slack), self.source, self.result, self.added
                )
                kernel = f"kernel{len(runs)}"
                shared = typed(layouts, self.source.unit, self.result.unit, self.added.unit)
                functions[kernel] = template.build(self.w, candidate, shared, kernel)
                runs.append((kernel, template, candidate, layouts))
        kernels = compile_kernels(functions)
        for run in runs:
            self._check_one(kernels, *run)
        return len(runs)

    def _check_one(
        self, kernels: Any, kernel: str, template: KernelTemplate, candidate: Candidate, layouts: Layouts
    ) -> None:
        w = self.w
        packed = template.pack(w, candidate, LayerWeight(self.levels, w.weight_shape), layouts)
        operands = rescaling(
            w, self.levels, self.step, self.bias, self.source, self.result, self.added if w.residual else None
        )
        x, out, other = layouts.in_lanes(template.name)
        more = [] if other is None else [other.pack(self.residual)]
        if w.residual_channels:
            more = [self.picks, *more]
        inputs = [x.pack(self.x), *packed.values(), *operands.values(), *more]
        y = kernels(kernel, inputs, (w.batch, out.size), out.element.slot)
        # what the kernel has to do, in the same order and precision
        start, factors = operands["start"][: w.filters], operands["rescale"]
        sums = self.sums + np.rint(self.bias / self._scale()).astype(np.float64)[:, None, None]
        zero_point = self.source.zero_point - w.target.taken_from_levels(UINT8)
        zeros = zero_point * self.levels.reshape(w.filters, -1).sum(axis=1)
        np.testing.assert_array_equal(start, np.rint(self.bias / self._scale()) - zeros)
        worth, shift, inverse, zero, source_inverse, source_zero = factors[w.padded :].astype(np.float64)
        assert (source_inverse, source_zero) == (np.float32(1.0 / self.source.scale), self.source.zero_point)
        value = (
            sums.astype(np.float32).astype(np.float64)
            * factors[: w.filters].astype(np.float64)[:, None, None]
        )
        if other is not None:
            stored = self.added.encode(self.residual) if isinstance(self.added, Quantised) else self.residual
            added = stored * worth + shift
            if w.residual_channels:
                without = zero if saturates(w) else 0.0
                picks = self.picks[: w.filters]
                added = np.where((picks >= 0)[:, None, None], added[:, picks], without)
            value = value + added
        elif saturates(w):
            value = value + shift
        where = f"{candidate.to_json()} on {w}"
        used = out.rows * out.cols
        shape = (w.batch, out.slots, out.plane, out.lanes)
        unit = replace(out, element=out.element.unit)
        found = unit.element.parted(y.reshape(shape)[:, :, :used], 1, out.channels)
        if isinstance(self.result, Quantised) and saturates(w):
            levels = np.clip(np.rint(value.astype(np.float32)), 0, 255)
        else:
            value = ACTIVATIONS[w.activation].numpy(value, w.parameter)
            levels = (
                np.clip(np.rint(value * inverse + zero), 0, 255)
                if isinstance(self.result, Quantised)
                else value
            )
        if isinstance(self.result, Quantised):
            levels = levels - self.result.zero_point  # as numbers of the layout, which packs them
        expected = unit.pack(levels.astype(np.float32)).reshape(shape)[:, :, :used]
        expected = unit.element.parted(expected, 1, out.channels)
        if isinstance(self.result, Quantised) and saturates(w) and other is None:
            np.testing.assert_array_equal(found, expected, err_msg=where)
        else:  # the activation's and the residual's own rounding
            step = max(1e-4, 2.0 * self.result.step)
            atol = 1.0 if isinstance(self.result, Quantised) else step * max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=where)
            if isinstance(self.result, Quantised):
                assert float((found != expected).mean()) < 0.01, where

    def _scale(self) -> np.ndarray:
        scale = self.source.scale * self.step.astype(np.float64)
        empty = np.abs(self.levels).reshape(len(self.levels), -1).sum(axis=1) == 0
        return np.where(empty, np.maximum(np.abs(self.bias), 1e-30) / 2.0**20, scale)


CASES: dict[str, tuple[Workload, str, float]] = {
    "primes": (conv(13, (17, 19), 12, activation="relu"), "unstructured", 0.3),
    "one pixel": (conv(7, (1, 1), 4, 1), "unstructured", 0.5),
    "all zero": (conv(8, (9, 9), 8, residual=True), "zero", 0.0),
    "all dense": (conv(16, (14, 14), 16, residual=True, activation="relu"), "dense", 1.0),
    "empty filters": (conv(9, (12, 12), 12, activation="silu"), "empty filters", 0.3),
    "blocks, batch 3, stride 2": (conv(12, (15, 15), 16, batch=3, stride=(2, 2)), "block:4x4", 0.2),
    "strides 2 and 1": (conv(5, (10, 21), 8, stride=(2, 1)), "unstructured", 0.4),
    "dilation": (conv(8, (20, 20), 8, dilation=(2, 3), padding=(2, 3, 2, 3)), "block:4x4", 0.25),
    "groups": (conv(16, (11, 11), 8, groups=2, activation="relu6"), "unstructured", 0.5),
    "depthwise": (conv(12, (13, 13), 12, groups=12, activation="hardswish"), "dense", 1.0),
    "depthwise, part of a slot's blocks": (conv(20, (14, 9), 20, 5, groups=20, stride=(2, 2)), "dense", 1.0),
    "first layer": (conv(3, (18, 18), 16, 7, padding=(3, 3, 3, 3), stride=(2, 2), activation="relu"), "dense", 1.0),
    "two threads": (conv(20, (15, 15), 24, threads=2, residual=True, activation="relu"), "block:4x4", 0.3),
    "many channels": (conv(512, (7, 7), 32, 1, activation="relu"), "block:8x4", 0.1),
    "passed filters": (conv(12, (13, 9), 24, residual=True, activation="relu", passed=10), "dense", 1.0),
    "picked residual": (
        conv(12, (14, 14), 16, residual=True, activation="relu", residual_channels=10), "block:4x4", 0.25
    ),
    "picked, passed, filters that fill no slot": (
        conv(13, (15, 15), 23, stride=(2, 2), batch=2, residual=True, residual_channels=17, passed=9), "filter", 0.7
    ),
    "picked, silu, threads": (
        conv(50, (9, 10), 13, 1, residual=True, residual_channels=20, activation="silu", threads=2), "dense", 1.0
    ),
    "depthwise, many rows": (conv(8, (33, 70), 8, groups=8, activation="relu6", threads=2, batch=2), "dense", 1.0),
    "depthwise, dilated": (
        conv(9, (21, 20), 9, groups=9, dilation=(2, 3), padding=(2, 3, 2, 3), activation="relu"), "unstructured", 0.5
    ),
    "depthwise, one row": (
        conv(8, (12, 15), 8, groups=8, kernel_size=(1, 5), padding=(0, 2, 0, 2), stride=(1, 2)), "dense", 1.0
    ),
    "depthwise 7x7": (conv(5, (16, 16), 5, 7, groups=5, padding=(3, 3, 3, 3), activation="silu"), "dense", 1.0),
    "depthwise, one column": (
        conv(8, (16, 9), 8, groups=8, kernel_size=(5, 1), padding=(2, 0, 2, 0), stride=(2, 1)), "dense", 1.0
    ),
    "depthwise that fills no slot": (conv(10, (13, 13), 10, groups=10, activation="relu6"), "dense", 1.0),
    "13 rows": (linear(13, 48, 40, activation="gelu"), "block:4x4", 0.25),
    "197 rows": (linear(197, 64, 48), "unstructured", 0.1),
}  # fmt: skip


def check_named(name: str, target: Cpu, result: ElementType, compile_kernels: Any, reference: Any) -> None:
    """A case of `CASES`; templates take it unless a depthwise layer is to write another type, or pairs are picked."""
    workload, structure, density = CASES[name]
    weight = pruned(workload, structure, density, seed=len(name))
    case = Case(replace(workload, target=target, result=result), weight, 3, reference)
    found = case.check(compile_kernels, (1, 1, 1, 1), slack=1)
    picked = workload.residual_channels and result == BFLOAT16
    assert (found > 0) is not bool((workload.depthwise and result != UINT8) or picked)


@pytest.mark.parametrize(
    "result", [UINT8, *(pytest.param(e, marks=pytest.mark.slow) for e in (FLOAT32, BFLOAT16))], ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_awkward_case_equals_integer_arithmetic(
    name: str, result: ElementType, compile_kernels: Any, dense_reference: Any
) -> None:
    check_named(name, PAIRS, result, compile_kernels, dense_reference)


NARROWER = ["primes", "all dense", "blocks, batch 3, stride 2", "13 rows", "depthwise, many rows"]
VNNI = Cpu.of({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3", "mattr": ["+avxvnni"]})


@pytest.mark.parametrize("target", [AVX2, VNNI], ids=["avx2", "avxvnni"])
@pytest.mark.parametrize("result", [UINT8, FLOAT32], ids=str)
@pytest.mark.parametrize("name", NARROWER)
def test_narrower_vectors_give_the_same(
    name: str, result: ElementType, target: Cpu, compile_kernels: Any, dense_reference: Any
) -> None:
    check_named(name, target, result, compile_kernels, dense_reference)


@st.composite
def cases(draw: Any) -> tuple[Workload, str, float, tuple[int, int, int, int]]:
    """Workloads with their pruning and an output halo."""
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width = (draw(st.integers(k, 17)) for k in kernel)
    workload = Workload(
        "conv2d",
        batch=draw(st.integers(1, 2)),
        channels=draw(st.integers(1, 20)),
        height=height,
        width=width,
        filters=draw(st.integers(1, 20)),
        kernel_size=kernel,
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        padding=tuple(draw(st.integers(0, 2)) for _ in range(4)),  # type: ignore[arg-type]
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from(["none", "relu", "relu6", "silu"])),
        threads=draw(st.integers(1, 2)),
        result=draw(st.sampled_from([UINT8, UINT8, FLOAT32, BFLOAT16])),
        target=PAIRS,
    )
    structure = draw(st.sampled_from(["unstructured", "block:4x4", "block:1x4", "dense", "filter"]))
    halo = tuple(draw(st.integers(0, 1)) for _ in range(4))
    return workload, structure, draw(st.floats(0.1, 0.9)), halo  # type: ignore[return-value]


@given(case=cases(), seed=st.integers(0, 99))
@settings(DRAWN, max_examples=12)
def test_drawn_cases_equal_integer_arithmetic(
    case: tuple[Workload, str, float, tuple[int, int, int, int]],
    seed: int,
    compile_kernels: Any,
    dense_reference: Any,
) -> None:
    workload, structure, density, halo = case
    weight = pruned(workload, structure, density, seed)
    assert Case(workload, weight, seed, dense_reference).check(compile_kernels, halo, slack=0) > 0
