"""How many threads a call may have, and TVM's pool of them."""

from __future__ import annotations

import os

import tvm

from sparseflow.core.checks import whole_number
from sparseflow.errors import CompileError, SparseflowError

MOST_THREADS = 1024
"""Parts into which kernels are cut at most: beyond the cores of any machine, parts only cost time."""

SPINS = 1000
"""Looks for work of an idle worker before it sleeps, each followed by a yield: 0.3 ms where no one else wants the CPU.

TVM's 300,000 are 0.1 s there. On a busy CPU each yield costs a time slice of milliseconds, and a process that ends
joins its workers, which look to the last before they see that they are to end: minutes after the program's last line.
"""
SPINS_VARIABLE = "TVM_THREAD_POOL_SPIN_COUNT"
"""Where TVM reads the number, once, when the first worker of a process starts."""


def checked_threads(threads: object, measured: bool, error: type[SparseflowError] = CompileError) -> int:
    """The number of threads of an engine: what is measured here runs on the CPUs here, other code may be for more.

    Raises
    ------
    error
        If it is no whole number, or out of bounds.
    """
    count = whole_number("threads", threads, 1, MOST_THREADS, error)
    here = os.cpu_count() or 1
    if measured and count > here:
        raise error(
            f"threads={count}: allowed: 1 to {here}, the CPUs here; up to {MOST_THREADS} where the cost model chooses "
            "(measure=False, --no-measure)"
        )
    return count


def set_threads(threads: int) -> int:
    """Makes the kernels that this Python thread calls next run on so many threads, and gives how many they get.

    TVM keeps a pool for each thread that calls, made when first needed. A pool of another size is only told how many
    of its threads to use. Kernels for one thread start no others, so for them no pool is made. The workers' looks for
    work are bounded to `SPINS`, unless the user has set a number or TVM has workers already.
    """
    if threads == 1:
        return 1
    os.environ.setdefault(SPINS_VARIABLE, str(SPINS))
    running = tvm.get_global_func("runtime.NumThreads")
    if running() != threads:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
    return int(running())
