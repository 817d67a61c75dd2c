"""Allocation: budgets are kept, the knapsack is solved exactly, a recipe carries the decision out."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparseflow.core.latency_table import KIND, LatencyTable, LayerOption
from sparseflow.core.structures import NM, Block, Connectivity, PatternConnectivity, Structure, Unstructured
from sparseflow.errors import FormatError, RecipeError, StructureError
from sparseflow.train import Rule, Workspace, parse_recipe, run_recipe
from sparseflow.train.allocation import (
    ESTIMATES,
    STRATEGIES,
    Assigned,
    Budget,
    ErdosRenyiKernel,
    GlobalMagnitude,
    LatencyAware,
    Problem,
    Sensitivity,
    Strategy,
    Uniform,
    allocate,
    slots_of,
    solve,
)
from sparseflow.train.rules import scores_of, weight_of


def network() -> nn.Sequential:
    """A random network whose logits have the spread of a trained one."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    with torch.no_grad():
        model[-1].weight.mul_(200)
        model[-1].bias.sub_(model(torch.randn(64, 3, 8, 8)).mean(0))
    return model


def batches() -> DataLoader[Any]:
    """Samples on which the dense network is right and sure, so that every pruning raises the loss."""
    torch.manual_seed(4)
    x = torch.randn(48, 3, 8, 8)
    with torch.no_grad():
        labels = network()(x).argmax(1)
    return DataLoader(TensorDataset(x, labels), batch_size=16)


def rules(*structures: Structure) -> list[Rule]:
    return [Rule("*", None, choices=structures or (Unstructured(),))]


def kept(assigned: tuple[Assigned, ...], model: nn.Module) -> float:
    """Weights that the masks of a decision keep, over all weights of its layers."""
    sizes = [weight_of(model, a.name).numel() for a in assigned]
    left = []
    for a, size in zip(assigned, sizes, strict=True):
        scores = scores_of(weight_of(model, a.name))
        left.append(size if a.structure is None else int(a.structure.mask(scores, a.density).keep.sum()))
    return sum(left) / sum(sizes)


def strategies(table: Path) -> dict[str, Strategy]:
    made: list[Strategy] = [
        Uniform(sparsity=0.8),
        ErdosRenyiKernel(sparsity=0.8),
        GlobalMagnitude(sparsity=0.8),
        Sensitivity(sparsity=0.8, samples=32),
        LatencyAware(table=str(write_table(table)), latency_ms=0.5, samples=32),
    ]
    found = {s.model_dump()["strategy"]: s for s in made}
    assert set(found) == set(STRATEGIES)
    return found


def write_table(path: Path, speed: float = 1.0) -> Path:
    """A table in which time falls with density; the last layer gains nothing."""
    cases = {}
    model = network()
    for name in ("2", "4", "6"):
        shape = tuple(weight_of(model, name).shape)
        dense_s, nbytes = 2e-4 * speed, 4 * prod(shape)
        gains = {0.5: 0.8, 0.2: 0.4, 0.1: 0.2} if name != "6" else {0.5: 1.2, 0.2: 1.1, 0.1: 0.99}
        options = [
            LayerOption(text, d, dense_s * gain * factor, round(nbytes * d), "taps")
            for text, factor in (("unstructured", 1.0), ("block:4x1", 0.7 if name != "6" else 1.0))
            for d, gain in gains.items()
        ]
        dense = LayerOption("dense", 1.0, dense_s, nbytes, "direct")
        cases[name] = {"shape": shape, "dense": asdict(dense), "options": [asdict(o) for o in options]}
    head = {"kind": KIND, "model": "m", "machine": "x", "target": "t", "threads": 1}
    path.write_text(json.dumps({**head, "network_s": 7e-4, "network_nbytes": 40000, "cases": cases}))
    return path


