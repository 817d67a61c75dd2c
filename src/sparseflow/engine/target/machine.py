"""What this machine is: its name in results, the target to compile for, the instructions an engine needs."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable
from pathlib import Path

VECTOR_FLAGS = ("avx", "fma", "f16c", "asimd", "neon", "sve")


def vector_flags(names: Iterable[str]) -> frozenset[str]:
    """Those of ``names`` that are vector instruction sets, by one name.

    The Linux kernel and LLVM differ in underscores and hyphens, and in Arm's first: ``asimd`` is LLVM's ``neon``.
    """
    plain = (n.replace("_", "").replace("-", "") for n in names if n.startswith(VECTOR_FLAGS))
    return frozenset("neon" if n == "asimd" else n for n in plain)


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The vector instruction sets of this processor, by their names without underscores (``avx512bf16``)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            words = line.split(":", 1)[1].split()
            return vector_flags(words)
    return frozenset()


@functools.cache
def machine_name() -> str:
    """Processor model, widest vectors and cores, as ``AMD EPYC (avx512f), 2 cores``."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
        family = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("cpu family", "model\t"))
        ][:2]
    except OSError:
        family = []
    widest = next((f for f in ("avx512f", "avx2", "neon") if f in cpu_flags()), "scalar")
    version = f" family {' model '.join(family)}" if family else ""
    return f"{model}{version} ({widest}), {os.cpu_count()} cores"
