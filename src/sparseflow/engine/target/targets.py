"""Targets by name, whether this machine runs one, and the compiler that links an engine for one."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import tvm
from tvm.support import cc

from sparseflow.engine.target.check import check_target
from sparseflow.engine.target.machine import cpu_flags, vector_flags
from sparseflow.errors import CompileError, EngineError

TARGETS: dict[str, dict[str, Any]] = {
    "avx512": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v4"},
    "avx2": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "neon": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]},
}
"""Every processor of a class runs the code of its target; ``native`` is this very processor."""


def host_target() -> Any:
    """The target of this machine."""
    return tvm.target.Target({"kind": "llvm", "mcpu": str(tvm.target.codegen.llvm_get_system_cpu())})


def resolve(target: str | Mapping[str, Any]) -> Any:
    """TVM's target for a name or for its dictionary.

    Raises
    ------
    CompileError
        If the name is unknown, or the dictionary names something that LLVM or the kernels do not know.
    """
    if target == "native":
        return host_target()
    if isinstance(target, str):
        if target not in TARGETS:
            raise CompileError(f"target {target!r} is unknown; allowed: native, {', '.join(TARGETS)}")
        target = TARGETS[target]
    if not isinstance(target, Mapping):
        raise CompileError(
            f"target {target!r}: allowed: native, {', '.join(TARGETS)}, or a dictionary as "
            '{"kind": "llvm", "mcpu": "znver4"}'
        )
    check_target(target)
    try:
        return tvm.target.Target(dict(target))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CompileError(f"target {dict(target)}: {str(error).strip().splitlines()[-1]}") from error


def architecture(target: Any) -> str:
    """The processor family, as ``uname -m`` names it."""
    return str(target.attrs.get("mtriple", platform.machine())).split("-")[0]


def instruction_sets(target: Any) -> tuple[str, ...]:
    """The vector instruction sets that code for ``target`` may use."""
    return tuple(sorted(vector_flags(map(str, tvm.target.codegen.llvm_get_cpu_features(target)))))


def not_here(family: str, flags: Iterable[str]) -> str | None:
    """Why code for a processor family with these instruction sets does not run here; None if it does."""
    if family != platform.machine():
        return f"compiled for {family}, this machine is {platform.machine()}"
    missing = sorted(set(flags) - cpu_flags())
    return f"compiled for a CPU with {', '.join(missing)}, which this one lacks" if missing else None


def linker(family: str, cxx: str | None = None) -> str:
    """The C++ compiler that links code for ``family``: ``cxx``, this machine's, or the family's cross compiler.

    Raises
    ------
    EngineError
        If there is none.
    """
    if cxx is not None:
        if shutil.which(cxx) is None:
            raise EngineError(f"no C++ compiler {cxx!r} found; name one that links for {family}")
        return cxx
    if family == platform.machine():
        found = cc.get_cc()
        if found is None:
            raise EngineError("no C++ compiler found to link the code; install g++ or set CXX")
        return str(found)
    cross = f"{family}-linux-gnu-g++"
    if shutil.which(cross) is None:
        raise EngineError(
            f"no {cross} found to link for {family}; install it (Debian: g++-{family}-linux-gnu) or name one with --cxx"
        )
    return cross
