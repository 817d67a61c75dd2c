"""x86-64 and Arm processors, whose code LLVM makes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sparseflow.core.element_type import BFLOAT16, UINT8, ElementType
from sparseflow.kernels.target.base import KINDS, TARGETS, Caches, Target, VectorUnit, frozen
from sparseflow.kernels.target.flags import vector_flags
from sparseflow.kernels.target.llvm import check_options, features_of

INSTRUCTIONS = {
    (BFLOAT16.name, 512): ("avx512bf16",),
    (UINT8.name, 512): ("avx512vnni",),
    (UINT8.name, 256): ("avx2",),
    (UINT8.name, 128): ("dotprod", "i8mm"),
}
"""By the type of maps and the bits of a register: the instruction sets that multiply the channels of a slot."""


@KINDS.register("llvm")
@dataclass(frozen=True)
class Cpu(Target):
    """A processor. Its vector unit is the widest that LLVM may use for it."""

    kind = "llvm"
    device_name = "cpu"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Cpu:
        """See `Target.of`."""
        check_options(options)
        return cls.nearest(options)

    @classmethod
    def nearest(cls, options: Mapping[str, Any]) -> Cpu:
        """The one of `AVX512`, `AVX2`, `NEON` and `SSE` whose vectors LLVM has for ``options``, with these."""
        features = features_of(options)
        by_flag = (("avx512f", AVX512), ("avx2", AVX2), ("neon", NEON))
        return replace(next((t for flag, t in by_flag if flag in features), SSE), options=frozen(options))

    @property
    def architecture(self) -> str:
        """See `Target.architecture`."""
        return str(dict(self.options).get("mtriple", platform.machine())).split("-")[0]

    @classmethod
    def cross_linker(cls, family: str) -> str:
        """GCC's for Linux."""
        return f"{family}-linux-gnu-g++"

    def multiplies(self, element: ElementType) -> bool:
        """See `Target.multiplies`; `INSTRUCTIONS` tells what else is multiplied."""
        needed = INSTRUCTIONS.get((element.name, self.vectors.bits), ())
        return any(name in self.instruction_sets for name in needed) or super().multiplies(element)

    def operations(self, element: ElementType) -> int:
        """See `Target.operations`: bytes without an instruction of their own are multiplied in 16 bits."""
        emulated = self.vectors.bits == 256 and "avxvnni" not in self.instruction_sets
        return 4 if element.unit == UINT8 and emulated else 1

    def taken_from_levels(self, element: ElementType) -> int:
        """See `Target.taken_from_levels`: Arm's first instruction multiplies signed bytes only."""
        signed = self.vectors.bits == 128 and "i8mm" not in self.instruction_sets
        return 128 if element.unit == UINT8 and signed else 0

    @cached_property
    def instruction_sets(self) -> tuple[str, ...]:
        """The vector instruction sets that LLVM may use."""
        return tuple(sorted(vector_flags(features_of(self.tvm))))


def _named(name: str, vectors: VectorUnit, family: str, **options: Any) -> Cpu:
    """A processor class, with the caches and clock of the x86 machine that the cost model was fitted on."""
    caches = Caches(l1=48 << 10, l2=1 << 20, l3=8 << 20)
    given = {"kind": "llvm", "mtriple": f"{family}-linux-gnu", **options}
    return Cpu(name, frozen(given), vectors, caches, clock_hz=3.3e9)


AVX512 = _named("avx512", VectorUnit(512, 32, 24, 1), "x86_64", mcpu="x86-64-v4")
AVX2 = _named("avx2", VectorUnit(256, 16, 14, 2), "x86_64", mcpu="x86-64-v3")
NEON = _named("neon", VectorUnit(128, 32, 24, 2), "aarch64", mattr=["+neon"])
SSE = _named("sse", VectorUnit(128, 16, 12, 2), "x86_64", mcpu="x86-64")
"""What any x86-64 has: no fused multiply-add."""

for _target in (AVX512, AVX2, NEON):
    TARGETS.register(_target.name)(_target)
