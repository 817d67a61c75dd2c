"""Dense references and a bench on which any kernel runs, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import tvm

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.core.element_type import BFLOAT16, UINT8
from sparseflow.engine.target.targets import host_target

NEEDS_PAIRS = pytest.mark.skipif(
    not host_target().multiplies(BFLOAT16), reason="this processor multiplies no pairs of bfloat16"
)
NEEDS_QUADS = pytest.mark.skipif(
    not host_target().multiplies(UINT8), reason="this processor multiplies no quads of bytes"
)


@pytest.fixture(scope="session")
def host() -> Any:
    """The target of this machine."""
    tvm.get_global_func("runtime.config_threadpool")(1, 2)
    return host_target()


class Kernels:
    """Kernels compiled together, as each compilation has a fixed cost; call one by name with NumPy arrays."""

    def __init__(self, functions: Mapping[str, Any], target: Any) -> None:
        self.module = tvm.compile(tvm.IRModule(dict(functions)), target=target.tvm)

    def __call__(
        self, name: str, inputs: Sequence[np.ndarray], shape: tuple[int, ...], dtype: str = "float32"
    ) -> np.ndarray:
        """The one output, which holds NaN before, or the bits of two in bfloat16."""
        fill = np.nan if dtype == "float32" else -1
        return self.run(name, inputs, [np.full(shape, fill, dtype)])[0]

    def run(self, name: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """All outputs; what ``outputs`` hold is there before the kernel runs."""
        made = [self.tensor(y) for y in outputs]
        self.module[name](*(x if isinstance(x, float) else self.tensor(x) for x in inputs), *made)
        return [np.asarray(y.numpy()) for y in made]

    @staticmethod
    def tensor(array: np.ndarray) -> Any:
        out = tvm.runtime.empty(array.shape, str(array.dtype))
        out.copyfrom(np.ascontiguousarray(array))
        return out


@pytest.fixture(scope="session")
def compile_kernels(host: Any) -> Any:
    """``compile_kernels({name: PrimFunc})`` gives `Kernels`."""
    return lambda functions: Kernels(functions, host)


@pytest.fixture(scope="session")
def dense_reference() -> Any:
    """``dense_reference(workload, x, weight, bias, residual)``: NCHW in float64, a linear layer as 1x1."""

    def compute(
        w: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, residual: np.ndarray | None
    ) -> np.ndarray:
        top, left, bottom, right = w.padding
        padded = torch.nn.functional.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
        kernel = torch.from_numpy(weight.reshape(w.weight_shape)).double()
        y = torch.nn.functional.conv2d(
            padded, kernel, None, stride=w.stride, dilation=w.dilation, groups=w.groups
        )
        if bias is not None:
            y = y + torch.from_numpy(bias).double()[None, :, None, None]
        if residual is not None:
            y = y + torch.from_numpy(residual).double()
        return ACTIVATIONS[w.activation].numpy(y.numpy(), w.parameter)

    return compute
