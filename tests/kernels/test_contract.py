"""One contract for every registered kernel template: it equals the dense reference on awkward shapes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseflow.core import (
    BFLOAT16,
    ELEMENT_TYPES,
    FEATURE_MAP_FORMATS,
    FLOAT16,
    FLOAT32,
    FORMATS,
    ElementType,
    IndexFormat,
    KernelIndex,
    parse_structure,
)
from sparseflow.core.activations import fused
from sparseflow.core.element_type import INT8, UINT8
from sparseflow.engine.weights import formats_read
from sparseflow.errors import FormatError, RegistryError
from sparseflow.kernels.lane.patterns import assign_patterns
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.target.cpu import AVX2, AVX512, NEON, Cpu
from sparseflow.kernels.template import TEMPLATES, Candidate, KernelTemplate, computed
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Layouts, Workload, covers_of, dense_covers, patterns_of
from tests.kernels.conftest import NEEDS_PAIRS

MOST = 3  # candidates of a template that one case compiles


def pruned(workload: Workload, structure: str, density: float, seed: int) -> np.ndarray:
    """A random OIHW weight with the zeros of ``structure``; ``dense``, ``zero`` and ``empty filters`` too."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal(workload.weight_shape).astype(np.float32)
    weight[weight == 0] = 1.0
    if structure == "dense":
        return weight
    if structure == "zero":
        return np.zeros_like(weight)
    if structure == "empty filters":
        weight[random.random(weight.shape) > density] = 0.0
        weight[::2] = 0.0
        return weight
    return weight * parse_structure(structure).mask(np.abs(weight), density).keep


def thinned(found: list[Candidate]) -> list[Candidate]:
    """The best, the worst, and one of each further block height and chunk length, `MOST` in all."""
    kept = [found[0], found[-1]]
    names = ("R", "chunk", "bits")
    seen = {tuple(c.parameters.get(n) for n in names) for c in kept}
    for c in found:
        key = tuple(c.parameters.get(n) for n in names)
        if key not in seen:
            kept.append(c)
            seen.add(key)
    unique = {c.to_json(): c for c in kept}
    return list(unique.values())[:MOST]


def layouts_of(template: KernelTemplate, w: Workload, halo: tuple[int, int, int, int], slack: int) -> Layouts:
    """Lane layouts with an output halo, and an input that has ``slack`` more halo than the kernel reads."""
    if template.layout == "rows":
        return Layouts()
    if template.layout == "pixels":
        source, out, residual = w.pixel_layouts().in_pixels(template.name)
        top, left, bottom, right = source.halo
        wider = source.with_halo((top + slack, left, bottom, right + slack))
        return Layouts(wider, out.with_halo(halo), residual)
    out = w.output_layout
    if out.with_halo(halo).can_fill_halo():
        out = out.with_halo(halo)
    need = w.input_layout(out)
    top, left, bottom, right = need.halo
    wider = need.with_halo((top + slack, left, bottom, right + slack))
    residual = w.output_layout.with_halo((slack, 0, 0, slack))
    residual = replace(residual, channels=w.residual_channels or w.filters)
    return Layouts(wider, out, residual if w.residual else None)


def as_rows(x: np.ndarray) -> np.ndarray:
    """(1, C, 1, T) as the matrix (T, C)."""
    return np.ascontiguousarray(x[0, :, 0].T)


