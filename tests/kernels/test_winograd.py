"""Winograd: its matrices, its error against the stated bound, awkward shapes, and the option that leaves it out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparseflow.kernels.lane.toom_cook import ERRORS, SIZES, error_bound, matrices
from sparseflow.kernels.lane.winograd import Winograd, phase_taps
from sparseflow.kernels.target.cpu import AVX2, AVX512
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.tuning.selector import Selector
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Layouts, Workload, dense_covers, natural_layouts

WINOGRAD = Winograd()


def conv(channels: int, size: tuple[int, int], filters: int, **more: Any) -> Workload:
    """A 3x3 convolution that keeps the map's size unless told otherwise."""
    fields: dict[str, Any] = {
        "batch": 1, "kernel_size": (3, 3), "padding": (1, 1, 1, 1), "covers": dense_covers(), "target": AVX512, **more
    }  # fmt: skip
    return Workload("conv2d", channels=channels, height=size[0], width=size[1], filters=filters, **fields)


def candidate(mh: int, mw: int, r: int = 4, t: int = 2) -> Candidate:
    """A candidate by its parameters."""
    return Candidate("winograd", {"mh": mh, "mw": mw, "R": r, "T": t})


class Run:
    """Operands of a workload with the dense reference in float64 and the sums of |w||x|."""

    def __init__(self, w: Workload, reference: Any, seed: int = 0, positive: bool = False) -> None:
        random = np.random.default_rng(seed)
        out = (w.batch, w.filters, w.out_height, w.out_width)
        self.w = w
        self.x = random.standard_normal((w.batch, w.channels, w.height, w.width)).astype(np.float32)
        self.x = np.maximum(self.x, 0) if positive else self.x
        self.weight = random.standard_normal(w.weight_shape).astype(np.float32)
        self.bias = random.standard_normal(w.filters).astype(np.float32) if w.bias else None
        self.residual = random.standard_normal(out).astype(np.float32) if w.residual else None
        self.expected = reference(w, self.x, self.weight, self.bias, self.residual)
        plain = replace(w, activation="none")
        self.sums = reference(plain, np.abs(self.x), np.abs(self.weight), None, None)

    def function(self, chosen: Candidate, layouts: Layouts, name: str) -> Any:
        """The kernel."""
        return WINOGRAD.build(self.w, chosen, layouts, name)

    def error(self, kernels: Any, name: str, chosen: Candidate, layouts: Layouts) -> float:
        """The largest difference relative to the largest sum of |w||x|; checks the output's halo on the way."""
        assert layouts.input is not None
        assert layouts.output is not None
        packed = WINOGRAD.pack(self.w, chosen, LayerWeight(self.weight, self.w.weight_shape), layouts)
        extra = [a for a in (self.bias,) if a is not None]
        if self.residual is not None and layouts.residual is not None:
            extra.append(layouts.residual.pack(self.residual))
        out = layouts.output
        y = kernels(name, [layouts.input.pack(self.x), *packed.values(), *extra], (self.w.batch, out.size))
        shape = (self.w.batch, out.channels, out.plane, out.lanes)
        used = out.rows * out.cols
        expected = out.pack(self.expected.astype(np.float32)).reshape(shape)[:, :, :used]
        difference = np.abs(y.reshape(shape)[:, :, :used] - expected)
        return float(difference.max() / self.sums.max())


@pytest.mark.parametrize(("m", "r"), [(m, r) for r in SIZES for m in SIZES[r]])
def test_the_matrices_are_an_exact_correlation(m: int, r: int) -> None:
    random = np.random.default_rng(m)
    x, w = random.standard_normal(m + r - 1), random.standard_normal(r)
    f = matrices(m, r)
    y = f.outputs @ ((f.weights @ w) * (f.inputs @ x))
    np.testing.assert_allclose(y, np.correlate(x, w, "valid"), rtol=0, atol=1e-12)


LARGE = {
    "3x3": conv(64, (48, 48), 16),
    "7x7, stride 2": conv(16, (96, 96), 16, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3, 3, 3)),
}


