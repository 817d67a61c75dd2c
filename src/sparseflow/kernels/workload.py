"""What a kernel has to compute, and the layouts of its tensors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow.core.codec import encode
from sparseflow.core.element_type import FLOAT32, ElementType, Quantised, element_type
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout, canonical
from sparseflow.kernels.target.base import Target, VectorUnit, target_from

Array = npt.NDArray[Any]

MAX_PATTERNS = 16
CODES = 16
"""Numbers that 4 bits tell apart."""
DENSEST = 0.7
"""Density of weights above which their index costs more than their zeros save."""
DENSEST_SHARED = 0.9
"""The same for taps that four filters share, of which there are a quarter as many."""
SHARED = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Workload:
    """One convolution or linear layer: all that decides which kernel is fastest, and so the complete cache key.

    A linear layer of ``T`` rows is a 1x1 convolution over a 1 x T map.

    Attributes
    ----------
    op : str
        ``conv2d`` or ``linear``.
    batch, channels, height, width : int
        The input map, NCHW.
    filters : int
        Output channels.
    kernel_size, stride, dilation : (int, int)
    padding : (int, int, int, int)
        Top, left, bottom, right.
    groups : int
    bias, residual : bool
        Whether the epilogue adds a bias per filter, and a tensor of the output's shape.
    activation : str
        One of `sparseflow.core.activations.fused`, applied last.
    parameter : float
        Of an activation that takes one.
    covers : tuple of (int, float)
        For each R of `SHARED`: the density of the taps when R consecutive filters share them, `passed` ones left out.
    threads : int
    target : Target
        The machine that the kernel is for: its registers and caches decide which candidates there are.
    passed : int
        The last filters, which have no weights: only bias and residual reach their channels.
    residual_channels : int
        Channels of a residual whose channels an index picks, one int32 for each filter, -1 where nothing is added;
        0 when the residual has the output's channels in order.
    weight_density : float
        Fraction of the weights that are not zero; where channels share slots, the first cover is larger.
    few_values : bool
        Whether the weights, where channels share slots, are at most `CODES` different numbers and zero.
    map_density : float
        Fraction of the input map that is not zero, from calibration; 1.0 when it is not calibrated.
    weights : ElementType
        All weights are numbers of this type; a kernel may store them as such.
    maps : ElementType
        In which the input is stored; bias and sums are of its `ElementType.accumulator`.
    result : ElementType
        In which output and residual are stored.
    halo : (int, int, int, int)
        Rows and columns around the output that its consumers read and this layer fills: top, left, bottom, right.
    """

    op: str
    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    residual: bool = False
    activation: str = "none"
    parameter: float = 0.0
    covers: tuple[tuple[int, float], ...] = ((1, 1.0),)
    patterns: tuple[tuple[int, float], ...] = ()
    threads: int = 1
    passed: int = 0
    residual_channels: int = 0
    weight_density: float = 1.0
    few_values: bool = False
    map_density: float = 1.0
    weights: ElementType = FLOAT32
    maps: ElementType = FLOAT32
    result: ElementType = FLOAT32
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    target: Target = field(kw_only=True)

    @property
    def vectors(self) -> VectorUnit:
        """The target's registers."""
        return self.target.vectors

    @property
    def sums(self) -> ElementType:
        """The type of the sums of products, and of the bias."""
        return element_type(self.maps.accumulator)

    @property
    def quantised(self) -> bool:
        """Whether it multiplies levels; what their sums mean is told by an operand, see `kernels.rescale`."""
        return isinstance(self.maps, Quantised)

    @property
    def live(self) -> int:
        """Filters that have weights; they come first."""
        return self.filters - self.passed

    @property
    def padded(self) -> int:
        """Filters, and those without weights that fill the last slot where levels are written."""
        per = self.result.per_slot if self.quantised else 1
        return math.ceil(self.filters / per) * per

    def blocks(self, r: int) -> int:
        """Blocks of ``r`` filters that hold all filters with weights; at least one."""
        return max(1, math.ceil(self.live / r))

    def fits(self, r: int) -> bool:
        """Whether the filters of each group can be cut into blocks of ``r``."""
        if self.groups > 1:
            return self.filters // self.groups % r == 0
        return self.blocks(r) * r <= self.padded

    @property
    def out_height(self) -> int:
        """Rows of the output map."""
        return self._out(self.height, 0)

    @property
    def out_width(self) -> int:
        """Columns of the output map."""
        return self._out(self.width, 1)

    def _out(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (size + self.padding[axis] + self.padding[axis + 2] - reach) // self.stride[axis] + 1

    @property
    def output_layout(self) -> LaneLayout:
        """The layout it writes unless its consumers ask for a halo."""
        lanes = self.vectors.lanes
        return canonical(self.filters, self.out_height, self.out_width, lanes, self.result)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """OIHW."""
        return (self.filters, self.channels // self.groups, *self.kernel_size)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer."""
        per_position = self.channels // self.groups * self.kernel_size[0] * self.kernel_size[1]
        return self.batch * self.filters * self.out_height * self.out_width * per_position

    @property
    def input_bytes(self) -> int:
        """Bytes of one image of the input map."""
        return self.maps.nbytes * self.channels * self.height * self.width

    @property
    def output_bytes(self) -> int:
        """Bytes of one image of the output map."""
        return self.result.nbytes * self.filters * self.out_height * self.out_width

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, zeros included."""
        return self.weights.nbytes * math.prod(self.weight_shape)

    @property
    def joins(self) -> bool:
        """Whether a filter reads all channels of a slot; a depthwise one reads its own."""
        return self.channels // self.groups > 1 or self.groups == 1

    @property
    def slotted(self) -> bool:
        """Whether the channels of a slot are multiplied and added up together."""
        return self.joins and self.maps.per_slot > 1

    @property
    def depth(self) -> int:
        """Planes of the input that a filter reads: its channels, as many together as share a slot."""
        return math.ceil(self.channels // self.groups / (self.maps.per_slot if self.slotted else 1))

    @property
    def taps(self) -> int:
        """Of a dense filter: positions of its kernel in all planes that it reads."""
        return self.depth * math.prod(self.kernel_size)

    @property
    def products(self) -> int:
        """Of which one sum consists."""
        return self.channels // self.groups * math.prod(self.kernel_size)

    @property
    def depthwise(self) -> bool:
        """One filter or more for each input channel, none shared."""
        return self.groups == self.channels and self.groups > 1

    def with_zeros_of(self, weight: Array) -> Workload:
        """This workload with the covers and patterns of ``weight`` (OIHW), those of `passed` filters left out."""
        live = weight[: self.live]
        taps = self.weights.joined(live, 1) if self.slotted else live
        density = float((live != 0).mean()) if live.size else 0.0
        values = np.unique(taps.view(self.weights.dtype)) if self.slotted and self.quantised else ()
        return replace(
            self,
            covers=covers_of(taps),
            patterns=patterns_of(live),
            weight_density=density,
            few_values=0 < int(np.count_nonzero(values)) <= CODES,
        )

    def without_densities(self) -> Workload:
        """What the code of a kernel depends on: equal ones with equal candidates and layouts share a kernel."""
        patterns = tuple((mask, 0.0) for mask, _ in self.patterns)
        return replace(
            self, covers=(), patterns=patterns, weight_density=1.0, few_values=False, map_density=1.0
        )

    def density(self, rows: int = 1) -> float:
        """Density of the taps when ``rows`` consecutive filters share them."""
        return dict(self.covers)[rows]

    def input_layout(self, output: LaneLayout) -> LaneLayout:
        """The layout that this layer reads when it writes ``output``."""
        shape = self.channels, self.height, self.width
        read = output.read_by(shape, self.kernel_size, self.stride, self.padding, self.dilation)
        return replace(read, element=self.maps)

    def pixel_layouts(self) -> Layouts:
        """The layouts of a kernel on indexed maps: the input's bits have the halo that it reads, the output's none."""
        (sh, sw), (kh, kw), (dh, dw) = self.stride, self.kernel_size, self.dilation
        top, left = self.padding[:2]
        bottom = max(0, (self.out_height - 1) * sh + dh * (kh - 1) - top - (self.height - 1))
        right = max(0, (self.out_width - 1) * sw + dw * (kw - 1) - left - (self.width - 1))
        source = PixelLayout(self.channels, self.height, self.width, (top, left, bottom, right), self.maps)
        output = PixelLayout(self.filters, self.out_height, self.out_width, element=self.result)
        return Layouts(source, output, output if self.residual else None)

    def key(self) -> str:
        """A canonical string: equal keys, equal best kernel. Densities are rounded to two digits, none below 1 to 1.

        The activation's parameter is left out: it changes a constant of the code, not its time.
        """
        covers, patterns = (tuple((k, _rounded(d)) for k, d in x) for x in (self.covers, self.patterns))
        weight_density, map_density = _rounded(self.weight_density), _rounded(self.map_density)
        rounded = replace(
            self,
            covers=covers,
            patterns=patterns,
            parameter=0.0,
            weight_density=weight_density,
            map_density=map_density,
        )
        return rounded.key_exact()

    def key_exact(self) -> str:
        """Like `key` with the densities as they are; `from_key` reads it."""
        return json.dumps(encode(self), sort_keys=True)

    @classmethod
    def from_key(cls, text: str) -> Workload:
        """The inverse of `key_exact`."""
        data = json.loads(text)
        for name in ("kernel_size", "stride", "padding", "dilation", "halo"):
            data[name] = tuple(data[name])
        for name in ("covers", "patterns"):
            data[name] = tuple((int(k), float(d)) for k, d in data[name])
        types = {name: element_type(data[name]) for name in ("weights", "maps", "result")}
        return cls(**{**data, **types, "target": target_from(data["target"])})


@dataclass(frozen=True)
class Layouts:
    """The layouts of a kernel's tensors; all None for templates on row-major matrices."""

    input: LaneLayout | PixelLayout | None = None
    output: LaneLayout | PixelLayout | None = None
    residual: LaneLayout | PixelLayout | None = None

    def in_lanes(self, reader: str) -> tuple[LaneLayout, LaneLayout, LaneLayout | None]:
        """Input, output and residual for the template ``reader``, which needs them in lanes.

        Raises
        ------
        ValueError
            If they are not.
        """
        source, output, other = self.input, self.output, self.residual
        if not isinstance(source, LaneLayout) or not isinstance(output, LaneLayout):
            raise ValueError(f"{reader} needs lane layouts")
        return source, output, other if isinstance(other, LaneLayout) else None

    def in_pixels(self, reader: str) -> tuple[PixelLayout, PixelLayout, PixelLayout | None]:
        """Input, output and residual for the template ``reader``, which needs them with their index.

        Raises
        ------
        ValueError
            If they are not.
        """
        source, output, other = self.input, self.output, self.residual
        if not isinstance(source, PixelLayout) or not isinstance(output, PixelLayout):
            raise ValueError(f"{reader} needs pixel layouts")
        return source, output, other if isinstance(other, PixelLayout) else None


def natural_layouts(workload: Workload) -> Layouts:
    """The layouts used to measure a workload alone: the output's with its halo, and what follows from it."""
    output = workload.output_layout
    residual = replace(output, channels=workload.residual_channels or workload.filters)
    return Layouts(
        workload.input_layout(output),
        output.with_halo(workload.halo),
        residual if workload.residual else None,
    )


def _rounded(density: float) -> float:
    return density if density >= 1.0 else min(round(density, 2), 0.99)


def dense_covers() -> tuple[tuple[int, float], ...]:
    """The covers of a weight without zeros."""
    return tuple((r, 1.0) for r in SHARED)


def covers_of(weight: Array) -> tuple[tuple[int, float], ...]:
    """For each R of `SHARED`: the density of the taps when R consecutive filters of ``weight`` share them."""
    flat = np.asarray(weight).reshape(weight.shape[0], math.prod(weight.shape[1:])) != 0
    found = []
    for r in SHARED:
        pad = -len(flat) % r
        blocks = np.pad(flat, ((0, pad), (0, 0))).reshape(-1, r, flat.shape[1]).any(axis=1)
        found.append((r, float(blocks.mean()) if blocks.size else 0.0))
    return tuple(found)


def patterns_of(weight: Array) -> tuple[tuple[int, float], ...]:
    """The fewest patterns that hold every kernel of ``weight`` (OIHW), with the fraction of the kernels that take each.

    A kernel whose non-zeros are a part of another's counts as that one's; empty if more than `MAX_PATTERNS` are left,
    or a kernel has one position only.
    """
    keep = np.asarray(weight).reshape(*weight.shape[:2], math.prod(weight.shape[2:])) != 0
    if not 1 < keep.shape[2] < 32:
        return ()
    bits = keep @ (1 << np.arange(keep.shape[2], dtype=np.int64))
    values, counts = np.unique(bits[bits != 0], return_counts=True)
    masks: list[int] = []
    for value in sorted(values.tolist(), key=lambda v: -v.bit_count()):
        if not any(value & ~m == 0 for m in masks):
            masks.append(value)
        if len(masks) > MAX_PATTERNS:
            return ()
    shares = dict.fromkeys(masks, 0.0)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        best = min((m for m in masks if value & ~m == 0), key=lambda m: m.bit_count())
        shares[best] += count / bits.size
    return tuple(sorted(shares.items()))
