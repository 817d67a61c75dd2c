"""Coupled channels: sets through residuals, concatenations, splits and groups; removed equals silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparseflow
from sparseflow.core.structures import Block, Filter
from sparseflow.errors import RecipeError, StructureError
from sparseflow.train import Rule, Workspace, parse_recipe, run_recipe
from sparseflow.train.coupled import CoupledChannels, wiring_of
from sparseflow.train.methods import MaskedWeights

X = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
RULES = [Rule("*", Filter(), 0.5, include=("stem", "depthwise"), coupled=True)]


def norm(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = norm(nn.Conv2d(3, 16, 3, padding=1, bias=False))
        self.conv1, self.conv2 = norm(nn.Conv2d(16, 24, 3, padding=1)), norm(nn.Conv2d(24, 16, 3, padding=1))
        self.down, self.conv3 = norm(nn.Conv2d(16, 32, 1, stride=2)), norm(nn.Conv2d(16, 32, 3, 2, 1))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        x = torch.relu(self.down(x) + self.conv3(x))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(24, 24, 3, padding=1),
        )
        self.head = nn.Linear(24 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.a(x), torch.relu(self.b(x))], 1)
        x = torch.relu(joined + self.c(joined))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        p, q = torch.relu(self.a(x)).chunk(2, 1)
        x = self.c(torch.relu(self.b(p)) + q)
        return self.head(nn.functional.adaptive_avg_pool2d(torch.relu(x), 1).flatten(1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.dw = norm(nn.Conv2d(3, 24, 1)), norm(nn.Conv2d(24, 24, 3, padding=1, groups=24))
        self.multiplied = nn.Conv2d(24, 48, 3, padding=1, groups=24)
        self.squeeze, self.excite = nn.Conv2d(48, 8, 1), nn.Conv2d(8, 48, 1)
        self.project, self.head = norm(nn.Conv2d(48, 16, 1)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.dw(nn.functional.relu6(self.expand(x))))
        x = torch.relu(self.multiplied(x))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.project(x).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 24, 1)
        self.grouped, self.last = norm(nn.Conv2d(32, 16, 3, padding=1, groups=4)), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(torch.cat([self.a(x), self.b(x)], 1))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


NETWORKS: list[Callable[[], nn.Module]] = [Residual, Concat, Split, Depthwise, Grouped]


def network(make: Callable[[], nn.Module]) -> nn.Module:
    """With weights and statistics that differ from channel to channel."""
    torch.manual_seed(7)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 0.5)
    return model.eval()


def silenced(make: Callable[[], nn.Module]) -> tuple[nn.Module, CoupledChannels]:
    model = network(make)
    chosen = CoupledChannels.chosen(model, RULES, X)
    MaskedWeights(model, chosen.masks(model), chosen.silent(model))
    return model, chosen


@pytest.mark.parametrize("make", NETWORKS)
def test_the_removed_model_equals_the_silent_one(make: Callable[[], nn.Module]) -> None:
    model, chosen = silenced(make)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = chosen.removed(model)
    with torch.no_grad():
        torch.testing.assert_close(small(*X), model(*X), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    weights = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    assert weights[0] < 0.6 * weights[1]


@pytest.mark.parametrize("make", NETWORKS)
def test_the_compiled_silent_model_equals_the_removed_one(make: Callable[[], nn.Module]) -> None:
    model, chosen = silenced(make)
    x = X[0][:1]
    engine = sparseflow.compile(model, (x,), measure=False)
    with torch.no_grad():
        wanted = chosen.removed(model)(x)
    torch.testing.assert_close(engine(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", NETWORKS)
def test_half_of_the_filters_of_every_layer_go(make: Callable[[], nn.Module]) -> None:
    model, chosen = silenced(make)
    for name, ports in chosen.wiring.layers.items():
        if name == "head":
            assert chosen.kept[ports.outputs].all()
        else:
            assert chosen.kept[ports.outputs].mean() == pytest.approx(0.5, abs=0.26)
    masks = chosen.masks(model)
    assert np.mean([m.density for m in masks.values()]) == pytest.approx(0.5, abs=0.05)
    assert all(m.structure == Filter() for m in masks.values())


def test_sets_of_a_residual_network() -> None:
    sets = wiring_of(network(Residual), X).sets()
    assert sets == [("stem.0", "conv2.0"), ("conv1.0",), ("down.0", "conv3.0"), ("head",)]


def test_the_same_channels_in_both_branches() -> None:
    model, chosen = silenced(Residual)
    masks = chosen.masks(model)
    for a, b in (("stem.0", "conv2.0"), ("down.0", "conv3.0")):
        assert (masks[a].keep[:, 0, 0, 0] == masks[b].keep[:, 0, 0, 0]).all()
    wiring = chosen.wiring
    assert (wiring.layers["stem.0"].outputs == wiring.layers["conv1.0"].inputs).all()


def test_concatenated_channels_keep_their_places() -> None:
    wiring = wiring_of(network(Concat), X)
    joined = np.concatenate([wiring.layers["a"].outputs, wiring.layers["b"].outputs])
    assert (joined == wiring.layers["c"].inputs).all()
    assert (joined == wiring.layers["c"].outputs).all()
    assert (np.repeat(joined, 16) == wiring.layers["head"].inputs).all()


def test_groups_stay_equally_large() -> None:
    model, chosen = silenced(Grouped)
    grouped = chosen.removed(model).get_submodule("grouped.0")
    assert grouped.weight.shape == (8, 4, 3, 3)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (16, 8, 4)
    kept = chosen.kept[chosen.wiring.layers["grouped.0"].inputs].reshape(4, -1)
    assert (kept == kept[0]).all()


def test_retraining_keeps_removed_channels_silent() -> None:
    model, chosen = silenced(Residual)
    masked = MaskedWeights(model, chosen.masks(model), chosen.silent(model))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(*X), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        masked.after_step()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(chosen.removed(model)(*X), model(*X), rtol=1e-5, atol=1e-5)
    again = MaskedWeights(network(Residual), masked.masks, chosen.silent(model))
    again.load_state_dict(masked.state_dict())
    for name, removed in chosen.silent(model).items():
        assert not again.model.get_parameter(name)[removed].any()


def test_unknown_operators_and_outputs_pin_their_channels() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.softmax(self.a(x), 1))

    wiring = wiring_of(Odd(), X)
    assert wiring.pinned.all()
    with pytest.raises(StructureError, match="no set of layers is pruned"):
        CoupledChannels.chosen(Odd(), [Rule("*", Block(4, 1), 0.5)], X)


def test_a_bias_or_sigmoid_before_a_layer_pins_what_would_not_be_zero() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(torch.sigmoid(self.a(x)))))

    wiring = wiring_of(Shifted(), X)
    assert wiring.pinned[wiring.layers["a"].outputs].all()
    assert not wiring.pinned[wiring.layers["b"].outputs].any()


def test_rules_of_a_set_have_to_agree() -> None:
    model = network(Residual)
    mixed = [Rule("down.0", Filter(), 0.25, coupled=True), *RULES]
    with pytest.raises(
        StructureError, match=r"down\.0, conv3\.0 are coupled, but .* densities \[0\.25, 0\.5\]"
    ):
        CoupledChannels.chosen(model, mixed, X)
    free = [Rule("down.0", None), *RULES]
    chosen = CoupledChannels.chosen(model, free, X)  # one layer stays dense, so its set stays whole
    assert "conv3.0" not in chosen.masks(model)
    assert "conv1.0" in chosen.masks(model)
    with pytest.raises(StructureError, match="coupled is for the structure filter, not block:4x1"):
        Rule("*", Block(4, 1), 0.5, coupled=True)


def test_a_recipe_with_a_coupled_rule_also_leaves_a_smaller_model(tmp_path: Path) -> None:
    model = network(Residual)
    loader = [(torch.randn(8, 3, 8, 8), torch.randint(5, (8,))) for _ in range(2)]
    content = {
        "name": "coupled",
        "rules": [{"layers": "*", "sparsify": "filter@0.5", "coupled": True, "include": ["stem"]}],
        "stages": [
            {"kind": "admm", "epochs": 1, "learning_rate": 0.01},
            {"kind": "retrain", "epochs": 2, "learning_rate": 0.01},
        ],
    }
    workspace = Workspace(model, loader, loader, X)
    result = run_recipe(parse_recipe(content), tmp_path, workspace=workspace)
    found = [torch.export.load(tmp_path / name).module()(*X) for name in ("model.pt2", "small.pt2")]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    structures = {layer.name: (layer.structure, round(layer.sparsity, 2)) for layer in result.layers}
    assert structures["stem.0"] == structures["conv2.0"] == structures["down.0"] == ("filter", 0.5)
    assert structures["head"] == ("dense", 0.0)
    with pytest.raises(RecipeError, match=r"rules\[0\]: .*coupled is for the structure filter"):
        parse_recipe({**content, "rules": [{"layers": "*", "sparsify": "block:4x1@0.5", "coupled": True}]})


def test_units_are_chosen_by_the_scores_that_are_given() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), X
    rules = [Rule("0", Filter(), 0.5, coupled=True)]
    wanted = np.array([True, False] * 4)
    scores = np.broadcast_to(wanted.astype(np.float32).reshape(-1, 1, 1, 1), (8, 3, 3, 3))
    chosen = CoupledChannels.chosen(model, rules, x, {"0": scores})
    assert (chosen.masks(model)["0"].keep[:, 0, 0, 0] == wanted).all()
    by_magnitude = CoupledChannels.chosen(model, rules, x).masks(model)["0"]
    means = model[0].weight.detach().abs().mean((1, 2, 3))
    assert set(np.flatnonzero(by_magnitude.keep[:, 0, 0, 0])) == set(means.topk(4).indices.tolist())
