"""Products of two computed matrices against NumPy on awkward sizes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tvm
from tvm import relax

from sparseflow.errors import CompileError
from sparseflow.kernels.cpu_rules.dense_matmul import (
    MatmulShape,
    legalize_matmul,
    matmul,
    panels,
    shape_of,
)
from sparseflow.kernels.target.base import VectorUnit
from sparseflow.kernels.target.cpu import AVX2, AVX512

RNG = np.random.default_rng(0)


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


def _run(
    shape: MatmulShape, a: np.ndarray, b: np.ndarray, threads: int, vectors: VectorUnit = AVX512.vectors
) -> np.ndarray:
    function = matmul(shape, vectors, threads).with_attr("global_symbol", "product")
    library = tvm.compile(tvm.IRModule({"product": function}), target=AVX512.tvm)
    out = tvm.runtime.empty((*shape.batch, shape.rows, shape.columns), "float32")
    library["product"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), out)
    return out.numpy()


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(
    ("a_batch", "b_batch", "rows", "depth", "columns"),
    [
        ((2,), (2,), 17, 13, 19),
        ((), (), 1, 7, 1),
        ((3,), (1,), 5, 1, 37),
        ((2, 1), (1, 3), 23, 31, 53),
        ((), (), 33, 1030, 33),
        ((1,), (2,), 20, 600, 16),
    ],
)
def test_equals_numpy(
    a_batch: tuple[int, ...],
    b_batch: tuple[int, ...],
    rows: int,
    depth: int,
    columns: int,
    transpose_b: bool,
) -> None:
    a = _random(*a_batch, rows, depth)
    b = _random(*b_batch, depth, columns)
    given = np.ascontiguousarray(np.swapaxes(b, -1, -2)) if transpose_b else b
    shape = MatmulShape(a_batch, b_batch, rows, depth, columns, transpose_b)
    expected = a.astype("float64") @ b.astype("float64")
    for threads, target in ((1, AVX512), (2, AVX512), (1, AVX2)):
        got = _run(shape, a, given, threads, target.vectors)
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(13, 600, 67), (1, 9, 5), (24, 31, 64)])
def test_constant_operand_in_panels(rows: int, depth: int, columns: int) -> None:
    a, b = _random(2, rows, depth), _random(depth, columns)
    shape = MatmulShape((), (), 2 * rows, depth, columns, panels=True)
    for threads in (1, 2):
        got = _run(shape, a.reshape(2 * rows, depth), panels(b, AVX512.vectors.lanes), threads)
        np.testing.assert_allclose(got.reshape(2, rows, columns), a @ b, atol=2e-4)
    with pytest.raises(CompileError, match="panels"):
        MatmulShape((), (), rows, depth, columns, transpose_b=True, panels=True)


def test_narrow_vectors() -> None:
    a, b = _random(9, 21), _random(21, 27)
    np.testing.assert_allclose(_run(MatmulShape((), (), 9, 21, 27), a, b, 1, AVX2.vectors), a @ b, atol=1e-4)


def test_sums_stay_in_vector_registers() -> None:
    function = matmul(MatmulShape((2,), (2,), 16, 32, 32), AVX512.vectors).with_attr(
        "global_symbol", "product"
    )
    library = tvm.compile(tvm.IRModule({"product": function}), target=AVX512.tvm)
    text = library.mod.inspect_source("s")
    assert text.count("vfmadd") >= 16
    assert "zmm" in text


def test_batches_that_do_not_fit() -> None:
    with pytest.raises(CompileError, match="batches"):
        MatmulShape((2,), (3,), 1, 1, 1)


def test_batch_of_rows_meets_one_matrix() -> None:
    assert shape_of((2, 3, 5, 7), (7, 11)) == MatmulShape((), (), 30, 7, 11)
    assert shape_of((5, 7), (4, 7, 11)) == MatmulShape((1,), (4,), 5, 7, 11)
    assert shape_of((7,), (7, 11)) is None


@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [((2, 3, 5, 7), (2, 3, 7, 9)), ((2, 5, 7), (7, 9)), ((7,), (7, 9)), ((5, 7), (2, 7, 3))],
)
def test_legalised_in_a_module(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    builder = relax.BlockBuilder()
    a = relax.Var("a", relax.TensorType(a_shape, "float32"))
    b = relax.Var("b", relax.TensorType(b_shape, "float32"))
    with builder.function("main", [a, b]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.matmul(a, b))
        builder.emit_func_output(out)
    ours = partial(legalize_matmul, vectors=AVX512.vectors, threads=2)
    module = relax.transform.LegalizeOps({"relax.matmul": ours})(builder.get())
    names = [name.name_hint for name in module.functions]
    assert ("dense_matmul" in names) == (len(a_shape) > 1)
    machine = relax.VirtualMachine(tvm.compile(module, target=AVX512.tvm), tvm.cpu())
    x, y = _random(*a_shape), _random(*b_shape)
    got = machine["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(y)).numpy()
    np.testing.assert_allclose(got, x @ y, atol=1e-4)
