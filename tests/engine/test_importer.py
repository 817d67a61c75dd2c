"""Import: torch and ONNX models become the same clean operators, equal to torch, with named weights."""

from __future__ import annotations

import gc
import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import tvm
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from tvm import relax

import sparseflow
from sparseflow.engine.frontends.importer import Imported, import_model
from sparseflow.engine.runtime.manifest import Signature
from sparseflow.errors import ImportModelError
from sparseflow.passes.ops import constant_name
from sparseflow.zoo import build


def run(imported: Imported, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of TVM's own default lowering, an oracle that shares no code with ours."""
    executable = tvm.compile(relax.transform.LegalizeOps()(imported.mod), target="llvm")
    machine = relax.VirtualMachine(executable, tvm.cpu())
    out = machine["main"](*[tvm.runtime.tensor(np.ascontiguousarray(i)) for i in inputs])
    return [out.numpy()] if hasattr(out, "numpy") else [o.numpy() for o in out]


def assert_equals_torch(imported: Imported, module: nn.Module, *inputs: torch.Tensor) -> None:
    with torch.inference_mode():
        wanted = module(*inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    got = run(imported, *[i.numpy() for i in inputs])
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert g.shape == tuple(w.shape)
        assert np.abs(g - w.numpy()).max() <= 2e-5 * np.abs(w.numpy()).max()


def operators(imported: Imported) -> Counter[str]:
    bindings = [b.value for block in imported.mod["main"].body.blocks for b in block.bindings]
    return Counter(str(v.op.name) for v in bindings if hasattr(v, "op") and hasattr(v.op, "name"))


def weights(imported: Imported) -> dict[str, tuple[int, ...]]:
    """Name → shape of the weights of convolutions and linear layers."""
    found = {}
    for block in imported.mod["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            name = getattr(getattr(call, "op", None), "name", "")
            position = {"relax.nn.conv2d": 1, "relax.permute_dims": 0}.get(str(name))
            if position is not None and isinstance(call.args[position], tvm.ir.GenericConst):
                found[constant_name(call.args[position])] = call.args[position].value.numpy().shape
    return found


def to_onnx(module: nn.Module, *inputs: torch.Tensor) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(module, inputs, buffer, dynamo=False)
    return onnx.load_model_from_string(buffer.getvalue())


class Small(nn.Module):
    """A conv with batch norm, a strided grouped conv, a residual add, pools and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=2)
        self.fc = nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu6(self.norm(self.stem(x))), 3, 2, 1)
        x = F.relu(x + self.body(x))
        x = F.adaptive_avg_pool2d(F.dropout(x, 0.5, self.training), 1)
        return self.fc(torch.flatten(x, 1))


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Small().eval(), torch.randn(2, 3, 9, 11)


def test_module_equals_torch_and_keeps_names(small: tuple[nn.Module, torch.Tensor]) -> None:
    module, x = small
    imported = import_model(module, (x,))
    assert imported.inputs == (Signature("x", (2, 3, 9, 11), "float32"),)
    assert imported.outputs[0].shape == (2, 5)
    assert weights(imported) == {
        "stem.weight": (8, 3, 3, 3),
        "body.weight": (8, 4, 3, 3),
        "fc.weight": (5, 8),
    }
    assert_equals_torch(imported, module, x)
    found = operators(imported)
    assert found["relax.nn.batch_norm"] == 1
    assert found["relax.mean"] == 1
    assert found["relax.clip"] == 1


def test_onnx_equals_torch_and_names_every_weight(small: tuple[nn.Module, torch.Tensor]) -> None:
    module, x = small
    imported = import_model(to_onnx(module, x))
    assert_equals_torch(imported, module, x)
    assert weights(imported)["body.weight"] == (8, 4, 3, 3)
    assert weights(imported)["fc.weight"] == (5, 8)
    assert set(operators(imported)) <= {*operators(import_model(module, (x,))), "relax.nn.batch_norm"}


def test_files_of_both_kinds(small: tuple[nn.Module, torch.Tensor], tmp_path: Path) -> None:
    module, x = small
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "small.pt2")
    onnx.save(to_onnx(module, x), tmp_path / "small.onnx")
    for path in (tmp_path / "small.pt2", str(tmp_path / "small.onnx")):
        imported = import_model(path)
        assert imported.inputs[0].shape == (2, 3, 9, 11)
        assert len(weights(imported)) == 3


def test_later_changes_of_the_torch_weights_do_not_reach_the_import() -> None:
    module = nn.Linear(4, 3).eval()
    x = torch.randn(2, 4)
    with torch.no_grad():
        wanted = module(x).numpy()
        imported = import_model(module, (x,))
        module.weight.zero_()
    np.testing.assert_allclose(run(imported, x.numpy())[0], wanted, rtol=1e-5, atol=1e-6)


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid(),
    "softmax": nn.Softmax(-1),
}


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations(name: str, kind: str) -> None:
    module = nn.Sequential(nn.Linear(6, 7), ACTIVATIONS[name]).eval()
    x = torch.randn(3, 6) * 4
    imported = import_model(module, (x,)) if kind == "torch" else import_model(to_onnx(module, x))
    assert_equals_torch(imported, module, x)
    whole = {"silu": "relax.nn.silu", "gelu": "relax.nn.gelu", "relu6": "relax.clip", "relu": "relax.nn.relu"}
    if name in whole:
        assert operators(imported)[whole[name]] == 1
        assert operators(imported).total() == 4  # permute_dims, matmul, add, the activation


class Attend(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_two_products_and_a_softmax(causal: bool) -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind(0)
    module = Attend(causal).eval()
    imported = import_model(module, (q, k, v))
    assert operators(imported)["relax.matmul"] == 2
    assert operators(imported)["relax.nn.softmax"] == 1
    assert_equals_torch(imported, module, q, k, v)


class Norms(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(F.layer_norm(x, (6,)), 2) + F.layer_norm(x, (4, 6))


def test_norms_without_scale_and_shift() -> None:
    x = torch.randn(2, 4, 6)
    assert_equals_torch(import_model(Norms().eval(), (x,)), Norms().eval(), x)


def test_an_index_out_of_range_reads_no_foreign_memory() -> None:
    module, x = nn.Embedding(5, 3).eval(), torch.tensor([0, 4, 2])
    imported = import_model(module, (x,))
    assert_equals_torch(imported, module, x)
    (got,) = run(imported, np.array([0, 10**9, 2]))
    np.testing.assert_array_equal(got[1], module.weight[4].detach().numpy())


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a @ b, a.sum(1)

    a, b = torch.randn(3, 4), torch.randn(4, 2)
    imported = import_model(Two().eval(), (a, b))
    assert [s.name for s in imported.inputs] == ["a", "b"]
    assert [s.shape for s in imported.outputs] == [(3, 2), (3,)]
    assert_equals_torch(imported, Two().eval(), a, b)


def gemm_model(batch: int | str = "N", op: str = "Gemm") -> onnx.ModelProto:
    """``y = x Wᵀ + b`` of 4 → 3 features with a (possibly free) batch."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.normal(size=(3, 4)).astype("float32"), "head.weight")
    bias = numpy_helper.from_array(rng.normal(size=3).astype("float32"), "head.bias")
    node = helper.make_node(op, ["x", "head.weight", "head.bias"], ["y"], "head", transB=1)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, f]) for n, f in (("x", 4), ("y", 3)))
    graph = helper.make_graph([node], "small", [x], [y], [weight, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_free_dimensions_are_bound_by_shapes() -> None:
    model = gemm_model()
    imported = import_model(model, shapes={"x": (5, 4)})
    assert imported.inputs[0] == Signature("x", (5, 4), "float32")
    assert imported.outputs[0].shape == (5, 3)
    assert weights(imported) == {"head.weight": (3, 4)}
    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    weight, bias = (numpy_helper.to_array(t) for t in model.graph.initializer)
    np.testing.assert_allclose(run(imported, x)[0], x @ weight.T + bias, rtol=1e-5, atol=1e-6)


def test_free_dimensions_of_an_exported_program() -> None:
    module, x = nn.Linear(4, 3).eval(), torch.randn(2, 4)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    with pytest.raises(ImportModelError, match=r"input 'input': shape .* has free dimensions"):
        import_model(program)
    imported = import_model(program, shapes={"input": (7, 4)})
    assert imported.outputs[0].shape == (7, 3)


def test_shape_arithmetic_of_an_exporter_is_evaluated() -> None:
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, 1)
            return torch.cat([b, a.view(a.shape[0], -1, 3)], 1)

    x = torch.randn(2, 6, 3)
    imported = import_model(to_onnx(Halves().eval(), x))
    assert_equals_torch(imported, Halves().eval(), x)
    assert not any("shape_of" in name or "dynamic" in name for name in operators(imported))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "bert_base"])
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_zoo_equals_torch(name: str, kind: str) -> None:
    sizes = {"layers": 2, "tokens": 7} if name == "bert_base" else {"image_size": 32}
    module, inputs = build(name, **sizes)
    imported = import_model(module, inputs) if kind == "torch" else import_model(to_onnx(module, *inputs))
    assert_equals_torch(imported, module, *inputs)


