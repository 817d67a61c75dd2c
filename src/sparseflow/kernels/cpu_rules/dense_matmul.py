"""Products of two matrices neither of which is a weight, as in attention: register tiles over packed panels.

``C[b, i, j] = sum_k A[b, i, k] B[b, k, j]``. Columns are cut into panels of ``VECTORS`` registers; a panel of
B is copied so that the innermost loop reads it in order (this is also where a transposed B is turned), and
``ROWS`` rows of A meet it at once, their sums held in registers.

References
----------
K. Goto, R. van de Geijn, *Anatomy of high-performance matrix multiplication*, ACM TOMS 34(3),
2008, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax, s_tir, tirx

from sparseflow.errors import CompileError
from sparseflow.kernels.ir.math import F32
from sparseflow.kernels.target.base import VectorUnit

from .expr import Expr, const
from .loops import loop, sequence, shared_loop, vector

ROWS = 8
"""Rows of A in one register tile, at most."""
VECTORS = 2
"""Registers of columns in one panel: ``ROWS * VECTORS`` sums fit 32 registers with room for operands."""
DEPTH = 512
"""Longest piece of k: its panel of 16 to 64 KiB stays in the second-level cache of every target (256 KiB or more)."""
INDEX = "int64"
OPAQUE = 8
"""TVM's operator pattern for what must not be fused."""


@dataclass(frozen=True)
class MatmulShape:
    """Sizes of one product.

    Parameters
    ----------
    a_batch, b_batch : tuple of int
        Leading dimensions of the operands, of equal length; 1 is repeated.
    rows, depth, columns : int
        M, K and N.
    transpose_b : bool
        Whether B is given as (..., N, K).
    panels : bool
        Whether B, one constant matrix, is given as :func:`panels` makes it.
    """

    a_batch: tuple[int, ...]
    b_batch: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    transpose_b: bool = False
    panels: bool = False

    def __post_init__(self) -> None:
        if self.panels and (self.b_batch or self.transpose_b):
            raise CompileError(
                f"matmul: panels of batches {self.b_batch}, transpose_b={self.transpose_b}; "
                "one matrix (K, N) is allowed; pack each matrix apart"
            )
        fits = len(self.a_batch) == len(self.b_batch) and all(
            x == y or 1 in (x, y) for x, y in zip(self.a_batch, self.b_batch, strict=True)
        )
        if not fits:
            raise CompileError(
                f"matmul: batches {self.a_batch} and {self.b_batch} differ; "
                "equal lengths and sizes that are equal or 1 are allowed; reshape the operands"
            )

    @property
    def batch(self) -> tuple[int, ...]:
        """The result's leading dimensions."""
        return tuple(max(x, y) for x, y in zip(self.a_batch, self.b_batch, strict=True))

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * prod(self.batch) * self.rows * self.depth * self.columns