@pytest.mark.parametrize("positive", [False, True], ids=["any sign", "after a relu"])
@pytest.mark.parametrize("name", ["3x3", pytest.param("7x7, stride 2", marks=pytest.mark.slow)])
def test_the_error_keeps_the_stated_bound(
    name: str, positive: bool, compile_kernels: Any, dense_reference: Any
) -> None:
    run = Run(LARGE[name], dense_reference, positive=positive)
    layouts, taps = natural_layouts(run.w), phase_taps(run.w)[0]
    chosen = {f"m{m}": candidate(m, m) for m in SIZES[taps]}
    kernels = compile_kernels({name: run.function(c, layouts, name) for name, c in chosen.items()})
    errors = {m: run.error(kernels, f"m{m}", chosen[f"m{m}"], layouts) for m in SIZES[taps]}
    assert all(errors[m] <= error_bound((m, taps)) for m in errors), errors
    assert errors[max(errors)] > errors[2]  # the bound is not empty: larger tiles do lose digits


def test_the_bound_of_a_mixed_tile_is_that_of_its_longer_side() -> None:
    assert error_bound((2, 3), (4, 3)) == error_bound((4, 3), (2, 3)) == error_bound((4, 3)) == ERRORS[6]
    assert error_bound((3, 4)) == error_bound((4, 3)) > error_bound((1, 4)) == error_bound((1, 3))
    assert sorted(ERRORS.values()) == list(ERRORS.values())


AWKWARD = {
    "odd everything": conv(11, (29, 23), 13, bias=True, residual=True, activation="relu"),
    "batch 2": conv(9, (15, 27), 10, batch=2, bias=True, activation="silu"),
    "no padding": conv(8, (22, 18), 9, padding=(0, 0, 0, 0), residual=True),
    "lopsided padding": conv(8, (21, 30), 12, padding=(0, 2, 1, 0), bias=True),
    "wide padding": conv(8, (16, 16), 8, padding=(3, 4, 3, 4), activation="relu6"),
    "two threads": conv(17, (28, 28), 19, threads=2, bias=True, activation="relu"),
    "two threads, batch 3": conv(8, (14, 14), 21, batch=3, threads=2, residual=True),
    "3 channels": conv(3, (26, 30), 9, bias=True, activation="relu"),
    "7x7 with stride 2, two threads": conv(
        3, (53, 44), 11, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3, 3, 3), threads=2, bias=True
    ),
    "8x8 with stride 2": conv(
        5, (50, 61), 9, kernel_size=(8, 8), stride=(2, 2), padding=(3, 4, 3, 4), batch=2
    ),
    "5x5 with stride 2, residual": conv(
        4, (45, 47), 8, kernel_size=(5, 5), stride=(2, 2), padding=(2, 2, 2, 2), residual=True
    ),
    "4x7 with strides 1 and 2": conv(
        9, (24, 41), 10, kernel_size=(4, 7), stride=(1, 2), padding=(1, 3, 2, 3)
    ),
    "9x3 with strides 3 and 1": conv(
        2, (61, 22), 8, kernel_size=(9, 3), stride=(3, 1), padding=(3, 1, 3, 1), bias=True, target=AVX2
    ),
    "eight lanes": conv(12, (28, 20), 12, batch=2, bias=True, target=AVX2),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n.startswith(("7x7", "5x5")) else []) for n in AWKWARD],
)
def test_awkward_shapes(name: str, compile_kernels: Any, dense_reference: Any) -> None:
    run = Run(AWKWARD[name], dense_reference, seed=len(name))
    w = run.w
    natural = natural_layouts(w)
    assert natural.input is not None
    assert natural.output is not None
    top, left, bottom, right = natural.input.halo
    wide = natural.output.with_halo((1, 0, 1, 1))
    layouts = Layouts(
        natural.input.with_halo((top + 1, left, bottom, right + 2)),
        wide if wide.can_fill_halo() else natural.output,
        natural.output.with_halo((0, 1, 0, 0)) if w.residual else None,
    )
    (bh, bw), (rh, rw) = natural.output.block, phase_taps(w)
    pairs = [(mh, mw) for mh, mw in itertools.product(SIZES[rh], SIZES[rw]) if mh <= bh and mw <= bw]
    shapes = itertools.cycle([(4, 2), (5, 3), (8, 1), (1, 5)])
    chosen = {f"k{i}": candidate(*pair, *next(shapes)) for i, pair in enumerate(pairs[::3])}
    kernels = compile_kernels({n: run.function(c, layouts, n) for n, c in chosen.items()})
    for n, c in chosen.items():
        bound = (
            error_bound((c.parameters["mh"], rh), (c.parameters["mw"], rw)) + 2e-7
        )  # and the epilogue's rounding
        assert run.error(kernels, n, c, layouts) <= bound, c


