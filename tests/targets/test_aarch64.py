"""Kernels and a network compiled for aarch64 give the dense reference's results under an emulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm

import sparseflow
from sparseflow.core.element_type import UINT8
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.runtime.manifest import CODE, WEIGHTS
from sparseflow.engine.target.targets import linker, resolve
from sparseflow.errors import EngineError
from sparseflow.kernels.lane import operators as maps
from sparseflow.kernels.layouts.lane import canonical
from sparseflow.kernels.target.cpu import NEON, Cpu
from sparseflow.kernels.workload import Workload
from tests.kernels.test_contract import CASES, Case, pruned
from tests.kernels.test_quantised import CASES as QUANTISED
from tests.kernels.test_quantised import Case as QuantisedCase
from tests.targets.conftest import Emulator

pytestmark = pytest.mark.slow

KERNELS = [
    "primes",  # taps of single filters, ragged map
    "dilation",  # taps shared by four filters
    "batch 3, stride 2",
    "all dense",
    "depthwise",
    "chunks",
    "two threads",
    "13 rows",
    "classifier",
    "few outputs",
]


class EmulatedKernels:
    """Like `tests.kernels.conftest.Kernels`, on the emulated machine."""

    def __init__(
        self, functions: Mapping[str, Any], emulator: Emulator, folder: Path, target: Cpu = NEON
    ) -> None:
        self.emulator, self.library = emulator, folder / "kernels.so"
        assert resolve("neon") == NEON
        module = tvm.compile(tvm.IRModule(dict(functions)), target=target.tvm)
        module.export_library(str(self.library), cc=linker(type(NEON), "aarch64"))

    def __call__(
        self, name: str, inputs: Sequence[np.ndarray], shape: tuple[int, ...], dtype: str = "float32"
    ) -> np.ndarray:
        fill = np.nan if dtype == "float32" else -1
        (y,) = self.emulator.run(self.library, name, [*inputs, np.full(shape, fill, dtype)])
        return y


@pytest.fixture
def compile_kernels(emulator: Emulator, tmp_path: Path) -> Any:
    return lambda functions: EmulatedKernels(functions, emulator, tmp_path)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_the_dense_reference(name: str, compile_kernels: Any, dense_reference: Any) -> None:
    workload, structure, density = CASES[name]
    weight = pruned(workload, structure, density, seed=len(name))
    case = Case(replace(workload, target=NEON), weight, 3, dense_reference)
    assert case.check(compile_kernels, (1, 1, 1, 1), slack=0) > 0


@pytest.mark.parametrize("instructions", ["+dotprod", "+i8mm"])
@pytest.mark.parametrize("name", ["primes", "all dense", "depthwise", "13 rows"])
def test_kernels_on_levels_equal_integer_arithmetic(
    name: str, instructions: str, emulator: Emulator, tmp_path: Path, dense_reference: Any
) -> None:
    target = Cpu.of({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", instructions]})
    workload, structure, density = QUANTISED[name]
    weight = pruned(workload, structure, density, seed=len(name))
    case = QuantisedCase(replace(workload, target=target, result=UINT8), weight, 3, dense_reference)
    kernels = partial(EmulatedKernels, emulator=emulator, folder=tmp_path, target=target)
    assert case.check(kernels, (1, 1, 1, 1), slack=1) > 0


def test_max_pool_equals_torch(compile_kernels: Any) -> None:
    x = np.random.default_rng(1).standard_normal((1, 5, 14, 13)).astype(np.float32)
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(x), 3, 2, 1).numpy()
    window = maps.Pool("max", (3, 3), (2, 2), (1, 1, 1, 1))
    w = Workload("conv2d", 1, 5, 14, 13, 5, (3, 3), (2, 2), (1, 1, 1, 1), target=NEON)
    out = canonical(5, *expected.shape[2:], lanes=NEON.vectors.lanes)
    source = replace(w.input_layout(out), fill=float("-inf"))
    kernels = compile_kernels({"pool": maps.pool(window, 1, source, out, 1, "pool")})
    y = kernels("pool", [source.pack(x)], (1, out.size))
    np.testing.assert_array_equal(out.unpack(y), expected)


class Net(torch.nn.Module):
    """A strided stem, a sparse residual block, a depthwise layer, pools, attention's product and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = torch.nn.Conv2d
        self.stem = conv(3, 16, 3, stride=2, padding=1)
        self.one, self.two = conv(16, 16, 3, padding=1), conv(16, 16, 3, padding=1)
        self.depth, self.wide = conv(16, 16, 3, padding=1, groups=16), conv(16, 32, 1)
        self.head = torch.nn.Linear(32, 10)
        with torch.no_grad():
            self.one.weight[torch.rand(self.one.weight.shape) < 0.9] = 0.0
            keep = torch.rand(4, 1, 16, 3, 3) < 0.2
            self.two.weight *= keep.expand(4, 4, 16, 3, 3).reshape(16, 16, 3, 3)

    def forward(self, x: Any) -> Any:
        y = torch.nn.functional.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        y = torch.relu(self.two(torch.relu(self.one(y))) + y)
        y = torch.nn.functional.silu(self.wide(torch.relu(self.depth(y))))
        tokens = y.flatten(2)
        mixed = torch.softmax(tokens.transpose(1, 2) @ tokens, -1) @ tokens.transpose(1, 2)
        return self.head(mixed.mean(1))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_equals_torch(threads: int, emulator: Emulator, tmp_path: Path) -> None:
    net, x = Net().eval(), torch.randn(1, 3, 37, 45)
    engine = sparseflow.compile(net, (x,), target="neon", threads=threads)
    folder = engine.save(tmp_path / "net")
    assert {layer.chosen.template for layer in engine.plan.layers} >= {"taps", "direct"}
    assert not engine.plan.measured
    assert engine.manifest.architecture == "aarch64"
    with np.load(folder / WEIGHTS) as file:
        weights = [file[name] for name in file.files]
    (y,) = emulator.run(folder / CODE, "main", [x.numpy(), *weights])
    expected = net(x).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))
    with pytest.raises(EngineError, match="compiled for aarch64, this machine is"):
        Engine.load(folder)
