"""What a kernel template is: a generator of kernels for some workloads, and the registry of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tvm import tirx

from sparseflow.core.codec import dumps, loads
from sparseflow.core.element_type import BFLOAT16, FLOAT32, ElementType
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, Workload
from sparseflow.registry import Registry

MOST_PRODUCTS = 2**31 // (255 * 127)
"""Of levels, whose sum fits 32 bits whatever they are."""


@dataclass(frozen=True)
class Candidate:
    """A template with its parameters."""

    template: str
    parameters: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """A canonical string; used as an attribute in the IR and in the cache."""
        return dumps(replace(self, parameters=dict(sorted(self.parameters.items()))))

    @classmethod
    def from_json(cls, text: str) -> Candidate:
        """The inverse of `to_json`."""
        return loads(cls, text)


class KernelTemplate(ABC):
    """A generator of kernels for some workloads. Its output equals the dense reference to rounding.

    Attributes
    ----------
    name : str
        The name in the registry.
    layout : str
        ``lanes`` when input and output are in a `LaneLayout`, ``pixels`` when they are in a `PixelLayout` and carry
        their index, ``rows`` when they are row-major matrices.
    format : str
        The index format (`FORMATS`) of the weights it reads, whose entries `pack` may reorder; ``dense`` if none.
    sparse_input : bool
        Whether it leaves out the products with zeros of its input.
    exact : bool
        False when the error is larger than that of adding up the products; such a template states its bound, and
        the option ``exact`` leaves it out.
    narrow : bool
        Whether it can store weights in `Workload.weights` where that has fewer bits than the sums; the others store
        the same numbers in the type of the sums.
    maps : tuple of ElementType
        In which it can read feature maps and write them; what it reads in levels it can write in float32 too. Rows
        are float32 in any case: a kernel that reads them in levels rounds them itself.
    unions : bool
        Whether it takes a residual through an index (`Workload.residual_channels`), and leaves out `Workload.passed`
        filters; templates that do not compute them as zeros.
    """

    name: str
    layout: str
    format: str
    sparse_input: bool = False
    exact: bool = True
    narrow: bool = False
    maps: tuple[ElementType, ...] = (FLOAT32,)
    unions: bool = False

    def refusal(self, workload: Workload) -> str | None:
        """`rejects`, and before it what holds for any template: the type of its maps, the channels of the residual."""
        if workload.maps not in self.maps:
            return f"it computes maps of {', '.join(map(str, self.maps))} only, these are {workload.maps}"
        if workload.result != workload.maps and not (
            workload.quantised and workload.result in (FLOAT32, BFLOAT16)
        ):
            return f"maps of {workload.result} are not computed from maps of {workload.maps}"
        if workload.quantised and workload.products > MOST_PRODUCTS:
            return f"sums of {workload.products} products of levels may leave 32 bits; {MOST_PRODUCTS} do not"
        if workload.residual_channels and not self.unions:
            return "the residual has other channels than the result; this kernel adds it in order only"
        return self.rejects(workload)

    def stored(self, workload: Workload, candidate: Candidate) -> ElementType:
        """The type in which ``candidate`` stores weights: the workload's if its parameter ``bits`` says so."""
        narrow = candidate.parameters.get("bits") == workload.weights.bits
        return workload.weights if narrow else workload.sums

    def in_types(self, workload: Workload, candidate: Candidate) -> list[Candidate]:
        """``candidate`` once for each type in which it can store the weights, the narrower first."""
        if not self.narrow or workload.weights.bits == workload.sums.bits:
            return [candidate]
        narrow = {**candidate.parameters, "bits": workload.weights.bits}
        return [Candidate(candidate.template, narrow), candidate]

    def unit(self, candidate: Candidate) -> tuple[int, int]:
        """Rows and columns of outputs that share their rounding: parts of a map are made of whole ones."""
        return 1, 1

    @abstractmethod
    def rejects(self, workload: Workload) -> str | None:
        """Why this template does not apply, in words for the user; None when it does."""

    @abstractmethod
    def candidates(self, workload: Workload) -> list[Candidate]:
        """Parameter choices that are worth measuring, the most promising first."""

    @abstractmethod
    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """Processor cycles that one call takes on one core, by the cost model."""

    @abstractmethod
    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """The constant operands, in the order of the kernel's parameters, from the weight in `format`."""

    @abstractmethod
    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """The kernel: parameters input, packed constants, bias, residual index, residual (those it has), output.

        With layout ``pixels`` the input is values and bits, the residual its values, and the output values, bits and
        count.
        """


TEMPLATES: Registry[KernelTemplate] = Registry(
    "kernel template", ("sparseflow.kernels.gemv", "sparseflow.kernels.indexed", "sparseflow.kernels.lane")
)


def computed(dtype: object) -> ElementType | None:
    """The element type that TVM calls ``dtype``, if a template computes maps of it."""
    return next((e for t in TEMPLATES.values() for e in t.maps if e.name == str(dtype)), None)


def register(template: type[KernelTemplate]) -> type[KernelTemplate]:
    """A class decorator that puts an instance of the template into `TEMPLATES`."""
    TEMPLATES.register(template.name)(template())
    return template
