"""What an engine reads: any array's values as the caller sees them, and one line where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm

import sparseflow
from sparseflow import Engine, StreamEngine
from sparseflow.core import parse_sparsify
from sparseflow.core.plan import Plan
from sparseflow.engine.calibrate import faster_engine, profile_maps
from sparseflow.engine.frontends.importer import import_model
from sparseflow.engine.measure.peers import PEERS, Subject
from sparseflow.engine.runtime.memory import weight_tensor
from sparseflow.engine.sparsify import sparsify
from sparseflow.engine.weights import weighted_layers
from sparseflow.errors import ImportModelError, InputError, SparseflowError

SHAPE = (1, 3, 8, 8)


class Net(torch.nn.Module):
    """A convolution with a buffer and a plain attribute behind it."""

    def __init__(self, weight: Any = None, buffer: Any = None, constant: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 3)
        if weight is not None:
            self.first.weight = torch.nn.Parameter(weight)
        self.register_buffer("scale", torch.full((4, 1, 1), 2.0) if buffer is None else buffer)
        self.shift = torch.ones(4, 1, 1) if constant is None else constant

    def forward(self, x: Any) -> Any:
        return torch.relu(self.second(torch.relu(self.first(x)))) * self.scale + self.shift


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


@pytest.fixture(scope="module")
def x() -> Any:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def engine(net: Net, x: Any) -> Engine:
    return sparseflow.compile(net, (x,), measure=False)


@pytest.fixture(scope="module")
def stream(net: Net, x: Any) -> StreamEngine:
    return sparseflow.compile_stream(net, (x,), measure=False)


def _close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), expected.detach().numpy(), atol=1e-5, rtol=1e-5)


def _negated(values: Any) -> Any:
    """A view of -values in memory that reads as ``values``."""
    return torch._neg_view(-values)


def _imaginary(values: Any) -> Any:
    return torch.complex(torch.zeros_like(values), -values).conj().imag


VIEWS: dict[str, Callable[[Any], Any]] = {"negated": _negated, "imaginary part": _imaginary}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_lazy_view_is_read_as_the_caller_sees_it(
    kind: str, net: Net, x: Any, engine: Engine, stream: StreamEngine
) -> None:
    view = VIEWS[kind](x)
    assert view.is_neg()
    _close(engine(view), net(x))
    assert engine.measure(view, repeats=1).repeats == 1
    stream.reset()
    _close(stream(view), net(x))


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("role", ["weight", "buffer", "constant"])
def test_a_model_of_lazy_views(kind: str, role: str, x: Any) -> None:
    values = torch.randn((8, 3, 3, 3) if role == "weight" else (4, 1, 1))
    model = Net(**{role: VIEWS[kind](values)}).eval()
    plain = Net(**{role: values}).eval()
    engine = sparseflow.compile(model, (x,), measure=False)
    _close(engine(x), plain(x))
    assert [layer.name for layer in engine.plan.layers] == ["first", "second"]


@pytest.mark.parametrize("kind", VIEWS)
def test_pruning_reads_and_writes_a_lazy_view(kind: str) -> None:
    values = torch.randn(8, 3, 3, 3)
    model, plain = Net(VIEWS[kind](values)).eval(), Net(values.clone()).eval()
    for module in (model, plain):
        sparsify(module, parse_sparsify("unstructured@0.5"), ("stem",))
    assert torch.equal(model.first.weight.detach().resolve_neg(), plain.first.weight.detach())


def test_calibration_reads_lazy_views(net: Net, x: Any, engine: Engine) -> None:
    imported = import_model(net, (x,))
    assert profile_maps(imported, [_negated(x)]) == profile_maps(imported, [x])
    assert isinstance(faster_engine(engine, engine, [_negated(x)]).plan, Plan)


def test_a_peers_result_may_be_a_lazy_view(x: Any, tmp_path: Any) -> None:
    peer = PEERS["torch"].make(Subject("view", _negated, (x.numpy(),)), 1, tmp_path)
    np.testing.assert_array_equal(peer([-x.numpy()])[0], -x.numpy())


class Wrapper(torch.Tensor):
    """A tensor whose values another one holds; ``broken`` ones run no operator."""

    @staticmethod
    def __new__(cls, values: Any, broken: bool) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values: Any, broken: bool) -> None:
        self.values, self.broken = values, broken

    @classmethod
    def __torch_dispatch__(cls, operator: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(a.broken for a in args if isinstance(a, cls)):
            raise NotImplementedError(f"no {operator}")
        return operator(*[a.values if isinstance(a, cls) else a for a in args], **(kwargs or {}))


class Own(torch.Tensor):
    """A subclass that owns its memory."""


class Foreign:
    """Another library's array."""

    def __init__(self, values: Any, fails: bool = False) -> None:
        self.values, self.fails = values, fails

    def __dlpack__(self, **options: Any) -> Any:
        if self.fails:
            raise BufferError("on another device\nsecond line")
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


