"""Quantised networks: folding, equal ranges, corrected biases keep the function; training keeps masks and accuracy."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparseflow.core.codec import decode, encode
from sparseflow.core.map_ranges import MapRange, MapRanges
from sparseflow.core.mask import Mask
from sparseflow.core.structures import parse_structure
from sparseflow.errors import FormatError, SparseflowError, StructureError
from sparseflow.train import METHODS, MaskedWeights, Rule, Trainer, TrainSettings, evaluate
from sparseflow.train.activations.hooks import MapHooks
from sparseflow.train.levels import LEVELS
from sparseflow.train.methods import InTraining
from sparseflow.train.quantise import (
    LearnedQuantisation,
    LearnSettings,
    RoundSettings,
    round_network,
    rounded_maps,
)
from sparseflow.train.quantise.chains import Chain, chains_of
from sparseflow.train.quantise.post_training import correct_biases, equalise, fold_batch_norms
from tests.train.method_cases import batch, density_for, layer_for, make, run
from tests.train.method_cases import model as tiny


class Net(nn.Module):
    """Every kind of neighbour: (N, 1, 8, 8) → (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.pooled = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.behind = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.last = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16 * 4, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.behind(nn.functional.max_pool2d(self.pooled(x), 2)))
        x = torch.relu(self.last(self.grouped(torch.relu(self.deep(x)))))
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


PAIRS = {
    "stem": Chain("norm", False, "pooled"),
    "pooled": Chain("behind", True, "deep"),
    "deep": Chain(None, False, "grouped"),
    "grouped": Chain("last", False, "hidden"),
    "hidden": Chain(None, False, "head"),
    "head": Chain(),
}


def net(seed: int = 0) -> Net:
    """With uneven channels and batch norms that are no identities, some of negative scale."""
    torch.manual_seed(seed)
    made = Net().eval()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.num_features))
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3.0)
            elif hasattr(module, "weight"):
                module.weight.mul_(
                    torch.rand(len(module.weight), *(1,) * (module.weight.ndim - 1)) * 4 + 0.05
                )
    return made


X = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(9))


def chains(model: nn.Module) -> dict[str, Chain]:
    return chains_of(model, (X[:2],))


