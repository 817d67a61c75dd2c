"""Operators of every class through ScheduleRest against torch: awkward shapes, one and two threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from tvm import relax, tirx
from tvm.relax import op as R

from sparseflow.kernels.cpu_rules import Resources, rules
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.passes.schedule_rest import SCHEDULED, ScheduleRest, schedule

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v4"})


def _module(make: Callable[..., Any], *inputs: np.ndarray) -> Any:
    """Relax after the passes that come before ScheduleRest."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(x.shape, str(x.dtype))) for i, x in enumerate(inputs)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(make(builder.emit, *params))
        builder.emit_func_output(out)
    module = builder.get()
    with TARGET:
        for each in (
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ):
            module = each(module)
    return module


def _run(module: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    machine = relax.VirtualMachine(tvm.compile(module, target=TARGET), tvm.cpu())
    out = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(x)) for x in inputs))
    return [out.numpy()] if hasattr(out, "numpy") else [o.numpy() for o in out]


def _prim_funcs(module: Any) -> dict[str, Any]:
    return {g.name_hint: f for g, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}


@dataclass(frozen=True)
class Case:
    """One operator or chain: how Relax makes it, what torch makes of it, shapes of the inputs."""

    name: str
    make: Callable[..., Any]
    expected: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    atol: float = 2e-6


