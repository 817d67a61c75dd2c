"""The density switch: one function that runs a layer on its index, or as if there were none when the map is dense.

A map's count of non-zeros comes with it. Up to a limit the kernel that skips zeros runs; above it the map is changed to
the dense kernel's layout, that kernel runs, and its result is changed back with its index. Both fill the same output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.ir import emit

Spec = tuple[tuple[int, ...], str]


@dataclass(frozen=True)
class Stage:
    """A kernel and its operands.

    Attributes
    ----------
    build : callable
        ``build(name)`` emits it.
    operands : tuple of str
        Names of the switch's tensors, in the order of its parameters.
    """

    build: Callable[[str], Any]
    operands: tuple[str, ...]


def density_switch(
    name: str, tensors: Mapping[str, Spec], limit: int, sparse: Stage, dense: Sequence[Stage]
) -> tirx.PrimFunc:
    """Kernel with the parameters ``tensors``: ``sparse`` if ``tensors["count"]`` is at most ``limit``, else ``dense``.

    Parameters
    ----------
    name : str
    tensors : mapping of str to (shape, dtype)
        All operands of all stages, and ``count``, int32 (1,).
    limit : int
        Non-zeros of the whole map.
    sparse : Stage
    dense : sequence of Stage
        Run one after the other.
    """
    with emit.prim_func(name) as finish:
        buffers = {key: emit.arg(key, *spec) for key, spec in tensors.items()}

        def run(stage: Stage) -> None:
            with emit.spliced([buffers[operand] for operand in stage.operands]):
                stage.build(name)

        with T.If(buffers["count"][0] <= T.int32(limit)):
            with T.Then():
                run(sparse)
            with T.Else():
                for stage in dense:
                    run(stage)
    return finish()