def test_chains_end_where_something_else_reads() -> None:
    assert chains(net()) == PAIRS

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.norm, self.c = nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """A branch, a layer and a batch norm that run twice, a function that does not scale."""
            x = torch.relu(self.norm(self.a(x)))
            y = self.norm(self.b(torch.sigmoid(self.b(x))))
            return self.c((x + y).mean((2, 3)))

    assert chains(Twice()) == {"a": Chain(), "c": Chain()}

    rows = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))  # on (N, 1, 8, 8): rows of a map
    assert set(chains(rows).values()) == {Chain()}


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=10)
def test_folding_and_equal_ranges_keep_the_function(seed: int) -> None:
    model = net(seed)
    before = model(X).detach()
    keys = list(model.state_dict())
    assert equalise(model, PAIRS) == 5
    torch.testing.assert_close(model(X), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    assert fold_batch_norms(model, PAIRS) == ("norm", "last")
    torch.testing.assert_close(model(X), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model.norm(X.expand(-1, 8, -1, -1)), X + model.norm.bias.view(1, -1, 1, 1))


def test_ranges_are_equal_afterwards() -> None:
    model = net()
    with torch.no_grad():
        model.hidden.weight[3] = 0.0  # a pruned channel
    zero = model.hidden.weight == 0
    before = model.head.weight.detach()[:, 3].clone()
    equalise(model, {"hidden": PAIRS["hidden"]})
    made = model.hidden.weight.detach().abs().amax(1)
    read = model.head.weight.detach().abs().amax(0)
    others = torch.arange(24) != 3
    torch.testing.assert_close(made[others], read[others])
    assert torch.equal(model.hidden.weight == 0, zero)
    assert torch.equal(model.head.weight[:, 3], before)


def test_biases_take_the_mean_error_out() -> None:
    def errors(model: nn.Module) -> dict[str, float]:
        means = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(
                    lambda m, _x, y, name=name: means.__setitem__(
                        name, y.detach().transpose(0, 1).flatten(1).mean(1)
                    )
                )
        with torch.no_grad():
            model(X)
        return means

    float_means = errors(net())
    results = []
    for correct in (False, True):
        model = net()
        round_network(model, [X], RoundSettings(bits=3, equalise=False, include=("stem", "depthwise", "classifier"),
                                                correct_bias=correct))  # fmt: skip
        results.append(errors(model))
    plain, corrected = results
    for name in ("stem", "deep", "hidden", "head"):  # those with a bias: what they make is right on the mean
        off = (corrected[name] - float_means[name]).abs().max()
        assert off < 0.25 * (plain[name] - float_means[name]).abs().max(), name


def test_a_batch_norms_mean_takes_the_error_where_there_is_no_bias() -> None:
    model, ranges = net(), MapRanges(())
    before = model.last.running_mean.clone()
    weight = model.grouped.weight.detach() * 1.5
    assert correct_biases(model, {"grouped": weight}, ranges, PAIRS, [X]) == ("grouped",)
    with torch.no_grad():
        seen = []
        model.last.register_forward_pre_hook(lambda _m, args: seen.append(args[0].mean((0, 2, 3))))
        model(X)
        torch.testing.assert_close(
            model.last.running_mean - before, seen[0] / 3, rtol=1e-3, atol=1e-4
        )  # (1.5 - 1) / 1.5 of what it makes now


# ---------------------------------------------------------------------- training
def digits() -> tuple[Any, Any]:
    """Scikit-learn's 8x8 digits: 1,400 for training, the rest for tests."""
    data = load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    y = torch.from_numpy(data.target).long()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    train, test = order[:1400], order[1400:]
    generator = torch.Generator().manual_seed(0)
    batches = DataLoader(TensorDataset(x[train], y[train]), 50, shuffle=True, generator=generator)
    return batches, DataLoader(TensorDataset(x[test], y[test]), 200)


@cache
def sparse_digits() -> tuple[dict[str, Any], dict[str, Mask], float]:
    """A trained network with 4×4 blocks at 75 %, its masks and its accuracy."""
    torch.manual_seed(2)
    model, (train, test) = Net(), digits()
    Trainer(model, train, test, TrainSettings(epochs=5, learning_rate=0.1, evaluate_every=5)).fit()
    rules = [
        Rule("pooled", parse_structure("block:4x4"), 0.25),
        Rule("hidden", parse_structure("block:4x4"), 0.25),
    ]
    method = METHODS["one_shot"](model, rules)
    masks = method.finish()
    masked = MaskedWeights(model, masks)
    Trainer(model, train, test, TrainSettings(epochs=4, learning_rate=0.05, evaluate_every=4), masked).fit()
    return copy.deepcopy(model.state_dict()), masks, evaluate(model, test)


def loaded() -> tuple[Net, dict[str, Mask], float]:
    state, masks, accuracy = sparse_digits()
    model = Net()
    model.load_state_dict(state)
    return model.eval(), masks, accuracy


def inputs() -> list[torch.Tensor]:
    return [x for x, _ in digits()[1]][:1]


def assert_whole(model: nn.Module, ranges: MapRanges, masks: dict[str, Mask]) -> None:
    """An ordinary module, masks hold, weights lie on levels of their filter."""
    assert list(model.state_dict()) == list(Net().state_dict())
    assert not any(m._forward_pre_hooks for m in model.modules())
    for name, mask in masks.items():
        assert not model.get_submodule(name).weight.detach().numpy()[~mask.keep].any()
    for record in ranges.layers:
        weight = model.get_submodule(record.layer).weight.detach()
        for row in weight.flatten(1):
            assert len(row.unique()) <= 2**record.weight_bits - 1


CASES: list[dict[str, Any]] = [
    {},
    {"batch_norm": "before"},
    {"batch_norm": "during"},
    {"bits": 4, "maps": 4, "start": "mean"},
    {"bits": 4, "levels": "two-powers"},
    {"bits": 6, "levels": "two-powers", "ranges": "percentile"},
]


@pytest.mark.parametrize("keys", CASES, ids=str)
def test_sparse_and_few_bits_reach_the_float_network(keys: dict[str, Any]) -> None:
    model, masks, float_accuracy = loaded()
    assert float_accuracy > 0.95
    train, test = digits()
    learned = LearnedQuantisation(model, inputs(), LearnSettings(**keys))
    hook = MapHooks([learned], MaskedWeights(model, masks))
    settings_ = TrainSettings(epochs=2, learning_rate=0.02, evaluate_every=2)
    history = Trainer(model, train, test, settings_, hook).fit()
    ranges = learned.finish()
    assert_whole(model, ranges, masks)
    assert [r.layer for r in ranges.layers] == list(PAIRS)
    with rounded_maps(model, ranges):
        accuracy = evaluate(model, test)
    assert accuracy == pytest.approx(history[-1]["accuracy"], abs=0.003)  # what was trained is handed over
    assert accuracy > float_accuracy - 0.015
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"equalise": False},
        {"ranges": "min-max"},
        {"ranges": "percentile"},
        {"bits": 6, "levels": "two-powers"},
    ],
    ids=str,
)
def test_rounding_after_training_reaches_the_float_network(keys: dict[str, Any]) -> None:
    model, masks, float_accuracy = loaded()
    ranges = round_network(model, inputs(), RoundSettings(**keys))
    assert_whole(model, ranges, masks)
    with rounded_maps(model, ranges):
        assert evaluate(model, digits()[1]) > float_accuracy - 0.015


