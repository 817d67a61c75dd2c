"""Engines whose layers multiply levels: near torch, exact where levels hold all, refused where they cannot be."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow
from sparseflow.core.calibrated_ranges import RANGES, CalibratedRanges, LayerRanges, Range
from sparseflow.core.element_type import UINT8
from sparseflow.core.map_profile import MapProfile
from sparseflow.core.map_ranges import MapRange, MapRanges
from sparseflow.core.steps import filter_steps, on_levels
from sparseflow.engine.calibrate import measure_ranges
from sparseflow.engine.frontends.importer import import_model
from sparseflow.engine.layer_error import LayerError
from sparseflow.errors import CompileError, InputError
from tests.engine.test_compile import NETS, _model
from tests.kernels.conftest import NEEDS_QUADS
from tests.kernels.test_contract import conv

SLOW = pytest.mark.slow
VARIANTS = [
    ("block:4x4", 1, 2),
    pytest.param("dense", 2, 1, marks=SLOW),
    pytest.param("unstructured", 1, 1, marks=SLOW),
]


def samples(shape: tuple[int, ...], count: int = 4, batch: int = 1) -> list[tuple[torch.Tensor]]:
    random = np.random.default_rng(1)
    return [
        (torch.from_numpy(random.standard_normal((batch, *shape)).astype(np.float32)),) for _ in range(count)
    ]


@NEEDS_QUADS
@pytest.mark.parametrize(("structure", "batch", "threads"), VARIANTS)
@pytest.mark.parametrize(
    "name", [n if n in ("resnet", "mobilenet", "transformer") else pytest.param(n, marks=SLOW) for n in NETS]
)
def test_networks_are_near_torch(name: str, structure: str, batch: int, threads: int) -> None:
    model = _model(name, structure)
    calls = samples(NETS[name][1], batch=batch)
    engine = sparseflow.compile(
        model, calls[0], measure=False, threads=threads, precision="int8", calibration=calls
    )
    expected = [model(*call).detach() for call in calls]
    spread = float(torch.stack(expected).std())
    worst = max(float((engine(*c) - e).abs().max()) for c, e in zip(calls, expected, strict=True))
    assert worst < 0.05 * float(expected[0].abs().max()) + 0.3 * spread
    on_levels = [layer for layer in engine.plan.layers if layer.element == "uint8"]
    assert len(on_levels) > len(engine.plan.layers) / 2
    assert engine.plan.precision == "int8"


@NEEDS_QUADS
def test_what_lies_on_levels_is_exact() -> None:
    """Whole numbers as weights, bias and input: every sum is one of the result's float32 numbers."""
    torch.manual_seed(0)
    model = nn.Conv2d(5, 6, 3, padding=1).eval()
    with torch.no_grad():
        model.weight.copy_(torch.randint(-9, 10, model.weight.shape) / 4)
        model.bias.copy_(torch.randint(-9, 10, model.bias.shape) / 4)
    x = torch.randint(-100, 156, (1, 5, 9, 11)).float()
    x[0, 0, 0, :2] = torch.tensor([-100.0, 155.0])
    engine = sparseflow.compile(model, (x,), measure=False, precision="int8", calibration=[(x,)])
    assert [layer.element for layer in engine.plan.layers] == ["uint8"]
    np.testing.assert_allclose(engine(x), model(x).detach(), rtol=1e-6, atol=1e-4)


@NEEDS_QUADS
def test_ranges_are_measured_once_and_given_again() -> None:
    model = _model("resnet", "block:4x4")
    calls = samples(NETS["resnet"][1])
    ranges = measure_ranges(import_model(model, calls[0]), calls)
    assert ranges.calls == len(calls)
    assert any(layer.residual is not None for layer in ranges.layers)
    first, second = (
        sparseflow.compile(model, calls[0], measure=False, precision="int8", calibration=c)
        for c in (ranges, calls)
    )
    np.testing.assert_array_equal(first(*calls[0]), second(*calls[0]))


@NEEDS_QUADS
@pytest.mark.parametrize(
    "method", [*list(RANGES)[:1], *(pytest.param(m, marks=SLOW) for m in list(RANGES)[1:])]
)
def test_every_way_to_draw_ranges_compiles(method: str) -> None:
    model, calls = _model("mobilenet", "dense"), samples(NETS["mobilenet"][1])
    engine = sparseflow.compile(
        model, calls[0], measure=False, precision="int8", calibration=calls, ranges=method
    )
    expected = model(*calls[0]).detach()
    assert float((engine(*calls[0]) - expected).abs().max()) < 0.2 * float(expected.abs().max())