@pytest.mark.parametrize("size", [(56, 56), (28, 28), (14, 14), (7, 7), (1, 40), (224, 224), (13, 9)])
def test_tiles_lie_in_the_block_and_fit_the_registers(size: tuple[int, int]) -> None:
    w = conv(32, size, 48)
    bh, bw = w.output_layout.block
    for target in (AVX512, AVX2):
        for c in WINOGRAD.candidates(replace(w, target=target)):
            p = c.parameters
            assert p["R"] * p["T"] <= target.vectors.accumulators
            if target == AVX512:
                assert p["mh"] <= bh
                assert p["mw"] <= bw


def test_large_maps_prefer_large_tiles() -> None:
    best = WINOGRAD.candidates(conv(64, (224, 224), 64))[0].parameters
    assert best["mh"] >= 4
    assert best["mw"] >= 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel_size": (3, 1)}, "not 3x1 with stride 1x1"),
        ({"stride": (2, 1)}, "not 3x3 with stride 2x1"),
        ({"op": "linear"}, "takes 3 or 4 taps"),
        ({"dilation": (1, 2)}, r"dilation \(1, 2\)"),
        ({"groups": 2}, "2 groups"),
        ({"channels": 2}, "2 channels"),
        ({"filters": 5}, "5 filters"),
        ({"height": 3, "width": 3}, "one pixel"),
    ],
)
def test_what_it_does_not_take_has_a_reason(change: dict[str, Any], reason: str) -> None:
    w = conv(32, (28, 28), 32)
    assert WINOGRAD.rejects(w) is None
    with pytest.raises(AssertionError, match=reason):
        assert not WINOGRAD.rejects(replace(w, **change)), WINOGRAD.rejects(replace(w, **change))


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_it_competes_in_every_3x3_layer(density: float, tmp_path: Path, host: Any) -> None:
    w = conv(64, (28, 28), 64, covers=tuple((r, density) for r in (1, 2, 4, 8, 16)))
    selector = Selector(host, "test machine", measure=False, folder=tmp_path)
    choice = selector.choose(w, LayerWeight(np.ones(w.weight_shape, np.float32), w.weight_shape))
    assert "winograd" in {t.template for t in choice.times}
    if density == 1.0:
        assert choice.best.template == "winograd"


def test_exact_leaves_it_out_and_says_so(tmp_path: Path, host: Any) -> None:
    w = conv(64, (28, 28), 64)
    weight = np.ones(w.weight_shape, np.float32)
    exact = Selector(host, "test machine", measure=False, folder=tmp_path, exact=True)
    choice = exact.choose(w, LayerWeight(weight, w.weight_shape))
    assert "winograd" not in {t.template for t in choice.times}
    assert {r.template: r.reason for r in choice.rejected}["winograd"] == "left out by --exact"
    free = Selector(host, "test machine", measure=False, folder=tmp_path)
    assert exact._key(w) != free._key(w)
    strided = {
        r.template: r.reason
        for r in exact.choose(replace(w, stride=(2, 2)), LayerWeight(weight, w.weight_shape)).rejected
    }
    assert "stride" in strided["winograd"]
    assert [name for name, t in TEMPLATES.items() if not t.exact] == ["winograd"]


def test_the_option_reaches_the_saved_plan(tmp_path: Path) -> None:
    from sparseflow.engine.compile import compile as compile_model
    from sparseflow.engine.runtime.manifest import read_manifest

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU()).eval()
    x = torch.randn(1, 16, 28, 28)
    for exact in (False, True):
        engine = compile_model(model, (x,), measure=False, exact=exact)
        np.testing.assert_allclose(engine(x.numpy()), model(x).detach().numpy(), rtol=0, atol=1e-4)
        engine.save(tmp_path / str(exact))
        plan = read_manifest(tmp_path / str(exact)).plan
        assert plan.exact is exact
        (layer,) = plan.layers
        left_out = ("winograd", "left out by --exact") in {(r.template, r.reason) for r in layer.rejected}
        assert left_out is exact
        assert any(c.template == "winograd" for c in layer.candidates) is not exact
