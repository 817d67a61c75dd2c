"""One-shot pruning: the right layers, the right structure, the same whichever form the model has."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sparseflow.core import STRUCTURES, parse_sparsify, parse_structure
from sparseflow.engine.sparsify import Sparsified, sparsify
from sparseflow.engine.weights import weighted_layers
from sparseflow.errors import ImportModelError, StructureError
from sparseflow.zoo import build


class Net(nn.Module):
    """stem, a 3×3, a depthwise, a 1×1, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 32, 1)
        self.hidden = nn.Linear(32, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.wide(torch.relu(self.stem(x))))
        x = torch.relu(self.point(torch.relu(self.depthwise(x)))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.zeros(1, 3, 8, 8)


def to_onnx(module: nn.Module) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(module, (X,), buffer, dynamo=False)
    return onnx.load_model_from_string(buffer.getvalue())


def pruned_names(record: Sparsified) -> list[str]:
    return [layer.name for layer in record.pruned]


def test_stem_depthwise_and_classifier_stay_dense_and_say_so(net: Net) -> None:
    record = sparsify(net, parse_sparsify("unstructured@0.75"))
    assert pruned_names(record) == ["wide.weight", "point.weight", "hidden.weight"]
    reasons = {layer.name: layer.reason for layer in record.layers if not layer.pruned}
    assert reasons == {
        "stem.weight": "stem stays dense unless included",
        "depthwise.weight": "depthwise stays dense unless included",
        "head.weight": "classifier stays dense unless included",
    }
    assert all(layer.density == 0.25 for layer in record.pruned)
    assert torch.count_nonzero(net.stem.weight) == net.stem.weight.numel()
    total = sum(p.numel() for n, p in net.named_parameters() if n.endswith("weight"))
    kept = sum(int(torch.count_nonzero(p)) for n, p in net.named_parameters() if n.endswith("weight"))
    assert record.density == pytest.approx(kept / total)
    assert record.label == "unstructured@0.75 (one-shot magnitude, not retrained)"


def test_the_largest_magnitudes_are_kept_unchanged(net: Net) -> None:
    before = net.hidden.weight.detach().clone()
    sparsify(net, parse_sparsify("unstructured@0.9"))
    after = net.hidden.weight.detach()
    kept = after != 0
    assert torch.equal(after[kept], before[kept])
    assert before[kept].abs().min() >= before[~kept].abs().max()


def test_included_roles_are_pruned(net: Net) -> None:
    record = sparsify(net, parse_sparsify("unstructured@0.5"), include=("stem", "depthwise", "classifier"))
    assert len(record.pruned) == 6


def test_every_form_of_a_model_gets_the_same_zeros(net: Net) -> None:
    spec = parse_sparsify("block:4x1@0.75")
    program, graph = torch.export.export(net, (X,)), to_onnx(net)
    program = torch.export.export(Net().eval(), (X,))
    for name, value in net.state_dict().items():
        program.state_dict[name].data.copy_(value)
    records = [sparsify(graph, spec), sparsify(program, spec), sparsify(net, spec)]
    assert len({len(r.pruned) for r in records}) == 1
    wanted = {layer.name: layer.weight for layer in weighted_layers(net)}
    for layer in weighted_layers(program):
        np.testing.assert_array_equal(layer.weight, wanted[layer.name])
    for layer, name in zip(weighted_layers(graph), wanted, strict=True):
        np.testing.assert_array_equal(layer.weight, wanted[name])
        assert layer.role in ("", "stem", "depthwise", "classifier")


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_every_registered_structure_prunes_what_it_fits(name: str, net: Net) -> None:
    structure = parse_structure(STRUCTURES[name].example)
    fixed = structure.fixed_density
    sparsity = 1 - fixed if fixed is not None else 1 - structure.max_density / 2
    record = sparsify(net, parse_sparsify(f"{structure}@{sparsity}"))
    layers = {layer.name: layer for layer in weighted_layers(net)}
    assert record.pruned
    for layer in record.layers:
        assert layer.pruned == (not layer.reason)
        if layer.pruned and not str(structure).startswith("pattern"):
            assert structure.admits(layers[layer.name].weight != 0)


def test_a_structure_that_does_not_fit_a_layer_is_reported(net: Net) -> None:
    record = sparsify(net, parse_sparsify("pattern:4+connectivity@0.877"))
    assert pruned_names(record) == ["wide.weight"]
    reason = next(layer.reason for layer in record.layers if layer.name == "point.weight")
    assert "pattern" in reason
    assert "\n" not in reason


def test_a_structure_that_fits_no_layer_is_an_error() -> None:
    linear = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(StructureError, match=r"sparsify pattern:4.*: fits no layer of the model: ") as caught:
        sparsify(linear, parse_sparsify("pattern:4@0.5556"))
    assert "\n" not in str(caught.value)
    with pytest.raises(StructureError, match="the model has no convolution and no linear layer"):
        sparsify(nn.ReLU(), parse_sparsify("unstructured@0.5"))


def test_unknown_role_and_model_are_errors(net: Net) -> None:
    with pytest.raises(StructureError, match="unknown role 'head'; allowed: stem, depthwise, classifier"):
        sparsify(net, parse_sparsify("unstructured@0.5"), include=("head",))
    with pytest.raises(ImportModelError, match="cannot list the layers of a str"):
        sparsify("net", parse_sparsify("unstructured@0.5"))


def test_zoo_layers_have_their_roles() -> None:
    roles = {name: [layer.role for layer in weighted_layers(build(name, **kw)[0])] for name, kw in (
        ("mobilenet_v2", {}), ("bert_base", {"layers": 1}),
    )}  # fmt: skip
    assert roles["mobilenet_v2"].count("depthwise") == 17
    assert roles["mobilenet_v2"][0] == "stem"
    assert roles["bert_base"] == [""] * 6 + ["classifier"]