@NEEDS_QUADS
def test_auto_leaves_layers_that_would_move_too_far_in_a_wider_type() -> None:
    """One channel of the second layer's map is a thousand times the others, which levels cannot tell apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)
    )
    with torch.no_grad():
        model[0].weight[0] *= 1000.0
        model[2].weight[:, 0] /= 1e6
    calls = samples((4, 20, 20))
    engine = sparseflow.compile(model.eval(), calls[0], measure=False, precision="auto", calibration=calls)
    first, second, third = engine.plan.layers
    assert (first.element, third.element) == ("uint8", "uint8")
    assert second.element in ("bfloat16", "float32")
    assert re.fullmatch(r"not on levels: its sums would move by [0-9.]+%, more than 5%", second.note)
    expected = model(*calls[0]).detach()
    assert float((engine(*calls[0]) - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_error_of_a_layer_is_that_of_its_sums(groups: int) -> None:
    random = np.random.default_rng(0)
    workload = conv(8, (9, 11), 16, groups=groups, stride=(2, 1), padding=(1, 0, 2, 3))
    weight = random.standard_normal(workload.weight_shape).astype(np.float32)
    x = random.standard_normal((2, 8, 9, 11)).astype(np.float32)
    found = LayerError(workload, weight)
    for _ in range(3):
        found.add(x)
    source = UINT8.covering(float(x.min()), float(x.max()))
    steps = filter_steps(weight)

    def sums(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        left, right, top, bottom = (
            workload.padding[1],
            workload.padding[3],
            workload.padding[0],
            workload.padding[2],
        )
        padded = nn.functional.pad(torch.from_numpy(x), (left, right, top, bottom))
        return nn.functional.conv2d(
            padded, torch.from_numpy(w), stride=workload.stride, groups=groups
        ).numpy()

    exact, moved = (
        sums(a, b)
        for a, b in ((x, weight), (source.rounded(x), on_levels(weight, steps) * steps[:, None, None, None]))
    )
    expected = float(np.sqrt(np.square(moved - exact).mean() / np.square(exact).mean()))
    assert found.relative(Range(float(x.min()), float(x.max()))) == pytest.approx(expected, rel=0.4)
    nothing = LayerError(workload, 0 * weight)
    nothing.add(x)
    assert nothing.relative(Range(0.0, 1.0)) == 0.0


@NEEDS_QUADS
def test_ranges_that_training_fixed_are_taken(tmp_path: Any) -> None:
    """The second layer's map ends at 1: what the first writes, and a max pool between them, stops there."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1, bias=False)
    )
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[3].weight.copy_(torch.eye(4)[:, :, None, None])
    x = torch.linspace(0.0, 2.0, 64).reshape(1, 1, 8, 8)
    trained = MapRanges((MapRange("3.weight", 0.0, 1.0),))
    trained.save(tmp_path / "quantisation.json")
    for given in (trained, tmp_path / "quantisation.json"):
        engine = sparseflow.compile(
            model.eval(), (x,), measure=False, precision="int8", calibration=[(x,)], ranges=given
        )
        expected = model(x).detach().clamp(max=1.0)
        np.testing.assert_allclose(engine(x), expected, atol=0.01)
    strange = MapRanges((MapRange("4.weight", 0.0, 1.0),))
    with pytest.raises(CompileError, match=r"ranges: 4 is no layer of this model"):
        sparseflow.compile(model, (x,), measure=False, precision="int8", calibration=[(x,)], ranges=strange)


@NEEDS_QUADS
def test_a_residual_in_levels_keeps_both_sides() -> None:
    """Both sides of a sum come from layers: neither may be read with the other's scale."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(100.0 * self.a(x) + self.b(x)))

    torch.manual_seed(0)
    model, calls = Net().eval(), samples((8, 12, 12))
    engine = sparseflow.compile(model, calls[0], measure=False, precision="int8", calibration=calls)
    expected = model(*calls[0]).detach()
    assert float((engine(*calls[0]) - expected).abs().max()) < 0.05 * float(expected.abs().max())


ONE = LayerRanges("weight", Range(-1.0, 1.0), Range(-1.0, 1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precision": "int8"}, CompileError, r"give calibration=\[inputs, ...\]"),
        ({"precision": "int8", "calibration": []}, InputError, "no inputs given"),
        (
            {"precision": "int8", "calibration": MapProfile((), 1)},
            CompileError,
            "between which numbers the maps lie",
        ),
        (
            {"precision": "int8", "calibration": CalibratedRanges((ONE, ONE), "min-max", 1)},
            CompileError,
            r"ranges of 2 layers \(weight, weight, …\) given, the model has 1",
        ),
        (
            {"precision": "int8", "calibration": [(torch.zeros(16, 8),)], "ranges": "max"},
            CompileError,
            "ranges='max': allowed: min-max, percentile, mse",
        ),
        ({"calibration": CalibratedRanges((ONE,), "min-max", 1)}, CompileError, "they are for int8"),
        (
            {"precision": "int8", "calibration": [(torch.full((16, 8), torch.nan),)]},
            CompileError,
            "a map holds a value that is not finite",
        ),
        (
            {"precision": "int8", "calibration": [], "target": "neon"},
            CompileError,
            "target neon has no instruction that multiplies uint8",
        ),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sparseflow.compile(nn.Linear(8, 8).eval(), (torch.randn(16, 8),), measure=False, **arguments)


def test_levels_hold_zero_and_cover_the_range() -> None:
    for low, high in ((0.0, 1.0), (-3.0, 5.0), (2.0, 7.0), (-4.0, -1.0), (0.0, 0.0)):
        element = UINT8.covering(low, high)
        assert float(element.decode(element.encode(np.zeros(1, np.float32)))[0]) == 0.0
        ends = element.rounded(np.array([min(low, 0.0), max(high, 0.0)], np.float32))
        np.testing.assert_allclose(ends, [min(low, 0.0), max(high, 0.0)], atol=0.51 * element.scale)
