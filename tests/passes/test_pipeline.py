"""The pipeline: named phases in order, observed after each, usable one by one; errors keep their class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from sparseflow.errors import CompileError
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.template import TEMPLATES
from sparseflow.kernels.tuning.selector import Selector
from sparseflow.passes import pipeline
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.hoist import SMALL, hoist_constants
from sparseflow.passes.ops import constant
from sparseflow.passes.plan import PlanKernels, plan_of

op = relax.op
RNG = np.random.default_rng(0)


def _weight(*shape: int, name: str = "conv.weight") -> Any:
    return constant(RNG.standard_normal(shape).astype(np.float32), name)


@pytest.fixture
def selector() -> Selector:
    """Ranks by the cost model."""
    return Selector(AVX512, "test machine", measure=False)


@pytest.fixture
def net(build: Any) -> Any:
    """One convolution and an operator that TVM lowers."""
    return build(
        {"x": (1, 3, 9, 9)},
        lambda bb, x: bb.emit(op.exp(bb.emit(op.nn.conv2d(x, _weight(4, 3, 3, 3))))),
    )


def test_every_phase_is_observed_in_order(net: Any, selector: Selector) -> None:
    seen: list[tuple[str, Any]] = []
    result = pipeline.run(net, selector, observe=lambda name, mod: seen.append((name, mod)))
    assert [name for name, _ in seen] == list(pipeline.phases(selector))
    assert seen[-1][1].same_as(result)
    assert len({str(mod.script(show_meta=False)) for _, mod in seen}) >= 4


def test_a_phase_fits_into_a_users_own_sequence(net: Any, same: Any, selector: Selector) -> None:
    own = [relax.transform.Normalize(), Canonicalise(AVX512), relax.transform.DeadCodeElimination()]
    same(net, tvm.transform.Sequential([*own, PlanKernels(selector)])(net))


def test_the_plan_survives_all_phases(net: Any, selector: Selector) -> None:
    plan = plan_of(pipeline.run(net, selector))
    assert [layer.name for layer in plan.layers] == ["conv"]


def test_an_error_in_a_pass_keeps_its_class_and_its_line(
    net: Any, selector: Selector, monkeypatch: Any
) -> None:
    for template in TEMPLATES.values():
        monkeypatch.setattr(type(template), "rejects", lambda _self, _w: "not today")
    with pytest.raises(CompileError, match="no kernel for conv2d") as caught:
        pipeline.run(net, selector)
    assert "\n" not in str(caught.value)


def test_control_flow_is_an_error_of_one_line() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 2), "float32"))
    with builder.function("main", [x]):
        y = builder.match_cast(x, relax.TensorType((2, 2), "float32"))
        builder.emit_func_output(y)
    with pytest.raises(CompileError, match="only straight-line models") as caught:
        Canonicalise(AVX512)(builder.get())
    assert "\n" not in str(caught.value)


def test_hoisted_constants_become_parameters(build: Any, interpret: Any, close: Any) -> None:
    big = _weight(4, 5, name="layer.weight")

    def body(bb: Any, x: Any) -> Any:
        y = bb.emit(op.add(x, big))
        return bb.emit(op.multiply(y, big))

    mod = build({"x": (4, 5)}, body)
    hoisted, tensors = hoist_constants(mod)
    (name,) = tensors
    assert name.startswith("layer_weight")
    np.testing.assert_array_equal(tensors[name].numpy(), big.value.numpy())
    main = hoisted["main"]
    assert [p.name for p in main.params] == ["x", name]
    assert int(main.attrs["num_input"]) == 1
    assert len(mod["main"].params) == 1
    x = np.ones((4, 5), np.float32)
    close(interpret(hoisted, x, big.value.numpy()), interpret(mod, x))


def test_small_constants_stay_in_the_code(build: Any) -> None:
    small = _weight(SMALL, name="small")
    _, tensors = hoist_constants(build({"x": (SMALL,)}, lambda bb, x: bb.emit(op.add(x, small))))
    assert tensors == {}
