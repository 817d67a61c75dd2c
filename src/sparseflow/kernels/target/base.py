"""What a target is: the facts about a machine that kernels, passes and the engine ask for.

It stands among the kernels because templates and cost models read it, and every room above may import it from here.
Each kind of target is one class in one file of this folder, which registers itself. What needs the machine at hand is
in `sparseflow.engine.target`: the target ``native``, whether code runs here, the compiler that links it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import tvm

from sparseflow.core.element_type import FLOAT32, ElementType
from sparseflow.errors import CompileError
from sparseflow.registry import Registry

Options = tuple[tuple[str, Any], ...]


def _positive(what: Any) -> None:
    for f in fields(what):
        value = getattr(what, f.name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CompileError(f"{type(what).__name__} {f.name}={value!r}: allowed: a whole number from 1")


@dataclass(frozen=True)
class VectorUnit:
    """Width and number of the vector registers of a target.

    Attributes
    ----------
    bits : int
        Width of a register.
    registers : int
    accumulators : int
        Sums that a kernel keeps in registers at most; the others hold loaded values, and at a few more LLVM spills.
    per_cycle : int
        Multiply-adds, and as many loads, that a core starts in one cycle; the cost model's only use.

    Raises
    ------
    CompileError
        If one is no positive number, or the accumulators leave no register free.
    """

    bits: int
    registers: int
    accumulators: int
    per_cycle: int

    def __post_init__(self) -> None:
        _positive(self)
        if self.bits % FLOAT32.bits or self.accumulators >= self.registers:
            raise CompileError(
                f"{self}: allowed: bits in multiples of {FLOAT32.bits}, and fewer accumulators than registers"
            )

    @property
    def lanes(self) -> int:
        """Sums of 32 bits, or slots of a map, in a register."""
        return self.bits // FLOAT32.bits

    def holds(self, r: int, spots: int) -> bool:
        """True when a tile of ``r`` filters by ``spots`` vectors stays in registers: its sums, the inputs that
        several filters share, and a weight."""
        operands = 1 + (spots if r > 1 else 0)
        return r * spots <= self.accumulators and r * spots + operands <= self.registers


@dataclass(frozen=True)
class Caches:
    """Bytes of the data caches, as one core has them.

    Attributes
    ----------
    l1, l2 : int
    l3 : int
        One core's part.

    Raises
    ------
    CompileError
        If one is no positive number, or a cache is smaller than the one before.
    """

    l1: int
    l2: int
    l3: int

    def __post_init__(self) -> None:
        _positive(self)
        if not self.l1 <= self.l2 <= self.l3:
            raise CompileError(f"{self}: allowed: each as large as the one before, or larger")


@dataclass(frozen=True)
class Target(ABC):
    """A machine that code is made for. A kind of target is a subclass, registered in `KINDS` by TVM's name of it.

    Attributes
    ----------
    kind : str
        TVM's name of the code generator.
    device_name : str
        TVM's name of the device that runs the code.
    pipeline : str
        The Relax pipeline of TVM that builds what our passes leave.
    name : str
        Of the machines alike: ``avx512``.
    options : tuple of (str, value)
        TVM's description, ``(("kind", "llvm"), ("mcpu", "znver4"))``.
    vectors : VectorUnit
    caches : Caches
        Those of the machine at hand for the target ``native`` (`engine.target`), else those stated for the kind.
    clock_hz : float
        Stated for the kind: only ratios matter to a choice, and one that is read changes while it is.

    Raises
    ------
    CompileError
        If the options name another kind, or the clock is not positive.
    """

    kind: ClassVar[str]
    device_name: ClassVar[str]
    pipeline: ClassVar[str] = "default"

    name: str
    options: Options
    vectors: VectorUnit
    caches: Caches
    clock_hz: float

    def __post_init__(self) -> None:
        if dict(self.options).get("kind") != self.kind:
            raise CompileError(f"target {dict(self.options)}: allowed: kind {self.kind!r}")
        if not self.clock_hz > 0:
            raise CompileError(f"target {self.name}: clock_hz={self.clock_hz!r}: allowed: above 0")

    @classmethod
    @abstractmethod
    def of(cls, options: Mapping[str, Any]) -> Target:
        """The target that TVM's dictionary describes.

        Raises
        ------
        CompileError
            If the code generator or the kernels do not know something in it.
        """

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The processor family that runs the compiled library, as ``uname -m`` names it."""

    @classmethod
    @abstractmethod
    def cross_linker(cls, family: str) -> str:
        """The C++ compiler that links code for a processor family on a machine of another."""

    @property
    @abstractmethod
    def instruction_sets(self) -> tuple[str, ...]:
        """What the machine has to have beside its family for the code to run."""

    def multiplies(self, element: ElementType) -> bool:
        """Whether it has instructions that multiply numbers of a type and add them up in its accumulator."""
        return element == FLOAT32

    def operations(self, element: ElementType) -> int:
        """Instructions that one vector's products with weights take, sums included."""
        return 1

    def taken_from_levels(self, element: ElementType) -> int:
        """What its instructions need taken from each level of a map, and added to its zero point's place in sums."""
        return 0

    @cached_property
    def tvm(self) -> Any:
        """TVM's target."""
        return tvm.target.Target(dict(self.options))

    @property
    def device(self) -> Any:
        """TVM's device on which the code runs."""
        return tvm.device(self.device_name, 0)

    def __str__(self) -> str:
        """TVM's text of the target."""
        return str(self.tvm)


KINDS: Registry[type[Target]] = Registry("target kind", ("sparseflow.kernels.target",))
"""The classes, by the kind that TVM gives them."""
TARGETS: Registry[Target] = Registry("target", ("sparseflow.kernels.target",))
"""Targets with a name for users; every processor of a class runs the code of its target."""


def frozen(options: Mapping[str, Any]) -> Options:
    """TVM's dictionary of a target as a value that can be compared."""
    return tuple((k, v if isinstance(v, str) else tuple(v)) for k, v in options.items())


def target_from(data: Mapping[str, Any]) -> Target:
    """The inverse of `dataclasses.asdict` of a target, lists in place of tuples allowed."""
    options = frozen(dict(data["options"]))
    parts = {"vectors": VectorUnit(**data["vectors"]), "caches": Caches(**data["caches"])}
    return KINDS[dict(options)["kind"]](**{**data, **parts, "options": options})
