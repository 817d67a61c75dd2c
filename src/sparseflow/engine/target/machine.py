"""What this machine is: its name in results, its vector instructions, its caches."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from sparseflow.kernels.target.flags import vector_flags


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


def cache_bytes(stated: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sizes of the first core's L1 (data), L2 and L3 as Linux tells them; ``stated`` where it does not."""
    found = dict(zip((1, 2, 3), stated, strict=True))
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = ((folder / n).read_text().strip() for n in ("type", "level", "size"))
        except OSError:
            continue
        if kind in ("Data", "Unified") and size.endswith("K") and int(level) in found:
            found[int(level)] = int(size[:-1]) << 10
    return (found[1], found[2], found[3])
