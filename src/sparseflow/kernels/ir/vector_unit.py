"""The vector unit that kernels are made for: the only facts about a target that the templates depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.target import codegen


@dataclass(frozen=True)
class VectorUnit:
    """Width and number of the vector registers of a target.

    Attributes
    ----------
    name : str
    lanes : int
        float32 elements of a register.
    registers : int
    accumulators : int
        Sums that a kernel keeps in registers at most; the others hold loaded values, and at a few more LLVM spills.
    per_cycle : int
        Multiply-adds, and as many loads, that a core starts in one cycle; the cost model's only use.
    """

    name: str = "avx512"
    lanes: int = 16
    registers: int = 32
    accumulators: int = 24
    per_cycle: int = 1

    def holds(self, r: int, spots: int) -> bool:
        """True when a tile of ``r`` filters by ``spots`` vectors stays in registers: its sums, the inputs that
        several filters share, and a weight."""
        operands = 1 + (spots if r > 1 else 0)
        return r * spots <= self.accumulators and r * spots + operands <= self.registers


AVX512 = VectorUnit()
AVX2 = VectorUnit("avx2", 8, 16, 14, 2)
NEON = VectorUnit("neon", 4, 32, 24, 2)
SSE = VectorUnit("sse", 4, 16, 12, 2)
"""What any x86-64 has: no fused multiply-add."""


def vector_unit(target: Any) -> VectorUnit:
    """The widest unit that LLVM may use for ``target``, a `tvm.target.Target` of kind ``llvm``."""
    features = {str(f) for f in codegen.llvm_get_cpu_features(target)}
    return next(
        (u for flag, u in (("avx512f", AVX512), ("avx2", AVX2), ("neon", NEON)) if flag in features), SSE
    )
