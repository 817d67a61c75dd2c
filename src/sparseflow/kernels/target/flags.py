"""Names of vector instruction sets, which the Linux kernel and LLVM spell differently."""

from __future__ import annotations

from collections.abc import Iterable

VECTOR_FLAGS = ("avx", "fma", "f16c", "asimd", "neon", "sve", "dotprod", "i8mm")
LLVM_NAMES = {"asimd": "neon", "asimddp": "dotprod"}
"""Of those that the Linux kernel names otherwise."""


def vector_flags(names: Iterable[str]) -> frozenset[str]:
    """Those of ``names`` that are vector instruction sets, by one name.

    The Linux kernel and LLVM differ in underscores and hyphens, and in Arm's, see `LLVM_NAMES`.
    """
    plain = (n.replace("_", "").replace("-", "") for n in names if n.startswith(VECTOR_FLAGS))
    return frozenset(LLVM_NAMES.get(n, n) for n in plain)