class WithArray:
    """An array by its older protocol."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


def _tvm(x: Any) -> Any:
    tensor = tvm.runtime.empty(tuple(x.shape), "float32")
    tensor.copyfrom(x.numpy())
    return tensor


def _fake(x: Any) -> Any:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(tuple(x.shape))


READ: dict[str, Callable[[Any], Any]] = {
    "parameter": torch.nn.Parameter,
    "subclass with memory": lambda x: x.as_subclass(Own),
    "wrapper": lambda x: Wrapper(x, False),
    "expanded": lambda x: x[:, :, :, :1].contiguous().expand(SHAPE),
    "big-endian": lambda x: x.numpy().astype(">f4"),
    "DLPack": Foreign,
    "TVM": _tvm,
    "__array__": lambda x: WithArray(x.numpy()),
    "matrix of memory": lambda x: np.asarray(memoryview(x.numpy())),
}


@pytest.mark.parametrize("kind", READ)
def test_any_array_with_its_values_in_memory_is_read(kind: str, net: Net, x: Any, engine: Engine) -> None:
    expected = net(x[:, :, :, :1].expand(SHAPE)) if kind == "expanded" else net(x)
    found = engine(READ[kind](x))
    assert isinstance(found, torch.Tensor if isinstance(READ[kind](x), torch.Tensor) else np.ndarray)
    _close(found.detach() if isinstance(found, torch.Tensor) else found, expected)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "meta": (lambda x: x.to("meta"), "on the device meta"),
    "sparse": (lambda x: x.to_sparse(), "layout sparse_coo"),
    "sparse rows": (lambda x: x.reshape(3, 64).to_sparse_csr(), "layout sparse_csr"),
    "oneDNN": (lambda x: x.to_mkldnn(), "layout mkldnn"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "is quantized"),
    "nested": (lambda x: torch.nested.nested_tensor([x[0], x[0]]), "is nested"),
    "jagged": (lambda x: torch.nested.nested_tensor([x[0]], layout=torch.jagged), "is nested"),
    "fake": (_fake, "no memory that can be read"),
    "broken wrapper": (lambda x: Wrapper(x, True), "no memory that can be read (no aten.detach"),
    "bfloat16": (lambda x: x.bfloat16(), "bfloat16[1, 3, 8, 8] given"),
    "complex": (lambda x: x.to(torch.complex64).conj(), "complex64[1, 3, 8, 8] given"),
    "list": (lambda x: x.tolist(), "the list is no array"),
    "nothing": (lambda x: None, "the NoneType is no array"),
    "text": (lambda x: "x", "the str is no array"),
    "objects": (lambda x: x.numpy().astype(object), "object[1, 3, 8, 8] given"),
    "fields": (lambda x: np.zeros(SHAPE, "f4,f4"), "[('f0', '<f4'), ('f1', '<f4')][1, 3, 8, 8] given"),
    "mask": (lambda x: np.ma.masked_array(x.numpy(), x.numpy() > 0), "has a mask"),
    "DLPack that fails": (lambda x: Foreign(x, True), "(on another device)"),
    "DLPack of another dtype": (lambda x: Foreign(x.double()), "float64[1, 3, 8, 8] given"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_one_line(kind: str, x: Any, engine: Engine, stream: StreamEngine) -> None:
    make, words = REFUSED[kind]
    given = make(x)
    for call in (engine, engine.measure, engine.profile, stream):
        with pytest.raises(InputError) as caught:
            call(given)
        text = str(caught.value)
        assert words in text
        assert "input 'x'" in text
        assert text.endswith("float32[1, 3, 8, 8] expected")
        assert "\n" not in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_calibration_with_what_cannot_be_read(kind: str, net: Net, x: Any) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(InputError) as caught:
        sparseflow.compile(net, (x,), measure=False, calibration=[(make(x),)])
    assert words in str(caught.value)


def test_inside_a_transform_there_is_no_memory(x: Any, engine: Engine) -> None:
    def call(v: Any) -> Any:
        with pytest.raises(InputError, match="no memory that can be read"):
            engine(v)
        return v.sum()

    torch.func.grad(call)(x)
    torch.func.vmap(call)(x[None])


@pytest.mark.parametrize("make", [_fake, lambda x: x.to("meta")])
@pytest.mark.filterwarnings("ignore")
def test_weights_without_values_are_one_line(make: Callable[[Any], Any]) -> None:
    with pytest.raises(ImportModelError, match=r"tensor 'first.weight': it .*load the model's weights first"):
        weighted_layers(Net(make(torch.zeros(8, 3, 3, 3))))
    with pytest.raises(ImportModelError, match="tensor 'w'"):
        weight_tensor(make(torch.zeros(3)), "w")


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_the_meta_device_is_one_line(x: Any) -> None:
    with torch.device("meta"):
        model = Net().eval()
    with pytest.raises(SparseflowError) as caught:
        sparseflow.compile(model, (x.to("meta"),), measure=False)
    assert "\n" not in str(caught.value)