def _const(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype("float32")


def _chain(emit: Any, x: Any, y: Any) -> Any:
    total = emit(R.add(x, emit(R.multiply(y, relax.const(0.5, "float32")))))
    return R.multiply(emit(R.nn.relu(total)), emit(R.sigmoid(y)))


def _norm_gelu(emit: Any, x: Any) -> Any:
    norm = R.nn.layer_norm(x, relax.const(_const(37)), relax.const(_const(37) * 2), axes=[-1], epsilon=1e-5)
    return R.nn.gelu(emit(norm))


def _norm_gelu_torch(x: Any) -> Any:
    weight = torch.from_numpy(_const(37))
    return F.gelu(F.layer_norm(x, (37,), weight, weight * 2, 1e-5))


def _concat_pad(emit: Any, x: Any, y: Any) -> Any:
    both = emit(R.concat([x, emit(R.nn.relu(y))], axis=1))
    return R.nn.pad(both, [0, 0, 0, 0, 1, 2, 3, 1])


CASES = [
    Case("relu", lambda e, x: R.nn.relu(x), torch.relu, ((1, 3, 17, 19),)),
    Case("one element", lambda e, x: R.exp(x), torch.exp, ((1, 1),)),
    Case(
        "fused chain",
        _chain,
        lambda x, y: torch.relu(x + y * 0.5) * torch.sigmoid(y),
        ((2, 5, 7, 11),) * 2,
    ),
    Case("broadcast rows", lambda e, x, y: R.add(x, y), torch.add, ((2, 13, 1, 29), (13, 5, 29))),
    Case("broadcast channel", lambda e, x, y: R.multiply(x, y), torch.mul, ((3, 7, 5, 5), (1, 7, 1, 1))),
    Case("hard clip", lambda e, x: R.clip(x, -0.5, 0.5), lambda x: x.clamp(-0.5, 0.5), ((4, 33),)),
    Case("silu", lambda e, x: R.nn.silu(x), F.silu, ((3, 41),)),
    Case("gelu", lambda e, x: R.nn.gelu(x), F.gelu, ((3, 7, 47),)),
    Case("gelu tanh", lambda e, x: R.nn.gelu_tanh(x), lambda x: F.gelu(x, approximate="tanh"), ((3, 47),)),
    Case("square", lambda e, x: R.power(x, relax.const(2.0, "float32")), torch.square, ((5, 19),)),
    Case(
        "permute heads",
        lambda e, x: R.permute_dims(x, [1, 0, 2]),
        lambda x: x.permute(1, 0, 2),
        ((13, 5, 17),),
    ),
    Case("transpose", lambda e, x: R.permute_dims(x), lambda x: x.T, ((37, 53),)),
    Case("transpose whole tiles", lambda e, x: R.permute_dims(x), lambda x: x.T, ((32, 48),)),
    Case(
        "permute key",
        lambda e, x: R.permute_dims(x, [0, 2, 3, 1]),
        lambda x: x.permute(0, 2, 3, 1),
        ((2, 19, 3, 23),),
    ),
    Case(
        "scaled transpose",
        lambda e, x: R.multiply(e(R.permute_dims(x, [0, 2, 1])), relax.const(0.125, "float32")),
        lambda x: x.transpose(1, 2) * 0.125,
        ((3, 17, 31),),
    ),
    Case(
        "reshape",
        lambda e, x: R.nn.relu(e(R.reshape(x, (6, 35)))),
        lambda x: torch.relu(x.reshape(6, 35)),
        ((2, 3, 5, 7),),
    ),
    Case(
        "concat and pad",
        _concat_pad,
        lambda x, y: F.pad(torch.cat([x, torch.relu(y)], 1), (3, 1, 1, 2)),
        ((2, 3, 5, 19), (2, 4, 5, 19)),
    ),
    Case(
        "concat last",
        lambda e, x, y: R.concat([x, y], axis=-1),
        lambda x, y: torch.cat([x, y], -1),
        ((5, 3), (5, 29)),
    ),
    Case(
        "strided slice",
        lambda e, x: R.strided_slice(x, [2, 3], [1, 0], [19, 23], [2, 3]),
        lambda x: x[:, :, 1:19:2, 0:23:3],
        ((2, 3, 19, 23),),
    ),
    Case("mean of pixels", lambda e, x: R.mean(x, [2, 3]), lambda x: x.mean((2, 3)), ((2, 37, 7, 7),)),
    Case("sum of one row", lambda e, x: R.sum(x, [1]), lambda x: x.sum(1), ((1, 1031),), 1e-4),
    Case("sum of rows", lambda e, x: R.sum(x, [0]), lambda x: x.sum(0), ((41, 83),), 1e-5),
    Case("sum of all", lambda e, x: R.sum(x), lambda x: x.sum(), ((7, 11, 13),), 1e-4),
    Case("max of the middle", lambda e, x: R.max(x, [1]), lambda x: x.amax(1), ((3, 17, 5),)),
    Case(
        "min of the last",
        lambda e, x: R.min(x, [-1], keepdims=True),
        lambda x: x.amin(-1, keepdim=True),
        ((6, 75),),
    ),
    Case(
        "sum of few exponentials",
        lambda e, x: R.sum(e(R.exp(e(R.tanh(x)))), [1]),
        lambda x: x.tanh().exp().sum(1),
        ((2, 5, 83),),
        1e-5,
    ),
    Case("product", lambda e, x: R.prod(x, [-1]), lambda x: x.prod(-1), ((6, 19),), 1e-4),
    Case("variance", lambda e, x: R.variance(x, [-1]), lambda x: x.var(-1, correction=0), ((6, 75),)),
    Case(
        "max pool",
        lambda e, x: R.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1)),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        ((2, 3, 37, 41),),
    ),
    Case(
        "max pool even",
        lambda e, x: R.nn.max_pool2d(x, (2, 2), (2, 2)),
        lambda x: F.max_pool2d(x, 2),
        ((1, 5, 64, 64),),
    ),
    Case(
        "max pool of relu",
        lambda e, x: R.nn.max_pool2d(e(R.nn.relu(x)), (3, 3), (1, 1), (1, 1, 1, 1)),
        lambda x: F.max_pool2d(torch.relu(x), 3, 1, 1),
        ((1, 2, 7, 7),),
    ),
    Case(
        "average pool",
        lambda e, x: R.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1)),
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        ((2, 3, 19, 23),),
    ),
    Case(
        "adaptive pool",
        lambda e, x: R.nn.adaptive_avg_pool2d(x, (3, 2)),
        lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
        ((1, 5, 7, 11),),
    ),
    Case("softmax", lambda e, x: R.nn.softmax(x, -1), lambda x: x.softmax(-1), ((2, 3, 5, 37),)),
    Case("softmax one row", lambda e, x: R.nn.softmax(x, -1), lambda x: x.softmax(-1), ((1, 1000),)),
    Case("softmax of channels", lambda e, x: R.nn.softmax(x, 1), lambda x: x.softmax(1), ((2, 13, 5, 7),)),
    Case("log softmax", lambda e, x: R.nn.log_softmax(x, -1), lambda x: x.log_softmax(-1), ((5, 43),)),
    Case(
        "masked softmax",
        lambda e, x, m: R.nn.softmax(e(R.add(x, m)), -1),
        lambda x, m: (x + m).softmax(-1),
        ((2, 3, 19, 19), (1, 1, 19, 19)),
    ),
    Case("layer norm and gelu", _norm_gelu, _norm_gelu_torch, ((2, 11, 37),), 1e-5),
    Case(
        "group norm",
        lambda e, x: R.nn.group_norm(x, relax.const(_const(6)), relax.const(_const(6)), 3, 1, [2, 3]),
        lambda x: F.group_norm(x, 3, torch.from_numpy(_const(6)), torch.from_numpy(_const(6))),
        ((2, 6, 5, 7),),
        1e-5,
    ),
    Case(
        "product of matrices",
        lambda e, x, y: R.matmul(x, y),
        torch.matmul,
        ((2, 7, 13), (2, 13, 19)),
        1e-5,
    ),
    Case(
        "depthwise convolution",
        lambda e, x, w: R.nn.conv2d(x, w, padding=1, groups=5),
        lambda x, w: F.conv2d(x, w, padding=1, groups=5),
        ((1, 5, 9, 11), (5, 1, 3, 3)),
        1e-5,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_equals_torch(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal(s).astype("float32") for s in case.shapes]
    expected = case.expected(*map(torch.from_numpy, inputs)).numpy()
    module = _module(case.make, *inputs)
    monkeypatch.setattr(rules, "PARALLEL_SIZE", 1)
    for threads in (1, 2):
        (got,) = _run(ScheduleRest(AVX512, threads)(module), *inputs)
        np.testing.assert_allclose(got, expected, atol=case.atol, rtol=2e-6)


def test_embedding() -> None:
    table = _const(31, 19)
    for dtype in ("int32", "int64"):
        places = np.array([[3, 0, 30], [7, 7, 1]], dtype)
        module = _module(lambda e, t, i: R.take(t, i, axis=0), table, places)
        np.testing.assert_array_equal(_run(ScheduleRest(AVX512)(module), table, places)[0], table[places])


def test_casts_and_comparisons() -> None:
    x = _const(3, 37)

    def make(emit: Any, v: Any) -> Any:
        inside = emit(R.greater(v, relax.const(0.0, "float32")))
        return R.where(inside, emit(R.astype(v, "int32")), relax.const(7, "int32"))

    (got,) = _run(ScheduleRest(AVX512)(_module(make, x)), x)
    np.testing.assert_array_equal(got, np.where(x > 0, x.astype("int32"), 7))


def test_several_results() -> None:
    x = _const(4, 22)
    module = _module(lambda e, v: R.split(v, 2, axis=1), x)
    left, right = _run(ScheduleRest(AVX512)(module), x)
    np.testing.assert_array_equal(np.concatenate([left, right], 1), x)


@pytest.mark.slow
def test_long_chain() -> None:
    x = _const(3, 37)

    def make(emit: Any, v: Any) -> Any:
        for step in range(240):
            v = emit(R.add(v, relax.const(float(step % 3), "float32")))
            v = emit(R.exp(v)) if step % 80 == 7 else emit(R.multiply(v, relax.const(0.5, "float32")))
        return R.nn.relu(v)

    module = _module(make, x)
    assert len(_prim_funcs(module)) < 10
    (got,) = _run(ScheduleRest(AVX512)(module), x)
    np.testing.assert_allclose(got, _run(module, x)[0], rtol=1e-5)


def test_a_concatenation_of_hundreds_keeps_its_loops_and_says_why() -> None:
    x = _const(600, 3)
    module = _module(lambda e, v: R.concat(list(e(R.split(e(R.exp(v)), 600)))[::-1], 0), x)
    found = [schedule(func, Resources(16))[1] for func in _prim_funcs(module).values()]
    assert any("deep; 250 are allowed" in r for reasons in found for r in reasons)


def test_the_time_of_scheduling_grows_with_the_number_of_stages() -> None:
    """200 stages in one function took half a minute; now they take half a second."""

    def chain(emit: Any, v: Any) -> Any:
        done = [v]
        for _ in range(150):
            done.append(emit(R.tanh(emit(R.add(done[-1], v)))))
        return R.concat(done, 0)

    module = _module(chain, _const(1, 32))
    begun = time.perf_counter()
    ScheduleRest(AVX512)(module)
    assert time.perf_counter() - begun < 5.0


def test_empty_tensors_keep_their_loops() -> None:
    x = np.zeros((0, 5), "float32")
    (got,) = _run(ScheduleRest(AVX512)(_module(lambda e, v: R.exp(v), x)), x)
    assert got.shape == (0, 5)


def test_arg_max_keeps_its_loops_and_says_why() -> None:
    x = _const(5, 23)
    module = _module(lambda e, v: R.argmax(v, axis=1), x)
    (func,) = _prim_funcs(module).values()
    same, reasons = schedule(func, Resources(16))
    assert tvm.ir.structural_equal(same, func) if hasattr(tvm.ir, "structural_equal") else same.same_as(func)
    assert any("does not store exactly one value" in r for r in reasons)
    np.testing.assert_array_equal(_run(ScheduleRest(AVX512)(module), x)[0], x.argmax(1))


def test_marked_functions_are_left_alone() -> None:
    module = _module(lambda e, v: R.nn.relu(v), _const(5, 23))
    marked = tvm.IRModule(
        {
            g: f.with_attr(SCHEDULED, True) if isinstance(f, tirx.PrimFunc) else f
            for g, f in module.functions_items()
        }
    )
    (before,) = _prim_funcs(marked).values()
    (after,) = _prim_funcs(ScheduleRest(AVX512)(marked)).values()
    assert after.same_as(before)


def test_input_module_is_not_changed() -> None:
    module = _module(lambda e, v: R.nn.relu(v), _const(5, 23))
    before = module.script()
    ScheduleRest(AVX512, 2)(module)
    assert module.script() == before


def test_small_work_stays_on_one_thread() -> None:
    small = _module(lambda e, v: R.nn.relu(v), _const(8, 100))
    large = _module(lambda e, v: R.nn.relu(v), _const(8, 10000))
    assert "T.parallel" not in ScheduleRest(AVX512, 2)(small).script()
    assert "T.parallel" in ScheduleRest(AVX512, 2)(large).script()
    assert "T.parallel" not in ScheduleRest(AVX512, 1)(large).script()


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda e, x: R.nn.gelu(x), ((4, 67),)),
        (lambda e, x: R.nn.softmax(x, -1), ((4, 67),)),
        (lambda e, x: R.tanh(x), ((4, 67),)),
        (lambda e, x: R.log(x), ((4, 67),)),
        (lambda e, x: R.mean(x, [2, 3]), ((1, 8, 7, 7),)),
        (lambda e, x: R.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1)), ((1, 4, 40, 40),)),
    ],
)
def test_loops_hold_vectors_and_no_library_calls(make: Callable[..., Any], shapes: Any) -> None:
    module = ScheduleRest(AVX512)(_module(make, *(_const(*s) for s in shapes)))
    (func,) = _prim_funcs(module).values()
    library = tvm.compile(tvm.IRModule({"op": func.with_attr("global_symbol", "op")}), target=TARGET)
    text = library.mod.inspect_source("s")
    assert "zmm" in text
    assert not any(name in text for name in ("expf", "tanhf", "erff", "logf"))


