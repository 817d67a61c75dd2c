"""Targets by name: their registers, keys, code, and what is said where one cannot be run or linked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from typer.testing import CliRunner

import sparseflow
from sparseflow.cli.main import app
from sparseflow.engine.target import machine, targets
from sparseflow.engine.target.targets import device, linker, not_here, resolve
from sparseflow.errors import CompileError, EngineError
from sparseflow.kernels.layouts.indexed import ALIGNED
from sparseflow.kernels.target.base import (
    KINDS,
    TARGETS,
    Caches,
    Target,
    VectorUnit,
    frozen,
    target_from,
)
from sparseflow.kernels.target.cpu import AVX2, AVX512, NEON, SSE, Cpu
from sparseflow.kernels.target.flags import vector_flags
from sparseflow.kernels.template import TEMPLATES
from sparseflow.kernels.tuning.selector import Selector
from sparseflow.kernels.workload import Workload, dense_covers, natural_layouts

CONV = Workload(
    "conv2d", 1, 32, 14, 14, 32, (3, 3), padding=(1, 1, 1, 1), covers=dense_covers(), target=AVX512
)
LLVM = [
    ({"kind": "llvm", "mcpu": "znver4"}, AVX512),
    ({"kind": "llvm", "mcpu": "skylake"}, AVX2),
    ({"kind": "llvm", "mcpu": "znver4", "mattr": ["-avx512f"]}, AVX2),
    ({"kind": "llvm", "mcpu": "nehalem"}, SSE),
    ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"}, NEON),
]


@pytest.mark.parametrize("known", [AVX512, AVX2, NEON], ids=lambda t: t.name)
def test_llvms_features_of_a_named_target_are_those_of_its_vectors(known: Cpu) -> None:
    assert resolve(known.name) == Cpu.of(dict(known.options)) == known


@pytest.mark.parametrize(("target", "known"), LLVM)
def test_the_vectors_follow_from_llvms_features(target: dict[str, Any], known: Cpu) -> None:
    found = resolve(target)
    assert (found.name, found.vectors, found.caches) == (known.name, known.vectors, known.caches)
    assert dict(found.options).items() >= {k: v for k, v in target.items() if k != "mattr"}.items()


def test_vectors_of_all_targets_divide_what_indexed_maps_store() -> None:
    assert [t.name for t in (*TARGETS.values(), SSE) if ALIGNED % t.vectors.lanes] == []


def test_choices_for_different_targets_have_different_keys() -> None:
    keys = {Selector(target, "machine")._key(replace(CONV, target=target)) for target in TARGETS.values()}
    assert len(keys) == len(TARGETS)
    assert len({replace(CONV, target=unit).key() for unit in (AVX512, AVX2, NEON)}) == 3


@pytest.mark.parametrize(
    ("name", "register", "wider"), [("avx512", "zmm", None), ("avx2", "ymm", "zmm"), ("neon", "v0.4s", None)]
)
def test_code_uses_the_registers_of_its_target(name: str, register: str, wider: str | None) -> None:
    target = resolve(name)
    w = replace(CONV, target=target)
    template = TEMPLATES["direct"]
    candidate = template.candidates(w)[0]
    function = template.build(w, candidate, natural_layouts(w), "kernel")
    text = str(tvm.compile(tvm.IRModule({"kernel": function}), target=target.tvm).mod.inspect_source("asm"))
    assert register in text
    assert wider is None or wider not in text


def test_unknown_names_are_refused_with_the_known() -> None:
    with pytest.raises(CompileError, match=r"'sse9' is unknown; allowed: native, avx512, avx2, neon"):
        resolve("sse9")
    result = CliRunner().invoke(app, ["compile", "zoo:resnet18", "-o", "x", "--target", "sse9"])
    assert result.exit_code == 1
    assert "allowed: native, avx512, avx2, neon" in result.output


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets.shutil, "which", lambda _name: None)
    with pytest.raises(EngineError, match=r"no aarch64-linux-gnu-g\+\+ found.*--cxx"):
        linker(Cpu, "aarch64")
    with pytest.raises(EngineError, match="no C\\+\\+ compiler 'zig-c'"):
        linker(Cpu, "aarch64", "zig-c")


def test_the_linux_kernels_and_llvms_names_of_instruction_sets_meet() -> None:
    assert vector_flags(["fp", "asimd", "sve", "aes"]) == vector_flags(["neon", "sve"])
    assert vector_flags(["avx512_bf16", "sse2"]) == {"avx512bf16"}


def test_an_engine_for_another_machine_is_told_apart(tmp_path: Path) -> None:
    other = "neon" if resolve("native").architecture == "x86_64" else "avx2"
    said: list[str] = []
    layer = torch.nn.Conv2d(4, 8, 3).eval()
    x = torch.randn(1, 4, 9, 9)
    engine = sparseflow.compile(layer, (x,), target=other, progress=said.append)
    assert any("cost model chooses" in text for text in said)
    assert not engine.plan.measured
    for call in (engine, engine.measure, engine.profile):
        with pytest.raises(EngineError, match="save it and run it there"):
            call(x)
    assert not_here(engine.manifest.architecture, engine.manifest.flags) is not None


def test_avx2_runs_on_a_wider_machine() -> None:
    target = resolve("avx2")
    if not_here(target.architecture, target.instruction_sets) is not None:
        pytest.skip("this machine has no AVX2")
    torch.manual_seed(1)
    layer = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.ReLU()).eval()
    with torch.no_grad():
        layer[0].weight[torch.rand(layer[0].weight.shape) < 0.8] = 0.0
    x = torch.randn(1, 8, 13, 11)
    engine = sparseflow.compile(layer, (x,), target="avx2", measure=False)
    np.testing.assert_allclose(engine(x.numpy()), layer(x).detach().numpy(), rtol=0, atol=1e-4)


UNKNOWN: list[tuple[Any, str]] = [
    ({"kind": "cuda"}, "target kind 'cuda': allowed: llvm"),
    ({"kind": "c"}, "target kind 'c': allowed: llvm"),
    ({"kind": 5}, "target kind 5: allowed: llvm"),
    ({}, "target kind None: allowed: llvm"),
    ({"mcpu": "znver4"}, "target kind None: allowed: llvm"),
    ({"kind": "llvm", "mcpu": "znver9"}, "target mcpu 'znver9' is unknown to LLVM for "),
    ({"kind": "llvm", "mcpu": ""}, "target mcpu '' is unknown to LLVM"),
    ({"kind": "llvm", "mcpu": "native"}, "target mcpu 'native' is unknown to LLVM"),
    ({"kind": "llvm", "mcpu": 5}, "target mcpu 5 is unknown to LLVM"),
    ({"kind": "llvm", "mcpu": ["znver4"]}, "target mcpu ['znver4'] is unknown to LLVM"),
    (
        {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "pentium3"},
        "lacks 64bit, which x86_64 code needs",
    ),
    (
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "znver4"},
        "for aarch64; allowed: generic, cortex-a72",
    ),
    (
        {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mattr": ["-sse2"]},
        "lacks sse2, which x86_64 code needs",
    ),
    ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mattr": ["+avx3"]}, "allowed: +avx, +avx2 and others"),
    ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mattr": ["-foo"]}, "target mattr '-foo' is unknown"),
    ({"kind": "llvm", "mattr": ["avx2"]}, "target mattr 'avx2': allowed: a feature with + or -"),
    ({"kind": "llvm", "mattr": ["+avx2,+fma"]}, "is unknown to LLVM"),
    ({"kind": "llvm", "mattr": [2]}, "target mattr 2: allowed: a feature with + or -"),
    ({"kind": "llvm", "mattr": "+avx2"}, "target mattr '+avx2': allowed: a list"),
    ({"kind": "llvm", "mattr": 2}, "target mattr 2: allowed: a list"),
    ({"kind": "llvm", "mtriple": "foo-bar"}, "allowed: x86_64-linux-gnu, aarch64-linux-gnu"),
    ({"kind": "llvm", "mtriple": ""}, "allowed: x86_64-linux-gnu, aarch64-linux-gnu"),
    ({"kind": "llvm", "mtriple": "riscv64-linux-gnu"}, "'riscv64-linux-gnu' is unknown"),
    ({"kind": "llvm", "mtriple": "x86_64-pc-windows-msvc"}, "'x86_64-pc-windows-msvc' is unknown"),
    ({"kind": "llvm", "mtriple": 64}, "target mtriple 64 is unknown"),
    (
        {"kind": "llvm", "num-cores": 4},
        "target key 'num-cores' is unknown; allowed: kind, mtriple, mcpu, mattr",
    ),
    ({"kind": "llvm", 5: 4}, "target key 5 is unknown"),
    (5, "target 5: allowed: native, avx512, avx2, neon, or a dictionary"),
    (None, "target None: allowed: native"),
    (["llvm"], "target ['llvm']: allowed: native"),
]


@pytest.mark.parametrize(("target", "words"), UNKNOWN)
def test_what_llvm_does_not_know_is_one_line(
    target: Any, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CompileError) as caught:
        sparseflow.compile(torch.nn.Linear(4, 4).eval(), (torch.zeros(1, 4),), measure=False, target=target)
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert capfd.readouterr().err == ""


def test_an_unknown_cpu_is_told_with_those_like_it() -> None:
    with pytest.raises(
        CompileError, match=r"'znver9' is unknown to LLVM for x86_64; allowed: .*znver5.* in all"
    ):
        resolve({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver9"})


@pytest.mark.parametrize(
    "target",
    [
        {"kind": "llvm"},
        {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": "x86-64-v2"},
        {"kind": "llvm", "mtriple": "aarch64-linux-musl", "mattr": ["+neon", "+sve2p1"]},
        {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4", "mattr": ("-avx512f", "+avx2")},
    ],
)
def test_what_llvm_knows_is_taken(target: dict[str, Any]) -> None:
    assert resolve(target).kind == "llvm"


def test_a_target_survives_its_text() -> None:
    for target in (*TARGETS.values(), resolve("native")):
        assert target_from(json.loads(json.dumps(asdict(target)))) == target


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VectorUnit(0, 32, 24, 1), "VectorUnit bits=0: allowed: a whole number from 1"),
        (lambda: VectorUnit(100, 32, 24, 1), "bits in multiples of 32"),
        (lambda: VectorUnit(128, 16, 16, 1), "fewer accumulators than registers"),
        (lambda: Caches(1 << 15, 1 << 20, 1.5), "Caches l3=1.5: allowed: a whole number from 1"),  # type: ignore[arg-type]
        (lambda: Caches(1 << 20, 1 << 15, 1 << 23), "each as large as the one before"),
        (lambda: replace(AVX2, options=(("kind", "cuda"),)), "allowed: kind 'llvm'"),
        (lambda: replace(AVX2, clock_hz=0.0), "clock_hz=0.0: allowed: above 0"),
    ],
)
def test_a_target_is_checked_when_made(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(CompileError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_host_has_its_own_caches_and_named_targets_those_of_their_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = Caches(l1=48 << 10, l2=1 << 20, l3=8 << 20)
    assert resolve("native") == resolve("native")  # caches are a part of the keys of choices
    assert resolve("native").caches == machine.core_caches(kind)
    assert resolve("avx2").caches == resolve({"kind": "llvm", "mcpu": "znver4"}).caches == kind
    told = {1: (32 << 10, 2), 2: (2 << 20, 2), 3: (24 << 20, 32)}  # two threads a core, 16 cores
    monkeypatch.setattr(machine, "_caches", lambda: told)
    assert machine.cache_bytes(kind) == (32 << 10, 2 << 20, 24 << 20)
    assert machine.core_caches(kind) == Caches(32 << 10, 2 << 20, 2 << 20)  # not below L2
    monkeypatch.setattr(machine, "_caches", dict)
    assert machine.core_caches(kind) == kind


def test_the_device_is_the_targets() -> None:
    assert AVX2.device == device(str(NEON)) == tvm.cpu()
    with pytest.raises(EngineError, match="is unknown; compile it anew"):
        device("abacus")


def test_another_kind_of_target_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu(Target):
        kind = "cuda"
        device_name = "cuda"

        @classmethod
        def of(cls, options: Mapping[str, Any]) -> Target:
            return cls("gpu", frozen(options), VectorUnit(1024, 256, 128, 1), AVX2.caches, 1e9)

        @classmethod
        def cross_linker(cls, family: str) -> str:
            return AVX2.cross_linker(family)

        @property
        def architecture(self) -> str:
            return AVX2.architecture

        @property
        def instruction_sets(self) -> tuple[str, ...]:
            return ()

    monkeypatch.setattr(KINDS, "_entries", {**KINDS, "cuda": Gpu})
    found = resolve({"kind": "cuda", "arch": "sm_90"})
    assert (found.vectors.lanes, found.device) == (32, tvm.cuda(0))
    assert target_from(json.loads(json.dumps(asdict(found)))) == found
    w = replace(CONV, target=found)
    assert Workload.from_key(w.key_exact()) == w
    with pytest.raises(CompileError, match="target kind 'metal': allowed: llvm, cuda"):
        resolve({"kind": "metal"})


def test_no_machine_is_named_outside_the_targets() -> None:
    root = Path(sparseflow.__file__).parent
    names = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if "AVX512" in p.read_text()}
    assert names == {"kernels/target/cpu.py"}
