"""What this machine is: its name in results, its vector instructions, its caches."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import astuple
from pathlib import Path

from sparseflow.kernels.target.base import Caches
from sparseflow.kernels.target.flags import vector_flags


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def cpu_flags() -> frozenset[str]:
    """The vector instruction sets of this processor, by their names without underscores (``avx512bf16``)."""
    info = _cpuinfo()
    return vector_flags(info.get("flags", info.get("Features", "")).split())


@functools.cache
def machine_name() -> str:
    """Processor model, widest vectors and cores, as ``AMD EPYC (avx512f), 2 cores``."""
    info = _cpuinfo()
    model = info.get("model name") or platform.processor() or platform.machine()
    widest = next((f for f in ("avx512f", "avx2", "neon") if f in cpu_flags()), "scalar")
    known = "cpu family" in info and "model" in info
    version = f" family {info['cpu family']} model {info['model']}" if known else ""
    return f"{model}{version} ({widest}), {os.cpu_count()} cores"


def _caches() -> dict[int, tuple[int, int]]:
    """Level of each data cache of the first core → its bytes, and the CPUs that share it, as far as Linux tells."""
    found = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = ((folder / n).read_text().strip() for n in ("type", "level", "size"))
            shared = (folder / "shared_cpu_map").read_text().replace(",", "")
        except OSError:
            continue
        if kind in ("Data", "Unified") and size.endswith("K"):
            found[int(level)] = (int(size[:-1]) << 10, int(shared, 16).bit_count())
    return found


def cache_bytes(stated: Caches) -> tuple[int, int, int]:
    """Sizes of the first core's L1 (data), L2 and L3 as Linux tells them; ``stated`` where it does not."""
    found = _caches()
    l1, l2, l3 = (found.get(n, (size,))[0] for n, size in enumerate(astuple(stated), 1))
    return l1, l2, l3


def core_caches(stated: Caches) -> Caches:
    """`cache_bytes`, of a cache that several cores share one core's part."""
    found = _caches()
    threads = found.get(1, (0, 1))[1]
    cores = (max(1, found.get(n, (0, 1))[1] // threads) for n in (1, 2, 3))
    l1, l2, l3 = (size // n for size, n in zip(cache_bytes(stated), cores, strict=True))
    return Caches(l1, max(l1, l2), max(l1, l2, l3))