class Case:
    """A workload with operands, its expected result, and all kernels that take it in one module."""

    def __init__(self, workload: Workload, weight: np.ndarray, seed: int, reference: Any) -> None:
        weight = workload.weights.rounded(weight)
        weight[workload.live :] = 0.0
        self.w = workload.with_zeros_of(weight)
        self.weight = weight
        random = np.random.default_rng(seed + 1)
        w = self.w
        out = (w.batch, w.residual_channels or w.filters, w.out_height, w.out_width)
        self.x = random.standard_normal((w.batch, w.channels, w.height, w.width)).astype(np.float32)
        self.x = w.maps.rounded(self.x * (random.random(self.x.shape) < w.map_density))
        self.bias = random.standard_normal(w.filters).astype(np.float32) if w.bias else None
        self.residual = w.maps.rounded(random.standard_normal(out)) if w.residual else None
        self.picks = self._draw_picks(random)
        self.expected = reference(w, self.x, weight, self.bias, self._picked())

    def _draw_picks(self, random: np.random.Generator) -> np.ndarray | None:
        """For each filter its channel of the residual, each at most once, in any order; the first and others: none."""
        w = self.w
        if not w.residual_channels:
            return None
        picks = np.full(w.filters, -1, np.int32)
        count = min(w.filters - 1, w.residual_channels)
        picks[1 + random.permutation(w.filters - 1)[:count]] = random.permutation(w.residual_channels)[:count]
        return picks

    def _picked(self) -> np.ndarray | None:
        """The residual in the output's channels."""
        if self.picks is None or self.residual is None:
            return self.residual
        return np.where((self.picks >= 0)[:, None, None], self.residual[:, self.picks], 0.0).astype(
            np.float32
        )

    def check(self, compile_kernels: Any, halo: tuple[int, int, int, int], slack: int) -> int:
        """Runs every template's candidates; returns how many there were."""
        runs, functions = [], {}
        for name, template in TEMPLATES.items():
            reason = template.refusal(self.w)
            if reason is not None:
                assert isinstance(reason, str)
                assert reason.strip()
                assert "\n" not in reason
                continue
            found = template.candidates(self.w)
            assert found, f"{name} takes {self.w} but offers no candidate"
            for candidate in thinned(found):
                assert template.predict_cycles(self.w, candidate) > 0
                layouts = layouts_of(template, self.w, halo, slack)
                kernel = f"kernel{len(runs)}"
                functions[kernel] = template.build(self.w, candidate, layouts, kernel)
                runs.append((kernel, template, candidate, layouts))
        kernels = compile_kernels(functions)
        for kernel, template, candidate, layouts in runs:
            self._check_one(kernels, functions[kernel], kernel, template, candidate, layouts)
        return len(runs)

    def _check_one(
        self,
        kernels: Any,
        function: Any,
        kernel: str,
        template: KernelTemplate,
        candidate: Candidate,
        layouts: Layouts,
    ) -> None:
        packed = template.pack(self.w, candidate, LayerWeight(self.weight, self.w.weight_shape), layouts)
        operands = self._operands(layouts)
        maps = 2 if template.layout == "pixels" else 1
        inputs = [*operands[:maps], *packed.values(), *operands[maps:]]
        self._check_parameters(function, inputs, 3 if template.layout == "pixels" else 1)
        scale = max(1.0, float(np.abs(self.expected).max()))
        where = f"{candidate.to_json()} on {self.w}"
        if layouts.output is None:
            y = kernels(kernel, inputs, (self.w.width, self.w.filters))
            np.testing.assert_allclose(y, as_rows(self.expected), rtol=0, atol=1e-4 * scale, err_msg=where)
            return
        if isinstance(layouts.output, PixelLayout):
            outputs = [np.full(shape, 7, dtype) for shape, dtype in layouts.output.tensors(self.w.batch)]
            values, bits, count = kernels.run(kernel, inputs, outputs)
            shown = layouts.output.unpack(values)
            np.testing.assert_allclose(shown, self.expected, rtol=0, atol=1e-4 * scale, err_msg=where)
            for have, true in zip((values, bits, count), layouts.output.pack(shown), strict=True):
                np.testing.assert_array_equal(have, true, err_msg=where)
            return
        out: LaneLayout = layouts.output
        y = kernels(kernel, inputs, (self.w.batch, out.size), out.element.slot)
        used = out.rows * out.cols
        shape = (self.w.batch, out.slots, out.plane, out.lanes)
        found, expected = (
            out.element.parted(v.reshape(shape)[:, :, :used], 1, out.channels)
            for v in (y, out.pack(self.expected))
        )
        atol = (1e-4 if out.element == FLOAT32 else 2.0 * out.element.step) * scale
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=where)

    def _operands(self, layouts: Layouts) -> list[np.ndarray]:
        extra = [] if self.bias is None else [self.bias]
        if layouts.input is None:
            other = [] if self.residual is None else [as_rows(self.residual)]
            return [as_rows(self.x), *extra, *other]
        if self.picks is not None:
            extra.append(self.picks)
        residual = [] if layouts.residual is None else [layouts.residual.pack(self.residual)]
        if isinstance(layouts.input, PixelLayout):
            values, bits, _ = layouts.input.pack(self.x)
            return [values, bits, *extra, *(values for values, _, _ in residual)]
        return [layouts.input.pack(self.x), *extra, *residual]

    @staticmethod
    def _check_parameters(function: Any, inputs: list[np.ndarray], outputs: int) -> None:
        """What `pack` gives has the number, ranks, sizes and types of the kernel's parameters."""
        buffers = list(function.params)
        assert len(buffers) == len(inputs) + outputs
        for buffer, array in zip(buffers, inputs, strict=False):
            assert str(buffer.dtype) == str(array.dtype)
            assert len(buffer.shape) == array.ndim
            for size, have in zip(buffer.shape, array.shape, strict=True):
                assert not isinstance(size, tvm.tirx.IntImm) or int(size) == have


