"""Arguments that make no sense are one line of our own: what was found, and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparseflow
from sparseflow import Engine
from sparseflow.engine.calibrate import profile_maps
from sparseflow.engine.frontends.importer import import_model
from sparseflow.engine.measure.bench import BenchOptions
from sparseflow.engine.measure.layer_times import LayerTimer
from sparseflow.errors import CompileError, ImportModelError, InputError, SparseflowError
from sparseflow.studies.sweep import SweepOptions

X = torch.zeros(1, 3, 8, 8)


def net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3), torch.nn.ReLU()
    ).eval()


def free() -> Any:
    """An ONNX model with a free batch dimension."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture(scope="module")
def engine() -> Engine:
    return sparseflow.compile(net(), (X,), measure=False)


def one_line(error: type[SparseflowError], words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert words in text
    assert "\n" not in text


COMPILE: list[tuple[dict[str, Any], type[SparseflowError], str]] = [
    ({"measure": "no"}, CompileError, "measure='no': allowed: True, False"),
    ({"exact": 2}, CompileError, "exact=2: allowed: True, False"),
    ({"sparsify": None}, CompileError, "sparsify=None: allowed: text"),
    ({"dump": 5}, CompileError, "dump=5: allowed: the path of a folder"),
    ({"dump": "/dev/null/ir"}, CompileError, "dump: /dev/null/ir cannot be written"),
    ({"progress": "loud"}, CompileError, "progress='loud': allowed: a function"),
    ({"calibration": 5}, InputError, "calibration: found int; allowed: a MapProfile, or inputs"),
    ({"calibration": "x.npy"}, InputError, "calibration: found str"),
    ({"calibration": {"x": X}}, InputError, "calibration: found dict"),
    ({"calibration": torch.tensor(1.0)}, InputError, "calibration: iteration over a 0-d tensor"),
    ({"calibration": []}, InputError, "calibration: no inputs given"),
    ({"calibration": [5]}, InputError, "the int is no array"),
    ({"calibration": [(X, X)]}, InputError, "2 inputs given, 1 expected"),
    ({"calibration": X}, InputError, "float32[3, 8, 8] given, float32[1, 3, 8, 8] expected"),
    ({"shapes": 5}, ImportModelError, "shapes=5: allowed: input name to sizes"),
    ({"shapes": {"input": 5}}, ImportModelError, "shape of 'input': found 5; allowed: sizes"),
    ({"example_inputs": X}, ImportModelError, "example_inputs: found Tensor; allowed: a tuple"),
    ({"example_inputs": 5}, ImportModelError, "example_inputs: found int"),
    ({"example_inputs": (X[:0],)}, ImportModelError, "example input 0 of shape [0, 3, 8, 8] has no elements"),
    ({"example_inputs": (X[..., :0],)}, ImportModelError, "has no elements"),
]


@pytest.mark.parametrize(("given", "error", "words"), COMPILE)
def test_arguments_of_compile(given: dict[str, Any], error: type[SparseflowError], words: str) -> None:
    arguments = {"example_inputs": (X,), "measure": False, **given}
    one_line(error, words, lambda: sparseflow.compile(net(), **arguments))


@pytest.mark.parametrize("sizes", [(0, 4), (-1, 4), (1.5, 4), (True, 4), ("1", 4), "14", 4, None])
def test_sizes_that_are_none(sizes: Any) -> None:
    with pytest.raises(ImportModelError, match=r"shape of 'x'.*allowed: ") as caught:
        sparseflow.compile(free(), shapes={"x": sizes}, measure=False)
    assert "\n" not in str(caught.value)
    assert import_model(free(), shapes={"x": np.array([2, 4]).tolist()}).inputs[0].shape == (2, 4)


def test_a_model_with_an_empty_input() -> None:
    from onnx import TensorProto, helper

    model = free()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 0]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 0]))
    one_line(SparseflowError, "'x'", lambda: import_model(model))
    program = torch.export.export(torch.nn.ReLU().eval(), (torch.zeros(3, 0),))
    one_line(ImportModelError, "its shape [3, 0] has no elements", lambda: import_model(program))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"threshold": "half"}, CompileError, "threshold=half: a fraction"),
        ({"threshold": float("nan")}, CompileError, "threshold=nan: a fraction"),
        ({"measure": "no"}, CompileError, "measure='no': allowed: True, False"),
        ({"exact": None}, CompileError, "exact=None: allowed: True, False"),
        ({"progress": 1}, CompileError, "progress=1: allowed: a function"),
        ({"example_inputs": X}, ImportModelError, "example_inputs: found Tensor"),
    ],
)
def test_arguments_of_compile_stream(given: dict[str, Any], error: type[SparseflowError], words: str) -> None:
    arguments = {"example_inputs": (X,), "measure": False, **given}
    one_line(error, words, lambda: sparseflow.compile_stream(net(), **arguments))


def test_the_ir_goes_to_a_path_of_any_kind(tmp_path: Path) -> None:
    for folder in (str(tmp_path / "text"), tmp_path / "path"):
        sparseflow.compile(torch.nn.Linear(4, 4).eval(), (torch.zeros(1, 4),), measure=False, dump=folder)
        assert (Path(folder) / "plan.py").is_file()


@pytest.mark.parametrize("repeats", [0, -1, 1.5, "3", True, None])
def test_nothing_to_time(repeats: Any, engine: Engine) -> None:
    words = f"repeats={repeats!r}: allowed: whole numbers from 1 on"
    one_line(InputError, words, lambda: engine.measure(X, repeats=repeats))
    one_line(InputError, words, lambda: engine.profile(X, repeats=repeats))
    if repeats != 0:
        words = f"warmup={repeats!r}: allowed: whole numbers from 0 on"
        one_line(InputError, words, lambda: engine.measure(X, warmup=repeats))
    assert engine.measure(X, repeats=np.int64(1), warmup=0).repeats == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threads": 1.5}, "bench: threads=1.5: allowed: whole numbers 1 to "),
        ({"threads": 2**40}, "allowed: whole numbers 1 to "),
        ({"threads": True}, "bench: threads=True"),
        ({"rounds": "9"}, "bench: rounds='9': allowed: whole numbers from 1 on"),
        ({"tolerance": float("nan")}, "bench: tolerance=nan: allowed: numbers from 0 on"),
        ({"tolerance": -1.0}, "bench: tolerance=-1.0"),
        ({"tolerance": "0.1"}, "bench: tolerance='0.1'"),
        ({"against": "torch"}, "bench: against='torch': allowed: a tuple"),
        ({"measure": "no"}, "bench: measure='no': allowed: True, False"),
        ({"exact": 0}, "bench: exact=0: allowed: True, False"),
    ],
)
def test_arguments_of_bench(given: dict[str, Any], words: str) -> None:
    one_line(InputError, words, lambda: BenchOptions(**given))


def test_arguments_of_studies_and_timers() -> None:
    imported = import_model(net(), (X,))
    one_line(InputError, "calibration: found int", lambda: profile_maps(imported, 5))  # type: ignore[arg-type]
    one_line(InputError, "threads=0: allowed", lambda: LayerTimer(imported, threads=0))
    one_line(InputError, "the CPUs here", lambda: LayerTimer(imported, threads=1000))
    one_line(InputError, "rounds=0: allowed", lambda: LayerTimer(imported, rounds=0))
    for name in ("jobs", "threads", "rounds"):
        one_line(InputError, f"{name}=0: allowed: whole numbers", lambda n=name: SweepOptions(**{n: 0}))