# ---------------------------------------------------------------- the contract of all strategies
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_decides_on_every_slot_and_leaves_the_model(name: str, tmp_path: Path) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    strategy = strategies(tmp_path / "table.json")[name]
    assigned = allocate(strategy, model, rules(), batches())
    assert [a.name for a in assigned] == [s.name for s in slots_of(model, rules())] == ["2", "4", "6"]
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert assigned == allocate(strategy, model, rules(), batches())
    assert json.dumps(strategy.identity())
    for a in assigned:
        assert (a.structure is None) == (a.density == 1.0)
        assert a.rule().layers == a.name


@pytest.mark.parametrize("name", ["uniform", "erk", "global-magnitude", "sensitivity"])
def test_sparsity_budgets_are_kept(name: str, tmp_path: Path) -> None:
    model = network()
    assigned = allocate(strategies(tmp_path / "table.json")[name], model, rules(), batches())
    share = kept(assigned, model)
    if name == "sensitivity":  # its densities are steps
        assert 0.1 < share <= 0.2 + 1e-3
    else:
        assert share == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("name", ["uniform", "erk", "global-magnitude", "sensitivity"])
def test_one_structure_only_where_densities_alone_are_decided(name: str, tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="does not choose between block:4x1, unstructured"):
        allocate(
            strategies(tmp_path / "t.json")[name], network(), rules(Block(4, 1), Unstructured()), batches()
        )


# ---------------------------------------------------------------- single strategies
def test_erk_densities_follow_the_formula() -> None:
    model = network()
    assigned = allocate(ErdosRenyiKernel(sparsity=0.9), model, rules(), batches())
    shapes = [tuple(weight_of(model, a.name).shape) for a in assigned]
    raw = [sum(s) / prod(s) for s in shapes]
    ratios = [a.density / r for a, r in zip(assigned, raw, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 3)
    assert sum(a.density * prod(s) for a, s in zip(assigned, shapes, strict=True)) == pytest.approx(
        0.1 * sum(map(prod, shapes))
    )


def test_erk_caps_layers_at_dense_and_shares_out_the_rest() -> None:
    model = network()
    assigned = {
        a.name: a.density for a in allocate(ErdosRenyiKernel(sparsity=0.5), model, rules(), batches())
    }
    assert max(assigned.values()) == 1.0
    sizes = {n: weight_of(model, n).numel() for n in assigned}
    assert sum(assigned[n] * sizes[n] for n in sizes) == pytest.approx(0.5 * sum(sizes.values()))


def test_caps_of_structures_are_kept() -> None:
    model = network()
    pattern = [Rule("2", None, choices=(PatternConnectivity(),)), Rule("6", None, choices=(Unstructured(),))]
    densities = {a.name: a.density for a in allocate(Uniform(sparsity=0.4), model, pattern, batches())}
    assert densities["2"] == pytest.approx(4 / 9)
    with pytest.raises(StructureError, match="the structures remove at least 0"):
        allocate(Uniform(sparsity=0.3), model, [Rule("2", None, choices=(NM(2, 4, 1),))], batches())


@pytest.mark.parametrize("structure", [Unstructured(), Block(4, 1), Connectivity(), PatternConnectivity()])
def test_global_magnitude_has_one_threshold(structure: Structure) -> None:
    model = network()
    with torch.no_grad():
        weight_of(model, "2").mul_(3.0)
    chosen = [Rule(n, None, choices=(structure,)) for n in ("2", "4")]
    first, second = allocate(GlobalMagnitude(sparsity=0.8), model, chosen, batches())
    assert first.density > second.density
    assert kept((first, second), model) == pytest.approx(0.2, abs=0.01)


def test_sensitivity_keeps_what_hurts() -> None:
    model = network()
    with torch.no_grad():
        weight_of(model, "4").mul_(1e-3)  # pruning it changes next to nothing
        model.get_submodule("4").bias.normal_()
    assigned = {a.name: a.density for a in allocate(Sensitivity(sparsity=0.7), model, rules(), batches())}
    assert assigned["4"] == min(assigned.values())


@pytest.mark.parametrize("name", list(ESTIMATES))
def test_loss_increases_rise_with_sparsity(name: str) -> None:
    model = network()
    problem = Problem(model, slots_of(model, rules()), batches())
    increase = ESTIMATES[name](problem, 48)
    found = [increase.of("2", Unstructured(), d) for d in (1.0, 0.5, 0.02)]
    assert found[0] == 0.0
    assert found[0] <= found[1] <= found[2]
    assert found[2] > 0.0


def test_second_order_is_the_sum_over_removed_weights() -> None:
    model = network().eval()
    problem = Problem(model, slots_of(model, rules()), batches())
    estimate = ESTIMATES["second-order"](problem, 48)
    weight = weight_of(model, "2")
    fisher = torch.zeros_like(weight)
    for x, labels in problem.loader:
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), labels), [weight])
        fisher += len(x) * gradient.square() / len(problem.loader)
    keep = torch.from_numpy(Block(4, 1).mask(scores_of(weight), 0.3).keep.copy())
    wanted = float((0.5 * fisher * weight.detach().square())[~keep].sum())
    assert estimate.of("2", Block(4, 1), 0.3) == pytest.approx(wanted, rel=1e-4)


