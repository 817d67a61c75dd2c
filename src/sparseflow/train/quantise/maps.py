"""Feature maps on levels: where their range comes from, and quantisers that learn it or hold it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparseflow.core.calibrated_ranges import RangeCounter
from sparseflow.core.map_ranges import MapRange, MapRanges
from sparseflow.errors import StructureError
from sparseflow.train.methods.observe import observing
from sparseflow.train.quantise.weights import positive, scaled_gradient, straight_through

_PER_BATCH = 4096  # elements of a map that are looked at


def sample_range(method: str, sample: Tensor, bits: int) -> tuple[float, float]:
    """The range that ``method`` of `RANGES` draws from a sample of a map, for levels of ``bits``."""
    counter = RangeCounter()
    counter.add(sample.float().cpu().numpy())
    found = counter.range(method, bits)
    return with_zero(found.low, found.high)


def with_zero(low: float, high: float) -> tuple[float, float]:
    """The range with zero in it, and not empty."""
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (0.0, 1.0)


class MapLevels(nn.Module):
    """A map on ``2^bits`` equally spaced levels, with a learned step and, where it has negative values, lower end.

    With N = 2^bits - 1 and z = round(clip(-low/s, 0, N)): ``x̂ = s · round(clip(x/s, -z, N - z))``. Rounding counts as
    the identity in the gradient, and gradients of step and lower end are multiplied by ``1 / √(n N)``, n being the
    elements of a sample's map. Zero is a level, so padding and the zeros of a ReLU stay. A map without negative values
    has z = 0.

    Parameters
    ----------
    low, high : float
        The range at the start.
    bits : int

    References
    ----------
    S. Esser et al., arXiv 1902.08153, section 2; Y. Bhalgat et al., "LSQ+: improving low-bit quantization through
    learnable offsets and better initialization", CVPR Workshops 2020, arXiv 2004.09576, sections 3.1 (learned lower
    end) and 3.2 (start with the least squared error).
    """

    def __init__(self, low: float, high: float, bits: int = 8) -> None:
        super().__init__()
        low, high = with_zero(low, high)
        self.bits, self.most, self.signed = bits, 2**bits - 1, low < 0
        self.step = nn.Parameter(torch.tensor(float(high - low) / self.most))
        self.low = nn.Parameter(torch.tensor(float(low)), requires_grad=low < 0)

    def forward(self, x: Tensor) -> Tensor:
        """The map on its levels, same shape, float32."""
        factor = (self.most * max(x[0].numel() if x.ndim > 1 else x.numel(), 1)) ** -0.5
        step = scaled_gradient(positive(self.step), factor)
        v = x.float() / step
        if not self.signed:
            v = v.clamp(0, self.most)
        else:
            zero = (-scaled_gradient(self.low, factor) / step).clamp(0, self.most)
            zero = straight_through(zero, zero.round())
            v = torch.minimum(torch.maximum(v, -zero), self.most - zero)
        return straight_through(v, v.round()) * step

    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        with torch.no_grad():
            step = positive(self.step)
            zero = (-self.low / step).clamp(0, self.most).round()
            return float(-zero * step) + 0.0, float((self.most - zero) * step)

    def before(self, _layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook of the layer that reads the map."""
        return (self(args[0]), *args[1:])


def map_samples(model: nn.Module, names: Iterable[str], inputs: Iterable[Tensor]) -> dict[str, Tensor]:
    """Some elements of the map that each layer reads, over all inputs; the extremes are always among them.

    Raises
    ------
    StructureError
        If a layer does not run.
    """
    names = list(names)
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def see(name: str, _layer: nn.Module, x: Tensor) -> None:
        flat = x.detach().float().flatten()
        some = flat[:: max(1, flat.numel() // _PER_BATCH) | 1]
        found[name].append(torch.cat([some, flat.min()[None], flat.max()[None]]).cpu())

    for _ in observing(model, names, see, inputs):
        pass
    silent = next((name for name in names if not found[name]), None)
    if silent is not None:
        raise StructureError(f"layer {silent!r}: it does not run on the calibration data; exclude it")
    return {name: torch.cat(parts) for name, parts in found.items()}


def first_readers(model: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, str]:
    """For each layer the first one that reads the same map as it does; itself where none did before.

    Parameters
    ----------
    model : nn.Module
    names : iterable of str
    x : Tensor
        An input, for one call; a few samples are enough.
    """
    seen: list[tuple[Tensor, int, str]] = []  # what is held here gets no second life as another tensor
    first: dict[str, str] = {}

    def see(name: str, _layer: nn.Module, x: Tensor) -> None:
        same = (n for t, version, n in seen if t is x and version == x._version)
        first.setdefault(name, next(same, name))
        seen.append((x, x._version, name))

    for _ in observing(model, names, see, [x]):
        pass
    return first


@contextmanager
def rounded_maps(model: nn.Module, ranges: MapRanges) -> Iterator[None]:
    """Inside the ``with`` block the layers read maps on the recorded levels.

    Raises
    ------
    StructureError
        If the model has no such layer.
    """
    modules = dict(model.named_modules())
    unknown = next((r.name for r in ranges.layers if r.layer not in modules), None)
    if unknown is not None:
        raise StructureError(
            f"map ranges: found {unknown!r}, but the model has no such layer; quantise it again"
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    handles: list[RemovableHandle] = []
    try:
        for record in ranges.layers:
            quantiser = MapLevels(record.low, record.high, record.bits).to(device).requires_grad_(False)
            handles.append(modules[record.layer].register_forward_pre_hook(quantiser.before))
        yield
    finally:
        for handle in handles:
            handle.remove()


def range_of(name: str, quantiser: MapLevels, weight_bits: int) -> MapRange:
    """The record of a layer's map."""
    low, high = quantiser.ends()
    return MapRange(f"{name}.weight", low, high, quantiser.bits, weight_bits)
