"""Calls from several Python threads, and engines with different numbers of threads of their own, in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm

import sparseflow
from sparseflow import Engine, StreamEngine
from sparseflow.engine import build as build_module
from sparseflow.engine.runtime.threads import MOST_THREADS, checked_threads, set_threads
from sparseflow.errors import CompileError
from sparseflow.kernels.notices import without_notices

CALLERS, CALLS = 8, 25
CPUS = os.cpu_count() or 1
SHAPE = (1, 3, 24, 24)
several = pytest.mark.skipif(CPUS < 2, reason="one CPU")


def running() -> int:
    """Threads of the pool of the calling thread."""
    return int(tvm.get_global_func("runtime.NumThreads")())


def _net(seed: int) -> Any:
    torch.manual_seed(seed)
    conv = torch.nn.Conv2d
    return torch.nn.Sequential(
        conv(3, 16, 3, padding=1), torch.nn.ReLU(), conv(16, 16, 3, padding=1), torch.nn.Tanh()
    ).eval()


@pytest.fixture(scope="module")
def x() -> Any:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def engines(x: Any) -> list[Engine]:
    """For one and two threads; what is made last uses one."""
    return [sparseflow.compile(_net(t), (x,), threads=t, measure=False) for t in (2, 1)]


def _frames() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(SHAPE).astype(np.float32) for _ in range(CALLERS)]


def _together(call: Callable[[int], Any]) -> list[Any]:
    """The results of ``call(i)`` from as many threads, which start at once."""
    ready = threading.Barrier(CALLERS)

    def run(i: int) -> list[Any]:
        ready.wait()
        return [call(i) for _ in range(CALLS)]

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(run, range(CALLERS)))


def test_one_engine_called_from_many_threads(engines: list[Engine]) -> None:
    frames = _frames()
    for engine in engines:
        expected = [engine(frame) for frame in frames]
        for mine, wanted in zip(_together(lambda i, e=engine: e(frames[i])), expected, strict=True):
            for found in mine:
                np.testing.assert_array_equal(found, wanted)


def test_two_engines_called_measured_and_profiled_from_many_threads(engines: list[Engine]) -> None:
    frames = _frames()
    expected = [engines[i % 2](frame) for i, frame in enumerate(frames)]

    def call(i: int) -> Any:
        engine = engines[i % 2]
        if i in (2, 3):
            return engine.measure(frames[i], repeats=2, warmup=0).threads
        if i in (4, 5):
            return len(engine.profile(frames[i], repeats=1))
        return engine(frames[i])

    found = _together(call)
    operators = [len(engine.profile(frames[0], repeats=1)) for engine in engines]
    for i, mine in enumerate(found):
        if i in (2, 3):
            assert set(mine) == {min(engines[i % 2].threads, CPUS)}
        elif i in (4, 5):
            assert set(mine) == {operators[i % 2]}
        else:
            for result in mine:
                np.testing.assert_array_equal(result, expected[i])


def test_engines_that_share_their_code_called_from_many_threads(
    engines: list[Engine], tmp_path: Path
) -> None:
    saved = engines[0].save(tmp_path / "net.engine")
    both = [Engine.load(saved), Engine.load(saved), engines[0], engines[0].with_plan(engines[0].plan)]
    frames = _frames()
    expected = [engines[0](frame) for frame in frames]
    for i, mine in enumerate(_together(lambda i: both[i % 4](frames[i]))):
        for found in mine:
            np.testing.assert_array_equal(found, expected[i])


def test_a_stream_called_from_many_threads(x: Any) -> None:
    stream: StreamEngine = sparseflow.compile_stream(_net(1), (x,), measure=False, exact=True, threads=2)
    frames = _frames()
    expected = []
    for frame in frames:
        stream.reset()
        expected.append(stream(frame))

    def call(i: int) -> Any:
        if i == 0:
            stream.reset()
        return stream(frames[i])

    for i, mine in enumerate(_together(call)):
        for found in mine:
            np.testing.assert_array_equal(found, expected[i])


def test_loading_from_many_threads_keeps_standard_error(engines: list[Engine], tmp_path: Path) -> None:
    saved = engines[0].save(tmp_path / "net.engine")
    before = os.fstat(2)
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(Engine.load, [saved] * CALLERS))
    assert os.path.samestat(before, os.fstat(2))
    with without_notices():
        pass


@several
def test_every_engine_runs_on_its_own_number_of_threads(engines: list[Engine], x: Any) -> None:
    two, one = engines
    tvm.get_global_func("runtime.config_threadpool")(1, 1)  # as another library might
    for call in (two, two.profile):
        tvm.get_global_func("runtime.config_threadpool")(1, 1)
        call(x)
        assert running() == 2
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    assert two.measure(x, repeats=1).threads == 2
    assert running() == 2
    assert one.measure(x, repeats=1).threads == 1
    assert "TVMBackendParallelLaunch" not in one._executable.mod.imports[0].inspect_source("ll")


@several
def test_a_stream_runs_on_its_own_number_of_threads(x: Any) -> None:
    stream = sparseflow.compile_stream(_net(1), (x,), measure=False, threads=2)
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    stream(x)
    assert running() == 2


@several
def test_kernels_are_measured_on_the_threads_they_are_for(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = build_module.pipeline.run
    monkeypatch.setattr(build_module.pipeline, "run", lambda *a: seen.append(running()) or run(*a))
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    sparseflow.compile(_net(1), (x,), threads=2, measure=False)
    assert seen == [2]


def test_changing_the_number_starts_no_threads(engines: list[Engine], x: Any) -> None:
    def tasks() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    for engine in engines:
        engine(x)
    before = tasks()
    for _ in range(20):
        for engine in engines:
            engine(x)
        tvm.get_global_func("runtime.config_threadpool")(1, 1)
    assert tasks() == before


def test_an_engine_for_one_thread_makes_no_pool(engines: list[Engine], x: Any) -> None:
    def started() -> int:
        before = len(os.listdir("/proc/self/task"))
        engines[1](x)
        return len(os.listdir("/proc/self/task")) - before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(started).result() == 0


FEWER = """
import sys, numpy as np
from sparseflow import Engine
engine = Engine.load(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], engine(x))
print(engine.threads, engine.measure(x, repeats=1).threads)
"""


def test_a_machine_with_fewer_cpus_says_so(engines: list[Engine], x: Any, tmp_path: Path) -> None:
    saved = engines[0].save(tmp_path / "net.engine")
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = [str(saved), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(
        [sys.executable, "-c", FEWER, *arguments], env={**os.environ, "TVM_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["2", "1"], done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), engines[0](x.numpy()))


@pytest.mark.parametrize(
    "threads", [0, -1, 2**40, MOST_THREADS + 1, 1.5, 2.0, "2", True, None, [1], np.bool_(1)]
)
def test_threads_that_are_none(threads: Any, x: Any) -> None:
    for compile_it in (sparseflow.compile, sparseflow.compile_stream):
        with pytest.raises(CompileError) as caught:
            compile_it(_net(0), (x,), threads=threads, measure=False)
        assert str(caught.value) == f"threads={threads!r}: allowed: whole numbers 1 to {MOST_THREADS}"


def test_what_is_measured_runs_on_the_cpus_here(x: Any) -> None:
    for compile_it in (sparseflow.compile, sparseflow.compile_stream):
        with pytest.raises(CompileError, match=f"threads={CPUS + 1}: allowed: 1 to {CPUS}, the CPUs here"):
            compile_it(_net(0), (x,), threads=CPUS + 1)
    assert checked_threads(np.int64(CPUS), measured=True) == CPUS
    assert set_threads(CPUS) == CPUS


@pytest.mark.slow
def test_more_threads_than_cpus_and_pixels(x: Any) -> None:
    net = _net(2)
    engine = sparseflow.compile(net, (x,), threads=MOST_THREADS, measure=False)
    np.testing.assert_allclose(engine(x.numpy()), net(x).detach().numpy(), atol=1e-5)
    assert engine.measure(x, repeats=1).threads == CPUS
