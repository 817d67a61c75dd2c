"""The vector code of every activation against its meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.tirx.script import builder as T

from sparseflow.core.activations import fused
from sparseflow.kernels.ir import emit

NAN, INF = float("nan"), float("inf")
AWKWARD = [NAN, INF, -INF, 0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 0.75, -3.0, 3.0, 6.0, -6.0, 90.0, -90.0]


def _kernel(activation: str, count: int, lanes: int, name: str) -> Any:
    with emit.prim_func(name) as finish:
        x, y = emit.arg("x", (count,)), emit.arg("y", (count,))
        with emit.loop(count // lanes) as i:
            at = emit.ramp(i * lanes, lanes)
            T.buffer_store(y, emit.activate(activation, x[at], lanes, 0.75), [at])
    return finish()


@pytest.mark.parametrize("lanes", [16, 4, 1])
def test_vector_code_means_what_numpy_does(lanes: int, compile_kernels: Any) -> None:
    x = np.concatenate([AWKWARD, np.linspace(-12.0, 12.0, 4096)]).astype(np.float32)
    kernels = compile_kernels({name: _kernel(name, len(x), lanes, name) for name in fused()})
    for name, activation in fused().items():
        found = kernels(name, [x], (len(x),))
        with np.errstate(all="ignore"):
            expected = activation.numpy(x.astype(np.float64), 0.75)
        plain = (
            ~np.isinf(x) if name == "gelu" else np.full(len(x), True)
        )  # docs/compiler.md, NaN and infinity
        np.testing.assert_allclose(found[plain], expected[plain], rtol=2e-6, atol=1e-6, err_msg=name)
        assert not activation.keeps_zero(0.75) or not found[x == 0.0].any()