# ---------------------------------------------------------------- the knapsack
@pytest.mark.parametrize("seed", range(12))
def test_the_knapsack_is_solved_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 6, size=5)
    scale = 10.0 ** random.integers(-6, 6)
    losses = [(random.random(n) * scale).tolist() for n in sizes]
    first = [random.random(n).tolist() for n in sizes]
    second = [(1e5 * random.random(n)).tolist() for n in sizes]
    budgets = [Budget(w, c, least(c) + 0.4 * (most(c) - least(c))) for w, c in (("a", first), ("b", second))]
    feasible = {
        choice: sum(x[i] for x, i in zip(losses, choice, strict=True))
        for choice in itertools.product(*map(range, sizes))
        if all(sum(c[i] for c, i in zip(b.costs, choice, strict=True)) <= b.most for b in budgets)
    }
    if not feasible:
        with pytest.raises(StructureError, match="no choice of options keeps all budgets"):
            solve(losses, budgets)
        return
    chosen = solve(losses, budgets)
    assert feasible[chosen] == pytest.approx(min(feasible.values()), rel=1e-9)


def least(costs: list[list[float]]) -> float:
    return sum(map(min, costs))


def most(costs: list[list[float]]) -> float:
    return sum(map(max, costs))


def test_a_budget_below_the_fastest_options_is_refused() -> None:
    with pytest.raises(StructureError, match=r"latency of 1 asked for.*together take 3"):
        solve([[0.0, 1.0], [0.0, 1.0]], [Budget("latency", [[5.0, 2.0], [4.0, 1.0]], 1.0)])


# ---------------------------------------------------------------- the latency table
def test_latency_budget_is_kept_and_layers_without_gain_stay_dense(tmp_path: Path) -> None:
    path = write_table(tmp_path / "table.json")
    table = LatencyTable.read(path)
    assert table.rest_s == pytest.approx(1e-4)
    for budget in (0.45, 0.5, 0.6, 0.7):
        strategy = LatencyAware(table=str(path), latency_ms=budget, samples=32)
        assigned = allocate(strategy, network(), rules(Unstructured(), Block(4, 1)), batches())
        assert 1e3 * (table.rest_s + sum(a.time_s or 0.0 for a in assigned)) <= budget + 1e-9
        assert assigned[-1].structure is None
    assert all(a.structure is None for a in assigned)  # 0.7 ms is what the dense network takes


def test_size_budget_counts_every_layer(tmp_path: Path) -> None:
    path = write_table(tmp_path / "table.json")
    strategy = LatencyAware(table=str(path), size_kb=26.0, samples=32)
    assigned = allocate(strategy, network(), rules(), batches())
    assert sum(a.nbytes or 0 for a in assigned) + LatencyTable.read(path).rest_nbytes <= 26_000
    assert assigned[-1].structure is None or assigned[-1].density < 1.0


