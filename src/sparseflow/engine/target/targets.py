"""What of a target needs this machine: its own target, whether code runs here, the compiler that links an engine."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import tvm
from tvm.support import cc

from sparseflow.engine.target.machine import core_caches, cpu_flags
from sparseflow.errors import CompileError, EngineError
from sparseflow.kernels.target.base import KINDS, TARGETS, Target
from sparseflow.kernels.target.cpu import Cpu


def host_target() -> Target:
    """The target of this machine, with its caches in place of those that are stated for its kind."""
    kind = Cpu.nearest({"kind": "llvm", "mcpu": str(tvm.target.codegen.llvm_get_system_cpu())})
    return replace(kind, caches=core_caches(kind.caches))


def resolve(target: str | Mapping[str, Any]) -> Target:
    """The target of a name, or of TVM's dictionary.

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
        return TARGETS[target]
    if not isinstance(target, Mapping):
        raise CompileError(
            f"target {target!r}: allowed: native, {', '.join(TARGETS)}, or a dictionary as "
            '{"kind": "llvm", "mcpu": "znver4"}'
        )
    kind = target.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CompileError(f"target kind {kind!r}: allowed: {', '.join(KINDS)}")
    return KINDS[kind].of(target)


def kind_of(target: str) -> type[Target]:
    """The kind of target that TVM's text describes.

    Raises
    ------
    EngineError
        If no kind of target is known by its name.
    """
    try:  # without TVM's own reading of the text, which its runtime library lacks
        return KINDS[json.loads(target)["kind"]]
    except (ValueError, TypeError, KeyError) as error:
        raise EngineError(f"target {target!r} of the engine is unknown; compile it anew") from error


def device(target: str) -> Any:
    """The device that runs what was compiled for TVM's text of a target; errors as `kind_of`."""
    return tvm.device(kind_of(target).device_name, 0)


def not_here(family: str, flags: Iterable[str]) -> str | None:
    """Why code for a processor family with these instruction sets does not run here; None if it does."""
    if family != platform.machine():
        return f"compiled for {family}, this machine is {platform.machine()}"
    missing = sorted(set(flags) - cpu_flags())
    return f"compiled for a CPU with {', '.join(missing)}, which this one lacks" if missing else None


def linker(kind: type[Target], family: str, cxx: str | None = None) -> str:
    """The C++ compiler that links code for ``family``: ``cxx``, this machine's, or the kind's cross compiler.

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
    cross = kind.cross_linker(family)
    if shutil.which(cross) is None:
        package = f"g++-{cross.removesuffix('-g++')}"
        raise EngineError(
            f"no {cross} found to link for {family}; install it (Debian: {package}) or name one with --cxx"
        )
    return cross
