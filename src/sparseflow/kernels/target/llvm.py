"""What LLVM knows of processors. Names are checked here: LLVM takes another for one that it does not know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import tvm
from tvm.target import codegen

from sparseflow.errors import CompileError
from sparseflow.kernels.notices import without_notices

KEYS = ("kind", "mtriple", "mcpu", "mattr")
NEEDED = {"x86_64": ("64bit", "sse2"), "aarch64": ("neon",)}
"""Processor families that there are kernels for, and the features without which LLVM makes no code of them."""
TRIPLE = re.compile(rf"({'|'.join(NEEDED)})(-[a-z0-9_]+)?-linux(-(gnu|musl|android))?")
USUAL = {
    "x86_64": (
        "x86-64",
        "x86-64-v3",
        "x86-64-v4",
        "skylake",
        "icelake-server",
        "sapphirerapids",
        "znver3",
        "znver4",
    ),
    "aarch64": (
        "generic",
        "cortex-a72",
        "cortex-a76",
        "neoverse-n1",
        "neoverse-v1",
        "neoverse-v2",
        "apple-m4",
    ),
}
"""CPUs to name where none is like the one asked for."""


def features_of(target: Any) -> set[str]:
    """LLVM's names of what a processor can do, for a `tvm.target.Target` or its dictionary."""
    known = tvm.target.Target(dict(target)) if isinstance(target, Mapping) else target
    return set(map(str, codegen.llvm_get_cpu_features(known)))


def check_options(target: Mapping[str, Any]) -> None:
    """Nothing, if the processor that TVM's dictionary describes is one that there are kernels for.

    Raises
    ------
    CompileError
        The first key or value that is unknown, with what is allowed.
    """
    for key in target:
        if key not in KEYS:
            raise CompileError(f"target key {key!r} is unknown; allowed: {', '.join(KEYS)}")
    triple = target.get("mtriple", str(codegen.llvm_get_system_triple()))
    if not isinstance(triple, str) or TRIPLE.fullmatch(triple) is None:
        allowed = ", ".join(f"{family}-linux-gnu" for family in NEEDED)
        raise CompileError(f"target mtriple {triple!r} is unknown; allowed: {allowed}")
    if "mcpu" in target:
        _check_cpu(target["mcpu"], triple)
    given = target.get("mattr", ())
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise CompileError(f'target mattr {given!r}: allowed: a list of features with + or -, as ["+avx2"]')
    for feature in given:
        _check_feature(feature, triple)
    left = features_of({"kind": "llvm", "mtriple": triple, **target})
    missing = [f for f in NEEDED[_family(triple)] if f not in left]
    if missing:
        raise CompileError(
            f"target {dict(target)}: lacks {', '.join(missing)}, which {_family(triple)} code needs"
        )


def _family(triple: str) -> str:
    return triple.split("-")[0]


def _cpus(triple: str) -> list[str]:
    return [
        str(cpu)
        for cpu in codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", "mtriple": triple}))
    ]


def _check_cpu(name: Any, triple: str) -> None:
    known = _cpus(triple)
    if name not in known:
        near = _near(str(name), known) or USUAL[_family(triple)]
        raise CompileError(
            f"target mcpu {name!r} is unknown to LLVM for {_family(triple)}; allowed: "
            f"{', '.join(near)} and others, {len(known)} in all"
        )


def _check_feature(feature: Any, triple: str) -> None:
    """LLVM's list of features is that of each CPU: a feature that no CPU has is tried alone."""
    sign, name = (feature[:1], feature[1:]) if isinstance(feature, str) else ("", "")
    if sign not in ("+", "-") or not name:
        raise CompileError(f"target mattr {feature!r}: allowed: a feature with + or -, as +avx2")
    plain = {"kind": "llvm", "mtriple": triple}
    known = set().union(*(features_of({**plain, "mcpu": cpu}) for cpu in _cpus(triple)))
    if name in known:
        return
    with without_notices():
        alone = features_of({**plain, "mattr": [f"+{name}"]})
    if name not in alone:
        near = _near(name, known) or sorted(
            f for f in known if f in ("avx2", "avx512f", "fma", "neon", "dotprod", "sve")
        )
        raise CompileError(
            f"target mattr {feature!r} is unknown to LLVM for {_family(triple)}; allowed: "
            f"{', '.join(sign + f for f in near)} and others, {len(known)} in all"
        )


def _near(name: str, known: Iterable[str]) -> list[str]:
    return get_close_matches(name, sorted(known), n=6, cutoff=0.6)