def test_a_table_of_another_network_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "table.json")
    data = json.loads(path.read_text())
    data["cases"]["2"]["shape"] = [16, 8, 5, 5]
    path.write_text(json.dumps(data))
    with pytest.raises(StructureError, match=r"layer '2' has shape \(16, 8, 3, 3\), the table has a weight"):
        allocate(LatencyAware(table=str(path), latency_ms=1.0), network(), rules(), batches())
    path.write_text('{"kind": "bench"}')
    with pytest.raises(FormatError, match="a bench was found where a latency-table"):
        LatencyTable.read(path)
    with pytest.raises(FormatError, match="cannot be read"):
        LatencyTable.read(tmp_path / "absent.json")


# ---------------------------------------------------------------- recipes
def recipe(allocation: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "allocated",
        "rules": [{"layers": "*", "choose": ["unstructured"]}],
        "allocation": allocation,
        "stages": [
            {"kind": "magnitude"},
            {"kind": "retrain", "epochs": 1, "learning_rate": 0.01},
        ],
    }


def test_a_recipe_carries_the_decision_out_and_records_it(tmp_path: Path) -> None:
    def run(sparsity: float) -> Any:
        workspace = Workspace(network(), batches(), batches())
        content = recipe({"strategy": "erk", "sparsity": sparsity})
        return run_recipe(parse_recipe(content), tmp_path / f"{sparsity}", workspace=workspace)

    result = run(0.8)
    data = json.loads((tmp_path / "0.8" / "allocation.json").read_text())
    assert data["strategy"] == "erk"
    by_name = {layer.name: layer for layer in result.layers}
    for layer in data["layers"]:
        found = by_name[layer["name"]]
        assert 1 - found.sparsity == pytest.approx(layer["density"], abs=1 / found.total)
    assert by_name["0"].structure == "dense"
    again = run(0.8)
    assert again.layers == result.layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allocation": {"strategy": "erk"}}, r"allocation\.sparsity: missing"),
        (
            {"allocation": {"strategy": "erk", "sparsity": 0.5, "tabel": "x"}},
            r"allocation\.tabel: unknown key",
        ),
        ({"allocation": {"strategy": "erk", "sparsity": 1.5}}, r"allocation\.sparsity: found 1\.5"),
        ({"allocation": {"strategy": "lottery"}}, r"allocation.*lottery"),
        (
            {"allocation": {"strategy": "latency", "table": "t"}},
            r"allocation: neither latency_ms nor size_kb",
        ),
        ({"rules": [{"layers": "*", "sparsify": "filter@0.5"}]}, r"\[allocation\] has nothing to do"),
        ({"rules": [{"layers": "*"}]}, r"rules\[0\]: found both or none of sparsify and choose"),
        ({"rules": [{"layers": "*", "choose": ["brick"]}]}, r"rules\[0\]\.choose: .*brick"),
        ({"allocation": None}, r"rules\[0\] says choose"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], message: str) -> None:
    content = {
        k: v for k, v in (recipe({"strategy": "erk", "sparsity": 0.5}) | changes).items() if v is not None
    }
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(content)
    assert "\n" not in str(caught.value)


def test_a_rule_has_a_structure_or_choices() -> None:
    with pytest.raises(StructureError, match="both a structure and choices"):
        Rule("*", Block(4, 1), 0.5, choices=(Block(4, 1),))
    with pytest.raises(StructureError, match="none of its choices fits"):
        slots_of(network(), [Rule("6", None, choices=(PatternConnectivity(),))])
    with pytest.raises(StructureError, match="nothing to allocate"):
        slots_of(network(), [Rule("6", Block(4, 1), 0.5)])


# ---------------------------------------------------------------- the page
PAGE = (Path(__file__).parents[2] / "docs" / "allocation.md").read_text()


@pytest.mark.parametrize("number", range(PAGE.count("```python\n")))
def test_snippets_of_the_page_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippet = re.findall(r"```python\n(.*?)```", PAGE, re.S)[number]
    exec(compile(snippet, f"docs/allocation.md:{number}", "exec"), {})


def test_the_page_has_a_recipe_and_every_strategy() -> None:
    (snippet,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    assert isinstance(parse_recipe(tomllib.loads(snippet)).allocation, LatencyAware)
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.M)) == sorted(STRATEGIES)