def test_the_handed_over_network_computes_what_was_trained() -> None:
    for keys in CASES:
        model, masks, _ = loaded()
        learned = LearnedQuantisation(model, inputs(), LearnSettings(**keys))
        with torch.no_grad():
            for parameter in model.parameters():  # steps, ends and weights as training may leave them
                parameter.mul_(1.03)
        MaskedWeights(model, masks)
        x = inputs()[0]
        wanted = model.eval()(x).detach()
        ranges = learned.finish()
        plain = model(x).detach()
        with rounded_maps(model, decode(MapRanges, encode(ranges))):
            made = model(x).detach()
        error, rounding = (made - wanted).abs().max(), (plain - wanted).abs().max()
        assert error < 0.02 * wanted.abs().max(), (
            keys
        )  # a sum on the edge of two levels may fall to the other side
        assert error < rounding, keys


def test_folded_batch_norms_only_shift_while_they_are_trained() -> None:
    model, _, _ = loaded()
    learned = LearnedQuantisation(model, inputs(), LearnSettings(batch_norm="before"))
    train, test = digits()
    Trainer(model, train, test, TrainSettings(epochs=1, learning_rate=0.02), learned).fit()
    learned.finish()
    for norm in (model.norm, model.last):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert not norm.running_mean.any()
        assert norm.bias.any()
    assert not torch.equal(model.behind.weight, torch.ones_like(model.behind.weight))  # behind a pooling


@pytest.mark.parametrize("name", list(METHODS))
def test_masks_of_every_method_hold(name: str) -> None:
    method = METHODS[name]
    for text in ("block:4x1", "filter"):
        structure = parse_structure(text)
        if method.refuses(structure, tiny().body) is None:
            break
    model = tiny()
    masks = run(make(name, model, [Rule("body", structure, 0.25), Rule("hidden", structure, 0.25)]))
    x, y = batch()
    learned = LearnedQuantisation(model, [x], LearnSettings(bits=4))
    masked = MaskedWeights(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    before = model.body.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        masked.after_step()
    learned.finish()
    assert not torch.equal(before, model.body.weight)
    assert set(masks) == {"body", "hidden"}
    for layer, mask in masks.items():
        assert not model.get_submodule(layer).weight.detach().numpy()[~mask.keep].any()


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if issubclass(m, InTraining)])
def test_methods_prune_while_levels_are_learned(name: str) -> None:
    structure, layer = layer_for("filter" if name in ("group_lasso", "hoyer") else "block")
    model = tiny()
    learned = LearnedQuantisation(model, [batch()[0]], LearnSettings())
    masks = run(make(name, model, [Rule(layer, structure, density_for(structure))]))
    learned.finish()
    weight = model.get_submodule(layer).weight.detach()
    assert not weight.numpy()[~masks[layer].keep].any()
    assert all(len(row.unique()) <= 255 for row in weight.flatten(1))