def bad_models(folder: Path) -> dict[str, tuple[Any, dict[str, Any], str]]:
    """Case → (model, keyword arguments, what the one line says)."""
    module, x = Small().eval(), torch.randn(1, 3, 8, 8)
    torch.export.save(torch.export.export(module, (x,)), folder / "whole.pt2")
    (folder / "cut.pt2").write_bytes((folder / "whole.pt2").read_bytes()[:2000])
    whole = gemm_model().SerializeToString()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "model.pt").write_bytes(b"x")
    free = gemm_model()
    return {
        "missing file": (folder / "none.onnx", {}, "none.onnx: no such file"),
        "wrong ending": (folder / "model.pt", {}, r"ending is \.pt; allowed: \.pt2"),
        "truncated pt2": (folder / "cut.pt2", {}, "cut.pt2: not a readable torch.export program"),
        "truncated onnx": (folder / "cut.onnx", {}, "cut.onnx: "),
        "empty onnx": (folder / "empty.onnx", {}, "holds no graph"),
        "no such input": (free, {"shapes": {"input": (1, 4)}}, "'input': the model has no such input; .*: x"),
        "unbound": (free, {}, r"'x': shape \[N,4\] has free dimensions; bind them all, e.g. --shape x=1,4"),
        "wrong rank": (free, {"shapes": {"x": (1, 4, 1)}}, r"shape 1,4,1 does not fit the model's \[N,4\]"),
        "wrong size": (free, {"shapes": {"x": (1, 5)}}, r"shape 1,5 does not fit the model's \[N,4\]"),
        "static size": (
            gemm_model(2), {"shapes": {"x": (3, 4)}}, r"shape 3,4 does not fit the model's \[2,4\]",
        ),
        "onnx operator": (
            gemm_model(2, "Frobnicate"), {}, "unsupported operator Frobnicate at node 'head'",
        ),
        "no inputs": (module, {}, "needs example_inputs"),
        "training": (Small().train(), {"example_inputs": (x,)}, r"training mode; call \.eval\(\)"),
        "not a tensor": (module, {"example_inputs": (3,)}, "example input 0 is a int"),
        "no model": ({"a": 1}, {}, "cannot import a dict"),
        "wrong input shape": (module, {"example_inputs": (x[:, :2],)}, "Small: torch.export cannot trace it"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "missing file", "wrong ending", "truncated pt2", "truncated onnx", "empty onnx", "no such input",
        "unbound", "wrong rank", "wrong size", "static size", "onnx operator", "no inputs", "training",
        "not a tensor", "no model", "wrong input shape",
    ],
)  # fmt: skip
def test_bad_models_are_one_clear_line(case: str, tmp_path: Path) -> None:
    model, arguments, message = bad_models(tmp_path)[case]
    with pytest.raises(ImportModelError, match=message) as caught:
        import_model(model, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_refused(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(4, 3)).to(dtype).eval()
    with pytest.raises(
        ImportModelError, match=r"'0\.weight': its type is .*float.*; only float32 models compile"
    ):
        import_model(module, (torch.zeros(2, 4, dtype=dtype),))
    if dtype != torch.bfloat16:
        with pytest.raises(ImportModelError, match="only float32 models compile"):
            import_model(to_onnx(module, torch.zeros(2, 4, dtype=dtype)))


def test_a_failed_translation_leaves_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    class Select(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0]

    with pytest.raises(ImportModelError, match=r"unsupported use of operator aten\.index\.Tensor at node"):
        import_model(Select().eval(), (torch.randn(3),))
    gc.collect()
    captured = capfd.readouterr()
    assert "destroyed" not in captured.err + captured.out


def test_unsupported_torch_operator_names_operator_node_and_module() -> None:
    class Eigen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Eigen()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    with pytest.raises(ImportModelError, match=r"unsupported operator aten\.linalg_eig.* at node .*inner"):
        import_model(Outer().eval(), (torch.randn(3, 3),))


def test_an_operator_that_tvm_does_not_know_has_a_form_of_ours() -> None:
    x = np.linspace(-3, 3, 24, dtype="float32").reshape(1, 4, 6)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape)
    node = onnx.helper.make_node("Celu", ["x"], ["y"], alpha=1.5)
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    expected = torch.nn.functional.celu(torch.from_numpy(x), 1.5).numpy()
    np.testing.assert_allclose(sparseflow.compile(model, measure=False)(x), expected, atol=1e-6)


@pytest.mark.parametrize("axes", [(), (1,), (0, 2)])
def test_extrema_over_axes(axes: tuple[int, ...]) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.amax(axes, keepdim=True), x.amin(axes)

    x = torch.randn(3, 4, 5)
    for found, expected in zip(
        sparseflow.compile(Network().eval(), (x,), measure=False)(x), Network()(x), strict=True
    ):
        torch.testing.assert_close(found, expected)
