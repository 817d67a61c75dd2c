"""Streams: what is recomputed in parts equals the whole, for any changed region, and steps say what they did."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparseflow
from sparseflow.engine.stream.stream import StreamEngine
from sparseflow.errors import CompileError, InputError

nn = torch.nn
Tensor = Any
SHAPE = (1, 3, 37, 30)


class Residual(nn.Module):
    """Strides, a projected residual, an unfused sum, concat, depthwise, dilation, both pools; ragged maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 5, stride=2, padding=2)
        self.body = nn.Conv2d(20, 20, 3, padding=1)
        self.project = nn.Conv2d(20, 24, 1, stride=2)
        self.wide = nn.Conv2d(20, 24, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.dilated = nn.Conv2d(48, 17, 3, padding=2, dilation=2)
        self.head = nn.Linear(17 * 4 * 3, 40)
        self.last = nn.Linear(40, 7)
        with torch.no_grad():
            self.dilated.weight[torch.rand(self.dilated.weight.shape) < 0.85] = 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + x)
        y = torch.relu(self.wide(x)) + self.project(x)
        y = torch.cat([y, self.depthwise(y)], 1)
        y = nn.functional.max_pool2d(torch.relu(self.dilated(y)), 3, 2, 1)
        y = nn.functional.avg_pool2d(y, 2, 1, 0)
        return self.last(torch.relu(self.head(torch.flatten(y, 1)))), y


def chain() -> Any:
    """Stride 1 and enough channels for Winograd."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Conv2d(24, 16, 3, padding=1), nn.Sigmoid()).eval()


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def frame() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exact(network: Any, frame: Tensor) -> StreamEngine:
    return sparseflow.compile_stream(network, (frame,), measure=False, exact=True)


@pytest.fixture(scope="module")
def fast(frame: Tensor) -> StreamEngine:
    return sparseflow.compile_stream(chain(), (frame,), measure=False)


@st.composite
def changes(draw: Callable[..., Any]) -> list[tuple[int, int, int, int, float]]:
    """Some frames after the first: a region of the one before gets another value."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        top, left = draw(st.integers(0, 36)), draw(st.integers(0, 29))
        height, width = draw(st.integers(0, 37)), draw(st.integers(1, 30))
        found.append((top, left, height, width, draw(st.sampled_from([-1.0, 0.0, 0.5, 3.0]))))
    return found


def altered(frame: Tensor, change: tuple[int, int, int, int, float]) -> Tensor:
    top, left, height, width, value = change
    out = frame.clone()
    out[..., top : top + height, left : left + width] = value
    return out


@settings(max_examples=25, deadline=None)
@given(changes=changes())
def test_any_changed_regions_give_the_bits_of_full_recomputation(
    exact: StreamEngine, network: Any, frame: Tensor, changes: list[Any]
) -> None:
    x = frame
    exact.reset()
    exact(x)
    for change in changes:
        x = altered(x, change)
        parts = exact(x)
    exact.reset()
    whole = exact(x)
    with torch.inference_mode():
        wanted = network(x)
    for part, full, reference in zip(parts, whole, wanted, strict=True):
        assert torch.equal(part, full)
        torch.testing.assert_close(part, reference, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(changes=changes())
def test_with_winograd_they_are_equal_to_rounding(
    fast: StreamEngine, frame: Tensor, changes: list[Any]
) -> None:
    assert "winograd" in {layer.kernel for layer in fast.layers}
    network, x = chain(), frame
    for change in changes:
        x = altered(x, change)
        y = fast(x)
    with torch.inference_mode():
        torch.testing.assert_close(y, network(x), rtol=1e-4, atol=1e-5)


def test_steps_tell_what_changed(fast: StreamEngine, frame: Tensor) -> None:
    fast.reset()
    fast(frame)
    assert fast.last is not None
    assert all(s.pixels == s.pixels_total for s in fast.last.steps)
    x = frame.clone()
    x[..., 20, 9] += 1.0
    fast(x)
    pixels = [s.pixels for s in fast.last.steps]
    assert pixels[:2] == [1, 9]  # one 3x3 layer behind the pixel
    assert 0 < pixels[2] <= 25
    layers = [s for s in fast.last.steps if s.macs]
    assert [s.tiles for s in layers][:2] == [1, 4]
    assert layers[0].macs_reached == round(layers[0].macs * 9 / (37 * 30))
    assert fast.last.time_s >= fast.last.rest_s > 0.0


def test_a_frame_that_is_the_same_costs_nothing_and_gives_the_same(fast: StreamEngine, frame: Tensor) -> None:
    fast.reset()
    first = fast(frame)
    again = fast(frame.clone())
    assert torch.equal(first, again)
    assert fast.last is not None
    assert all(s.tiles == s.pixels == 0 for s in fast.last.steps)
    again[:] = 0.0  # what is returned is the caller's
    assert torch.equal(first, fast(frame))


def test_a_threshold_drops_small_changes_and_does_not_drift(frame: Tensor) -> None:
    engine = sparseflow.compile_stream(chain(), (frame,), threshold=0.05, measure=False)
    first = engine(frame)
    step = 0.03 * float(frame.abs().max())
    assert torch.equal(engine(frame + step), first)
    assert engine.last is not None
    assert engine.last.steps[0].pixels == 0
    moved = engine(frame + 2 * step)  # measured from what was kept, not from the last frame
    assert engine.last.steps[0].pixels > 0
    with torch.inference_mode():
        error = (moved - chain()(frame + 2 * step)).abs().max()
    assert 0.0 < float(error) < 0.2


def test_numpy_in_numpy_out_and_no_number_is_a_change(fast: StreamEngine, frame: Tensor) -> None:
    fast.reset()
    x = frame.numpy().copy()
    first = fast(x)
    assert isinstance(first, np.ndarray)
    kept, x[0, 0, 3, 3] = x[0, 0, 3, 3], np.nan
    for value in (np.nan, kept):
        x[0, 0, 3, 3] = value
        y = fast(x)
        assert fast.last is not None
        assert fast.last.steps[0].pixels == 1
    np.testing.assert_allclose(y, first, rtol=1e-5)
    with pytest.raises(InputError, match="2 inputs given, 1 expected"):
        fast(x, x)
    with pytest.raises(InputError, match="expected"):
        fast(x[:, :, :9])


class Attended(nn.Module):
    """A convolution behind a softmax over the map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.softmax(self.first(x), -1))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Attended(), SHAPE, "second: stands behind relax.nn.softmax"),
        (nn.Sequential(nn.Flatten(), nn.Linear(27, 4)), (1, 3, 3, 3), "no convolution to recompute in parts"),
        (nn.Conv2d(3, 4, 3), (2, 3, 9, 9), r"a stream takes float32 frames \(1, C, H, W\)"),
    ],
)
def test_what_a_stream_cannot_run_is_refused(model: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        sparseflow.compile_stream(model.eval(), (torch.zeros(shape),), measure=False)


@pytest.mark.slow
def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "streams.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    exec(compile(example.replace("threshold=0.0", "measure=False"), str(page), "exec"), {})
    assert "frame 100 of 4096 pixels changed" in capsys.readouterr().out


def test_a_threshold_is_a_fraction(frame: Tensor) -> None:
    with pytest.raises(CompileError, match=r"threshold=1\.5: a fraction"):
        sparseflow.compile_stream(chain(), (frame,), threshold=1.5)