def test_layers_that_read_one_map_share_its_levels() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Both ``b`` and ``c`` read what ``a`` makes; what ``d`` reads has the same values as nothing else."""
            x = torch.relu(self.a(x))
            return self.d((self.b(x) - self.c(x)).mean((2, 3)))

    model = Fork()
    learned = LearnedQuantisation(model, [X], LearnSettings())
    assert model.b.map_levels is model.c.map_levels
    assert len({id(m.map_levels) for m in (model.a, model.b, model.d)}) == 3
    with torch.no_grad():
        model.b.map_levels.step.mul_(1.5)
    b, c = (r for r in learned.finish().layers if r.layer in "bc")
    assert (b.low, b.high) == (c.low, c.high)
    assert not any("map_levels" in name for name, _ in model.named_modules())
    a, b, c, _ = round_network(Fork(), [X], RoundSettings()).layers
    assert (a.low, a.high) != (b.low, b.high) == (c.low, c.high)


def test_layers_of_a_role_keep_eight_bits_and_some_stay_as_they_are() -> None:
    def bits(**keys: Any) -> dict[str, tuple[int, int]]:
        ranges = round_network(net(), [X], RoundSettings(bits=4, maps=3, levels="two-powers", **keys))
        return {r.layer: (r.weight_bits, r.bits) for r in ranges.layers}

    edge, few = (8, 8), (4, 3)
    assert bits() == dict.fromkeys(PAIRS, few) | dict.fromkeys(("stem", "deep", "head"), edge)
    assert bits(include=("stem", "depthwise")) == dict.fromkeys(PAIRS, few) | {"head": edge}
    assert set(bits(exclude=("h*", "stem"))) == {"pooled", "deep", "grouped"}
    model = net()
    before = model.head.weight.detach().clone()
    round_network(model, [X], RoundSettings(exclude=("head",), equalise=False))
    assert torch.equal(model.head.weight, before)
    for exclude, message in (
        (("neck",), "exclude 'neck': matches none of the layers stem, "),
        (("*",), "every layer"),
    ):
        with pytest.raises(StructureError, match=message) as caught:
            LearnedQuantisation(net(), [X], LearnSettings(exclude=exclude))
        assert "\n" not in str(caught.value)


def test_a_layer_that_does_not_run_is_named() -> None:
    model = net()
    model.spare = nn.Linear(3, 3)
    with pytest.raises(StructureError, match=r"layer 'spare': it does not run .* exclude it"):
        round_network(model, [X], RoundSettings(equalise=False, correct_bias=False))


@pytest.mark.parametrize(
    ("made", "keys", "message"),
    [
        (LearnSettings, {"bits": 9}, "bits: found 9"),
        (LearnSettings, {"bits": 5, "levels": "two-powers"}, "TwoPowers: found 5 bits; 4, 6 are allowed"),
        (
            LearnSettings,
            {"levels": "three-powers"},
            "unknown levels 'three-powers'; known: two-powers, uniform",
        ),
        (LearnSettings, {"batch_norm": "after"}, "batch_norm: found 'after'"),
        (RoundSettings, {"ranges": "entropy"}, "unknown map range 'entropy'; known: min-max"),
        (RoundSettings, {"method": "lsq"}, "method: found 'lsq'"),
    ],
)
def test_bad_settings(made: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SparseflowError, match=message) as caught:
        made(**keys)
    assert "\n" not in str(caught.value)


def test_records_are_checked_and_go_through_a_file(tmp_path: Any) -> None:
    record = MapRange("a.weight", -1.0, 3.0, 4, 6)
    assert (record.layer, record.scale, record.zero_point) == ("a", 4 / 15, 4)
    ranges = MapRanges((record, MapRange("b.weight", 0.0, 2.0)))
    ranges.save(tmp_path / "quantisation.json")
    assert MapRanges.load(tmp_path / "quantisation.json") == ranges
    for values, message in (((0.5, 2.0), "hold zero"), ((0.0, 0.0), "hold zero"), ((-1.0, float("nan")), "finite"),
                            ((0.0, 1.0, 9), "2 to 8")):  # fmt: skip
        with pytest.raises(FormatError, match=message):
            MapRange("a.weight", *values)
    with pytest.raises(FormatError, match=r"a\.weight: found twice"):
        MapRanges((record, record))
    for text in ("{}", "no JSON", '{"layers": [{"name": "a", "low": 1, "high": 2}]}'):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(FormatError, match=r"broken\.json: no map ranges") as caught:
            MapRanges.load(tmp_path / "broken.json")
        assert "\n" not in str(caught.value)
    with (
        pytest.raises(StructureError, match=r"found 'a\.weight', but the model has no such layer"),
        rounded_maps(net(), ranges),
    ):
        pass


def test_every_levels_name_is_a_setting() -> None:
    for name, made in LEVELS.items():
        for bits in made.allowed:
            ranges = round_network(net(), [X], RoundSettings(bits=bits, levels=name, include=("stem",)))
            assert ranges.layers[0].weight_bits == bits