FUNCTIONS = {
    "exp": (R.exp, np.exp, (-86.0, 88.7), 3e-7, 0.0),
    "tanh": (R.tanh, np.tanh, (-20.0, 20.0), 5e-7, 0.0),
    "sigmoid": (R.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (-86.0, 86.0), 5e-7, 0.0),
    "erf": (R.erf, lambda x: torch.erf(torch.from_numpy(x)).numpy(), (-6.0, 6.0), 5e-7, 5e-7),
    "log": (R.log, np.log, (1e-30, 1e30), 3e-7, 2e-7),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_of_polynomials(name: str) -> None:
    operator, exact, (low, high), rtol, atol = FUNCTIONS[name]
    wide = np.linspace(low, high, 200003)
    near = np.geomspace(1e-6, min(high, 2.0), 50021)
    x = np.concatenate([wide, near, -near if low < 0 else near]).astype("float32")
    (got,) = _run(ScheduleRest(AVX512)(_module(lambda e, v: operator(v), x)), x)
    np.testing.assert_allclose(got, exact(x.astype("float64")), rtol=rtol, atol=atol)


def test_limits_of_polynomials() -> None:
    inf = float("inf")
    x = np.array([-inf, -200.0, 0.0, 200.0, inf, float("nan")] * 4, "float32")
    with np.errstate(all="ignore"):
        for operator, exact in ((R.exp, np.exp), (R.tanh, np.tanh), (R.log, np.log)):
            (got,) = _run(ScheduleRest(AVX512)(_module(lambda e, v, o=operator: o(v), x)), x)
            np.testing.assert_allclose(got, exact(x), rtol=1e-6)
    masked = np.full((2, 20), -inf, "float32")
    masked[:, 3] = 1.0
    (got,) = _run(ScheduleRest(AVX512)(_module(lambda e, v: R.nn.softmax(v, -1), masked)), masked)
    np.testing.assert_array_equal(got, (np.arange(20) == 3)[None].repeat(2, 0).astype("float32"))