def panel_width(columns: int, lanes: int) -> int:
    """Columns of one panel."""
    return lanes * min(VECTORS, -(-columns // lanes))


def panels(matrix: np.ndarray, lanes: int) -> np.ndarray:
    """A constant B, (K, N), in the order in which it is read: (panels, K, width), the last padded with zeros."""
    depth, columns = matrix.shape
    width = panel_width(columns, lanes)
    count = -(-columns // width)
    padded = np.zeros((depth, count * width), matrix.dtype)
    padded[:, :columns] = matrix
    return np.ascontiguousarray(padded.reshape(depth, count, width).transpose(1, 0, 2))


Operands = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The shapes in which A, B and C are passed."""


def tile_rows(registers: int) -> int:
    """Rows of A whose sums fit ``registers`` beside a row of B and an element of A."""
    return min(ROWS, (registers - 1) // VECTORS - 1)


def matmul(
    shape: MatmulShape,
    vectors: VectorUnit,
    threads: int = 1,
    operands: Operands | None = None,
) -> tirx.PrimFunc:
    """A function ``(A, B, C)`` that computes a product in float32.

    Parameters
    ----------
    shape : MatmulShape
    operands : tuple of three shapes, optional
        Other shapes of the same sizes in which A, B and C are passed.
    vectors : VectorUnit
        Of the target.
    threads : int
        Batches, or panels when there are fewer batches, are shared by so many threads.
    """
    return _Matmul(shape, vectors, threads).function(operands)


class _Matmul:
    """The loops of one product."""

    def __init__(self, shape: MatmulShape, vectors: VectorUnit, threads: int) -> None:
        self.shape, self.lanes, self.threads = shape, vectors.lanes, threads
        self.rows = rows = tile_rows(vectors.registers)
        self.width = panel_width(shape.columns, self.lanes)
        b_matrix: tuple[int, ...] = (shape.depth, shape.columns)
        if shape.transpose_b:
            b_matrix = (shape.columns, shape.depth)
        if shape.panels:
            b_matrix = (-(-shape.columns // self.width), shape.depth, self.width)
        self.sizes = {
            "A": (*shape.a_batch, shape.rows, shape.depth),
            "B": (*shape.b_batch, *b_matrix),
            "C": (*shape.batch, shape.rows, shape.columns),
        }
        self.flat: dict[str, Any] = {}
        self.packed = not shape.panels and (shape.transpose_b or shape.rows > 2 * rows)

    def function(self, operands: Operands | None) -> tirx.PrimFunc:
        """The PrimFunc, marked as scheduled and as not to be fused."""
        passed = dict(zip("ABC", operands, strict=True)) if operands else self.sizes
        params = {n: tirx.decl_buffer(s, F32, n) for n, s in passed.items()}
        self.flat = {
            n: tirx.decl_buffer((prod(self.sizes[n]),), F32, f"{n}_flat", data=tirx.buffer_data(b))
            for n, b in params.items()
        }
        batches = prod(self.shape.batch)
        over_batches = batches >= self.threads > 1
        views = [tirx.DeclBuffer(v, data=tirx.buffer_data(params[n])) for n, v in self.flat.items()]

        def one(b: Expr) -> Any:
            return self._product(b, 1 if over_batches else self.threads)

        body = sequence([*views, shared_loop(batches, self.threads if over_batches else 1, one, INDEX)])
        root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
        attrs = {"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": OPAQUE, "s_tir": True}
        return tirx.PrimFunc(list(params.values()), root).with_attr(attrs)

    def _base(self, name: str, batch: Expr) -> Expr:
        """The offset of one batch of an operand; dimensions of size 1 are repeated."""
        own = {"A": self.shape.a_batch, "B": self.shape.b_batch, "C": self.shape.batch}[name]
        matrix = self.sizes[name][-2] * self.sizes[name][-1]
        if own == self.shape.batch:
            return batch * matrix
        base: Expr = const(0, INDEX)
        left = prod(self.shape.batch)
        for mine, full in zip(own, self.shape.batch, strict=True):
            left //= full
            index = tirx.floormod(tirx.floordiv(batch, left), full)
            base = base * mine + (index if mine > 1 else const(0, INDEX))
        return base * matrix

    def _product(self, batch: Expr, threads: int) -> Any:
        whole, left = divmod(self.shape.columns, self.width)
        done = []
        if whole:
            done.append(
                shared_loop(whole, threads, lambda j: self._panel(batch, j * self.width, self.width), INDEX)
            )
        if left:
            done.append(self._panel(batch, const(whole * self.width, INDEX), left))
        return sequence(done)

    def _panel(self, batch: Expr, column: Expr, width: int) -> Any:
        """All rows of ``width`` columns."""
        depth = self.shape.depth
        if depth <= DEPTH:
            return self._piece(batch, column, width, const(0, INDEX), depth, True)
        whole, left = divmod(depth, DEPTH)
        done = [
            self._piece(batch, column, width, const(0, INDEX), DEPTH, True),
            loop(
                whole - 1,
                lambda k: self._piece(batch, column, width, (k + 1) * DEPTH, DEPTH, False),
                INDEX,
            ),
        ]
        if left:
            done.append(self._piece(batch, column, width, const(whole * DEPTH, INDEX), left, False))
        return sequence([d for d in done if d is not None])

    def _piece(self, batch: Expr, column: Expr, width: int, k0: Expr, depth: int, first: bool) -> Any:
        """All rows of ``width`` columns, summed over ``depth`` steps of k from ``k0``."""
        lanes = self.lanes
        groups = [lanes] * (width // lanes) + ([width % lanes] if width % lanes else [])
        padded = lanes * len(groups)
        panel = tirx.decl_buffer((depth * padded,), F32, "panel", scope="local") if self.packed else None

        def b_element(k: Expr, j: Expr) -> Expr:
            if panel is not None:
                return tirx.BufferLoad(panel, [k * padded + j])
            if self.shape.panels:
                return tirx.BufferLoad(
                    self.flat["B"], [column * self.shape.depth + (k + k0) * self.width + j]
                )
            offset = self._base("B", batch) + (k + k0) * self.shape.columns + column + j
            return tirx.BufferLoad(self.flat["B"], [offset])

        def tile(row: Expr, count: int) -> Any:
            return self._tile(batch, row, count, column, groups, (k0, depth, first), b_element)

        whole, left = divmod(self.shape.rows, self.rows)
        rows = [loop(whole, lambda i: tile(i * self.rows, self.rows), INDEX)] if whole else []
        if left:
            rows.append(tile(const(whole * self.rows, INDEX), left))
        if panel is None:
            return sequence(rows)
        return sequence([tirx.AllocBuffer(panel), self._pack(panel, batch, column, groups, k0, depth), *rows])

    def _pack(self, panel: Any, batch: Expr, column: Expr, groups: list[int], k0: Expr, depth: int) -> Any:
        """The panel's copy, turned if B is transposed; lanes past the last column stay unset and unused."""
        shape, padded = self.shape, self.lanes * len(groups)
        source, base = self.flat["B"], self._base("B", batch)

        def copied(k: Expr) -> Any:
            def group(v: int, width: int) -> Any:
                def lane(i: Expr) -> Any:
                    if shape.transpose_b:
                        offset = base + (column + v * self.lanes + i) * shape.depth + k + k0
                    else:
                        offset = base + (k + k0) * shape.columns + column + v * self.lanes + i
                    slot = k * padded + v * self.lanes + i
                    return tirx.BufferStore(panel, tirx.BufferLoad(source, [offset]), [slot])

                return vector(width, lane, INDEX)

            return sequence(group(v, w) for v, w in enumerate(groups))

        return loop(depth, copied, INDEX)

    def _tile(
        self,
        batch: Expr,
        row: Expr,
        count: int,
        column: Expr,
        groups: list[int],
        piece: tuple[Expr, int, bool],
        b_element: Callable[[Expr, Expr], Expr],
    ) -> Any:
        """``count`` rows by all of a panel's columns, in registers."""
        k0, depth, first = piece
        lanes, shape = self.lanes, self.shape
        a_base, c_base = self._base("A", batch), self._base("C", batch)
        # one buffer a row: TVM keeps what is smaller than a kilobyte on the stack, where it becomes registers
        acc = [tirx.decl_buffer((len(groups) * lanes,), F32, f"acc{r}") for r in range(count)]

        def each(make: Callable[[int, Expr], Any]) -> list[Any]:
            return [
                vector(width, lambda i, r=r, v=v: make(r, i + v * lanes), INDEX)  # type: ignore[misc]
                for r in range(count)
                for v, width in enumerate(groups)
            ]

        def c_offset(r: int, j: Expr) -> Expr:
            return c_base + (row + r) * shape.columns + column + j

        def begin(r: int, j: Expr) -> Any:
            value = const(0.0, F32) if first else tirx.BufferLoad(self.flat["C"], [c_offset(r, j)])
            return tirx.BufferStore(acc[r], value, [j])

        def finish(r: int, j: Expr) -> Any:
            return tirx.BufferStore(self.flat["C"], tirx.BufferLoad(acc[r], [j]), [c_offset(r, j)])

        def step(k: Expr) -> Any:
            def update(r: int, j: Expr) -> Any:
                a = tirx.BufferLoad(self.flat["A"], [a_base + (row + r) * shape.depth + k + k0])
                return tirx.BufferStore(acc[r], tirx.BufferLoad(acc[r], [j]) + a * b_element(k, j), [j])

            return sequence(each(update))

        sums = [tirx.AllocBuffer(a) for a in acc]
        return sequence([*sums, *each(begin), loop(depth, step, INDEX), *each(finish)])


def _static(expr: Any) -> tuple[int, ...] | None:
    """A tensor's shape if all of it is known and its elements are float32."""
    kind = expr.ty
    if getattr(kind, "shape", None) is None or str(kind.dtype) != F32:
        return None
    sizes = [int(d) if isinstance(d, tirx.IntImm) else None for d in kind.shape]
    return None if any(s is None for s in sizes) else tuple(s for s in sizes if s is not None)


def shape_of(a: tuple[int, ...], b: tuple[int, ...]) -> MatmulShape | None:
    """The sizes of ``matmul`` of two tensors; ``None`` for vectors and empty operands.

    Batches of A that meet one matrix B become rows.
    """
    if len(a) < 2 or len(b) < 2 or 0 in (*a, *b):
        return None
    if prod(b[:-2]) == 1 and len(a) >= len(b):
        return MatmulShape((), (), prod(a[:-1]), a[-1], b[-1])
    dims = max(len(a), len(b)) - 2
    a_batch = (1,) * (dims - len(a) + 2) + a[:-2]
    b_batch = (1,) * (dims - len(b) + 2) + b[:-2]
    return MatmulShape(a_batch, b_batch, a[-2], a[-1], b[-1])


def legalize_matmul(bb: relax.BlockBuilder, call: Any, *, vectors: VectorUnit, threads: int = 1) -> Any:
    """``R.matmul`` as a call of :func:`matmul`, for the map that ``relax.transform.LegalizeOps`` takes.

    Products that are not static float32 matrices keep TVM's own form.
    """
    a, b = call.args
    known = (_static(a), _static(b))
    shape = None if known[0] is None or known[1] is None else shape_of(known[0], known[1])
    if shape is None or known[0] is None or known[1] is None or str(call.ty.dtype) != F32:
        return tvm.ir.Op.get("relax.matmul").get_attr("FLegalize")(bb, call)
    out = tuple(int(d) for d in call.ty.shape)
    function = bb.add_func(matmul(shape, vectors, threads, (known[0], known[1], out)), "dense_matmul")
    return relax.call_tir(function, [a, b], relax.TensorType(out, F32))