PAIRS = Cpu.of({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"})
"""A processor that multiplies pairs of bfloat16."""


def conv(channels: int, size: tuple[int, int], filters: int, kernel: int = 3, **more: Any) -> Workload:
    """A convolution that keeps the map's size unless told otherwise."""
    p = kernel // 2
    fields: dict[str, Any] = {
        "batch": 1,
        "kernel_size": (kernel, kernel),
        "padding": (p, p, p, p),
        "target": AVX512,
        **more,
    }
    return Workload("conv2d", channels=channels, height=size[0], width=size[1], filters=filters, **fields)


def linear(rows: int, channels: int, filters: int, **more: Any) -> Workload:
    """A linear layer of ``rows`` rows."""
    return Workload("linear", 1, channels, 1, rows, filters, **{"target": AVX512, **more})


CASES = {
    "primes": (conv(13, (17, 19), 11, bias=True, activation="relu"), "unstructured", 0.3),
    "one pixel": (conv(7, (1, 1), 5, 1, bias=True), "unstructured", 0.5),
    "one pixel, 3x3": (conv(6, (1, 1), 4, bias=True), "dense", 1.0),
    "all zero": (conv(8, (9, 9), 8, bias=True, residual=True), "zero", 0.0),
    "all zero, no bias": (conv(8, (9, 9), 8, activation="relu"), "zero", 0.0),
    "all dense": (conv(16, (14, 14), 16, bias=True, residual=True, activation="relu"), "dense", 1.0),
    "empty filters": (conv(9, (12, 12), 12, bias=True, activation="silu"), "empty filters", 0.3),
    "batch 3, stride 2": (conv(12, (15, 15), 16, batch=3, stride=(2, 2), bias=True), "block:2x1", 0.2),
    "strides 2 and 1": (conv(5, (10, 21), 6, stride=(2, 1)), "unstructured", 0.4),
    "dilation": (conv(6, (20, 20), 8, dilation=(2, 3), padding=(2, 3, 2, 3)), "block:4x1", 0.25),
    "groups": (conv(12, (11, 11), 8, groups=4, bias=True, activation="relu6"), "unstructured", 0.5),
    "groups, dense": (conv(12, (8, 8), 24, groups=3, batch=2), "dense", 1.0),
    "depthwise": (conv(10, (13, 13), 10, groups=10, bias=True, activation="hardswish"), "dense", 1.0),
    "depthwise x2, stride 2": (conv(6, (14, 9), 12, 5, groups=6, stride=(2, 2)), "dense", 1.0),
    "rectangular kernel": (
        conv(5, (16, 18), 7, kernel_size=(1, 5), padding=(0, 2, 0, 2), activation="gelu"),
        "unstructured",
        0.4,
    ),
    "asymmetric padding": (conv(4, (13, 15), 8, padding=(0, 2, 1, 0), bias=True), "block:8x1", 0.3),
    "no padding": (conv(3, (18, 18), 16, 7, padding=(0, 0, 0, 0), stride=(2, 2)), "dense", 1.0),
    "padding beyond the kernel": (conv(4, (6, 6), 4, 1, padding=(1, 2, 2, 1), bias=True), "dense", 1.0),
    "chunks": (conv(40, (14, 14), 16, bias=True, residual=True, activation="relu"), "unstructured", 0.15),
    "chunks, 1x1": (conv(200, (7, 7), 24, 1, bias=True), "unstructured", 0.1),
    "dense chunks": (conv(150, (8, 8), 10, 1, bias=True, activation="silu"), "dense", 1.0),
    "pattern": (conv(8, (14, 14), 8, bias=True), "pattern:4+connectivity", 0.2),
    "two threads": (conv(20, (15, 15), 24, threads=2, bias=True, activation="relu"), "block:2x1", 0.3),
    "two threads, one filter": (conv(8, (9, 9), 1, threads=2, bias=True), "unstructured", 0.4),
    "two threads, batch 2": (conv(6, (9, 9), 10, threads=2, batch=2, residual=True), "dense", 1.0),
    "two threads, all zero": (conv(6, (9, 9), 10, threads=2, bias=True), "zero", 0.0),
    "passed filters": (
        conv(12, (13, 9), 24, bias=True, residual=True, activation="relu", passed=10),
        "dense",
        1.0,
    ),
    "passed filters, chunks, threads": (
        conv(160, (8, 8), 24, 1, batch=2, bias=True, passed=11, threads=2),
        "unstructured",
        0.2,
    ),
    "all passed": (
        conv(9, (9, 7), 12, 1, bias=True, residual=True, residual_channels=9, passed=12),
        "zero",
        0.0,
    ),
    "picked residual": (
        conv(12, (14, 14), 16, bias=True, residual=True, activation="relu", residual_channels=10),
        "block:4x1",
        0.25,
    ),
    "picked from more": (
        conv(150, (9, 10), 13, 1, residual=True, residual_channels=20, activation="silu", threads=2),
        "dense",
        1.0,
    ),
    "picked, passed, strided": (
        conv(
            13, (15, 15), 24, stride=(2, 2), batch=2, bias=True, residual=True, residual_channels=17, passed=9
        ),
        "filter",
        0.7,
    ),
    "sparse map": (
        conv(70, (9, 11), 24, bias=True, residual=True, activation="relu", map_density=0.3),
        "dense",
        1.0,
    ),
    "sparse map, two words, threads, batch": (
        conv(128, (6, 5), 130, batch=2, threads=2, bias=True, activation="silu", map_density=0.2),
        "block:16x1",
        0.25,
    ),
    "sparse map, stride, dilation": (
        conv(20, (15, 14), 9, stride=(2, 1), dilation=(1, 2), padding=(1, 0, 2, 3), map_density=0.4),
        "dense",
        1.0,
    ),
    "sparse map, 1x1": (
        conv(150, (7, 7), 64, 1, bias=True, activation="relu", map_density=0.1),
        "dense",
        1.0,
    ),
    "empty map": (conv(64, (5, 6), 33, bias=True, activation="relu", map_density=0.0), "block:16x1", 0.5),
    "classifier": (linear(1, 100, 37, bias=True), "unstructured", 0.2),
    "zero inputs": (linear(1, 300, 75, bias=True, activation="relu", map_density=0.1), "dense", 1.0),
    "zero inputs, rows, threads": (
        linear(3, 33, 130, residual=True, threads=2, activation="gelu", map_density=0.5),
        "unstructured",
        0.3,
    ),
    "zero inputs, few outputs": (linear(2, 50, 5, bias=True, residual=True, map_density=0.3), "dense", 1.0),
    "no inputs": (linear(1, 17, 16, bias=True, map_density=0.0), "dense", 1.0),
    "few outputs": (linear(1, 50, 10, bias=True, activation="gelu"), "dense", 1.0),
    "one output": (linear(3, 33, 1, bias=True, residual=True), "dense", 1.0),
    "13 rows": (linear(13, 48, 40, bias=True, residual=True, activation="gelu"), "block:4x1", 0.25),
    "13 rows, dense, threads": (linear(13, 31, 35, bias=True, threads=2), "dense", 1.0),
    "197 rows": (linear(197, 64, 48, bias=True, activation="silu"), "unstructured", 0.1),
    "all-zero linear": (linear(2, 40, 20, bias=True), "zero", 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_awkward_case_equals_the_dense_reference(
    name: str, compile_kernels: Any, dense_reference: Any
) -> None:
    workload, structure, density = CASES[name]
    weight = pruned(workload, structure, density, seed=len(name))
    case = Case(workload, weight, 3, dense_reference)
    assert case.check(compile_kernels, (1, 1, 1, 1), slack=0) > 0


@pytest.mark.parametrize("target", [AVX2, NEON], ids=lambda t: t.name)
@pytest.mark.parametrize(
    "name",
    [
        "primes",
        "batch 3, stride 2",
        "depthwise",
        "chunks",
        "two threads",
        "13 rows",
        "classifier",
        "few outputs",
        "zero inputs",
        "zero inputs, few outputs",
        "sparse map",
        "sparse map, two words, threads, batch",
    ],
)
def test_narrower_vectors_give_the_same(
    name: str, target: Cpu, compile_kernels: Any, dense_reference: Any
) -> None:
    workload, structure, density = CASES[name]
    weight = pruned(workload, structure, density, seed=len(name))
    case = Case(replace(workload, target=target), weight, 3, dense_reference)
    assert case.check(compile_kernels, (1, 1, 1, 1), slack=1) > 0


@pytest.mark.parametrize("element", [e for e in ELEMENT_TYPES.values() if e.bits < 32], ids=str)
@pytest.mark.parametrize("target", [AVX512, AVX2, NEON], ids=lambda t: t.name)
@pytest.mark.parametrize(
    "name",
    ["primes", "depthwise", "chunks", "two threads", "13 rows", "classifier", "few outputs", "zero inputs"],
)
def test_weights_stored_in_another_type_are_read_exactly(
    name: str, target: Cpu, element: ElementType, compile_kernels: Any, dense_reference: Any
) -> None:
    """The reference has the rounded weights, so the error stays that of float32 sums."""
    workload, structure, density = CASES[name]
    weight = pruned(workload, structure, density, seed=len(name))
    case = Case(replace(workload, target=target, weights=element), weight, 3, dense_reference)
    narrow = [t for t in TEMPLATES.values() if t.narrow and t.refusal(case.w) is None]
    assert all(any("bits" in c.parameters for c in thinned(t.candidates(case.w))) for t in narrow)
    assert narrow
    assert case.check(compile_kernels, (1, 1, 1, 1), slack=1) > 0


@pytest.mark.parametrize("activation", fused())
def test_every_activation_after_bias_and_residual(
    activation: str, compile_kernels: Any, dense_reference: Any
) -> None:
    workload = conv(6, (7, 7), 8, 1, bias=True, residual=True, activation=activation, parameter=1.5)
    case = Case(workload, pruned(workload, "unstructured", 0.5, 5), 5, dense_reference)
    case.x *= 8.0  # reaches the ends of relu6 and hard-swish, and where exp saturates
    case.expected = dense_reference(case.w, case.x, case.weight, case.bias, case.residual)
    assert case.check(compile_kernels, (0, 1, 1, 0), slack=1) > 0


@pytest.mark.parametrize("structure", ["pattern:4", "pattern:4+connectivity", "connectivity"])
@pytest.mark.parametrize(("stride", "batch", "threads"), [(1, 1, 1), (2, 2, 2)])
def test_patterns(
    structure: str, stride: int, batch: int, threads: int, compile_kernels: Any, dense_reference: Any
) -> None:
    workload = conv(
        40,
        (11, 14),
        9,
        3,
        batch=batch,
        stride=(stride, stride),
        padding=(1, 1, 1, 1),
        threads=threads,
        bias=True,
    )
    density = 4 / 9 if structure == "pattern:4" else 0.3
    case = Case(workload, pruned(workload, structure, density, 3), 3, dense_reference)
    assert TEMPLATES["patterns"].rejects(case.w) is None
    assert case.check(compile_kernels, (1, 1, 1, 1), slack=1) > 2


def test_patterns_of_a_weight_hold_every_kernel() -> None:
    weight = np.zeros((2, 3, 3, 3), np.float32)
    weight[0, 0, 0, :2] = weight[0, 1, 0, 0] = weight[1, 1, 0, :2] = weight[1, 2, 2, 2] = 1
    patterns = patterns_of(weight)
    assert patterns == ((0b11, pytest.approx(3 / 6)), (1 << 8, pytest.approx(1 / 6)))
    assigned = assign_patterns(weight.reshape(2, 3, 9) != 0, [m for m, _ in patterns])
    assert assigned.tolist() == [[0, 0, -1], [-1, 0, 1]]
    four_of_nine = np.random.default_rng(0).permuted(np.arange(9) < 4 + np.zeros((400, 1)), axis=1)
    assert patterns_of(four_of_nine.reshape(20, 20, 3, 3)) == ()


DRAWN = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None)


@st.composite
def cases(draw: Any) -> tuple[Workload, str, float, tuple[int, int, int, int], int]:
    """Workloads with their pruning, an output halo and slack in the input."""
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (draw(st.integers(r, 23)) for r in reach)
    workload = Workload(
        "conv2d",
        batch=draw(st.integers(1, 2)),
        channels=groups * draw(st.integers(1, 20)),
        height=height,
        width=width,
        filters=groups * draw(st.integers(1, 12)) + (7 if groups == 1 else 0),
        kernel_size=kernel,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=padding,  # type: ignore[arg-type]
        dilation=dilation,
        groups=groups,
        passed=draw(st.sampled_from([0, 0, 1, 7])) if groups == 1 else 0,
        bias=draw(st.booleans()),
        residual=(residual := draw(st.booleans())),
        residual_channels=draw(st.sampled_from([0, 0, 1, 7, 30])) if residual else 0,
        activation=draw(st.sampled_from(sorted(fused()))),
        threads=draw(st.integers(1, 2)),
        map_density=draw(st.sampled_from([1.0, 0.5, 0.1])),
        target=AVX512,
    )
    structure = draw(
        st.sampled_from(["unstructured", "block:2x1", "block:4x1", "filter", "channel", "dense"])
    )
    halo = tuple(draw(st.integers(0, 2)) for _ in range(4))
    return workload, structure, draw(st.floats(0.05, 0.95)), halo, draw(st.integers(0, 2))  # type: ignore[return-value]


@settings(DRAWN, max_examples=5)
@given(drawn=cases())
def test_drawn_case_equals_the_dense_reference(
    drawn: tuple[Workload, str, float, tuple[int, int, int, int], int],
    compile_kernels: Any,
    dense_reference: Any,
) -> None:
    workload, structure, density, halo, slack = drawn
    case = Case(workload, pruned(workload, structure, density, 7), 7, dense_reference)
    assert case.check(compile_kernels, halo, slack) > 0


def test_some_case_reaches_every_template() -> None:
    reached = set()
    for workload, structure, density in CASES.values():
        w = workload.with_zeros_of(pruned(workload, structure, density, 0))
        reached |= {name for name, template in TEMPLATES.items() if template.refusal(w) is None}
    assert reached == {name for name, template in TEMPLATES.items() if FLOAT32 in template.maps}


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_template_says_what_it_reads(name: str) -> None:
    template = TEMPLATES[name]
    assert template.name == name
    assert template.layout in ("lanes", "pixels", "rows")
    assert template.format == "dense" or template.format in FORMATS
    assert name in formats_read()[template.format]


def test_templates_pack_the_index_that_they_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    index = LayerWeight.index

    def noted(self: LayerWeight, format: IndexFormat, filters: int | None = None) -> KernelIndex:
        taken.append(format.name)
        return index(self, format, filters)

    monkeypatch.setattr(LayerWeight, "index", noted)
    for workload, structure, density in CASES.values():
        values = pruned(workload, structure, density, 0)
        w = workload.with_zeros_of(values)
        for template in (t for t in TEMPLATES.values() if t.refusal(w) is None):
            taken.clear()
            candidate, weight = template.candidates(w)[0], LayerWeight(values, w.weight_shape)
            packed = template.pack(w, candidate, weight, layouts_of(template, w, (0, 0, 0, 0), 0))
            assert set(taken) <= {template.format}
            # parts beside the values say where these are, a division of the work among threads apart
            assert (len(packed.keys() - {"bounds"}) > 1) == (template.format != "dense"), packed.keys()


def test_the_page_says_which_formats_kernels_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compiler.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (`[^|]+) \| ([^|]+) \|$", page.split("| index format |")[1].split("\n\n")[0], re.M
    )
    said = {f: set(re.findall("`(.+?)`", by)) for formats, by in rows for f in re.findall("`(.+?)`", formats)}
    assert said == {name: set(read_by) for name, read_by in formats_read().items() if name != "dense"}


def test_the_map_format_of_a_layout_is_one_that_its_kernels_read() -> None:
    layouts = {f.layout for f in FEATURE_MAP_FORMATS.values()} - {""}
    assert layouts == {t.layout for t in TEMPLATES.values()} - {"lanes", "rows"}
    assert PixelLayout(3, 4, 5).format == "pixel-bitmap"
    with pytest.raises(FormatError, match=r"compacted-pixels: no kernel on pixels.*allowed: pixel-bitmap"):
        PixelLayout(3, 4, 5, format="compacted-pixels")
    with pytest.raises(RegistryError, match="known: compacted-pixels, pixel-bitmap"):
        PixelLayout(3, 4, 5, format="runs")


@pytest.mark.parametrize("name", [n for n, t in TEMPLATES.items() if t.layout == "lanes"])
def test_lane_templates_refuse_to_build_without_layouts(name: str) -> None:
    plain, alone = conv(8, (8, 8), 8), conv(8, (8, 8), 8, groups=8)
    on_levels = replace(alone, maps=UINT8, result=UINT8, weights=INT8, target=PAIRS)
    cases = ((plain, "connectivity"), (plain, "dense"), (on_levels, "dense"))
    found = (w.with_zeros_of(pruned(w, s, 0.1, 0)) for w, s in cases)
    workload = next(w for w in found if TEMPLATES[name].refusal(w) is None)
    candidate = TEMPLATES[name].candidates(workload)[0]
    with pytest.raises(ValueError, match="lane layouts"):
        TEMPLATES[name].build(workload, candidate, Layouts(), "kernel")


def test_workload_and_candidate_survive_their_text() -> None:
    workload = conv(
        12, (15, 15), 16, batch=3, stride=(2, 1), padding=(0, 1, 2, 3), covers=((1, 0.123456),), target=AVX2
    )
    assert Workload.from_key(workload.key_exact()) == workload
    assert workload.key() != workload.key_exact()
    assert workload.key() == replace(workload, covers=((1, 0.12),)).key()
    assert workload.key() != replace(workload, target=NEON).key()
    candidate = Candidate("taps", {"R": 4, "rows": 2})
    assert Candidate.from_json(candidate.to_json()) == candidate


@pytest.mark.parametrize("element", [FLOAT16, BFLOAT16], ids=str)
def test_maps_of_other_types_are_refused_with_a_reason(element: ElementType) -> None:
    kinds = {"maps": element, "result": element, "weights": element}
    workload = conv(12, (15, 15), 16, covers=dense_covers(), **kinds)
    assert Workload.from_key(workload.key_exact()) == workload
    assert workload.key() != conv(12, (15, 15), 16).key()
    assert workload.input_bytes == 2 * 12 * 15 * 15
    assert workload.sums is FLOAT32
    for template in TEMPLATES.values():
        reason = str(template.refusal(workload))
        if element in template.maps:
            assert reason == "the target multiplies no bfloat16" or "cost more" in reason
        else:
            assert f"these are {element}" in reason
    assert computed(FLOAT16.name) is None


def in_pairs(workload: Workload) -> Workload:
    """The workload on maps of bfloat16, for a processor that multiplies pairs of them."""
    return replace(workload, maps=BFLOAT16, result=BFLOAT16, weights=BFLOAT16, target=PAIRS)


@NEEDS_PAIRS
@pytest.mark.parametrize("name", CASES)
def test_maps_in_pairs_of_bfloat16(name: str, compile_kernels: Any, dense_reference: Any) -> None:
    workload, structure, density = CASES[name]
    for w in (workload, replace(workload, threads=2)):
        case = Case(in_pairs(w), pruned(w, structure, density, len(name)), 3, dense_reference)
        taken = case.check(compile_kernels, (1, 0, 2, 1), slack=1)
        odd = w.filters % 2 or (w.channels // w.groups > 1 and w.groups > 1 and w.channels // w.groups % 2)
        uneven = w.depthwise and w.filters != w.channels
        alone = w.op == "linear" and w.width < 8
        assert (taken > 0) == (not (odd or uneven or alone or w.residual_channels))


@NEEDS_PAIRS
@settings(DRAWN, max_examples=10)
@given(drawn=cases())
def test_drawn_cases_in_pairs_of_bfloat16(
    drawn: tuple[Workload, str, float, tuple[int, int, int, int], int],
    compile_kernels: Any,
    dense_reference: Any,
) -> None:
    workload, structure, density, halo, slack = drawn
    even = {"filters": 2 * workload.filters, "passed": 2 * workload.passed, "residual_channels": 0}
    channels = workload.channels if workload.groups == 1 else 2 * workload.channels
    workload = in_pairs(replace(workload, channels=channels, **even))
    case = Case(workload, pruned(workload, structure, density, 7), 7, dense_reference)
    assert case.check(compile_kernels, halo, slack) > 0


def test_covers_count_the_taps_that_filters_share() -> None:
    weight = np.zeros((6, 2, 1, 1), np.float32)
    weight[0, 0] = weight[3, 1] = 1.0
    covers = dict(covers_of(weight))
    assert covers == {1: 2 / 12, 2: 2 / 6, 4: 2 / 4, **dict.fromkeys((8, 16, 32, 64, 128), 2 / 2)}
