"""Sparse maps: activations, regularisers, thresholds within a budget, recipes, and what the compiler makes of them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sparseflow.core.prune_result import mean_density
from sparseflow.errors import RecipeError, StructureError
from sparseflow.train import Trainer, TrainSettings, Workspace, evaluate, parse_recipe, run_recipe
from sparseflow.train.activations import (
    REGULARISERS,
    DensityRamp,
    FATReLU,
    MapRegulariser,
    TopK,
    fit_thresholds,
    map_densities,
    sparsify_activations,
)
from sparseflow.train.methods.observe import take


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


@pytest.fixture(scope="module")
def loader() -> DataLoader[tuple[Tensor, ...]]:
    """Four classes that a mean colour tells apart, with noise."""
    torch.manual_seed(1)
    labels = torch.arange(256) % 4
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [-1.0, 0, 0]])[labels]
    x = colours[:, :, None, None] + 0.7 * torch.randn(256, 3, 8, 8)
    return DataLoader(TensorDataset(x, labels), batch_size=32)


def test_fatrelu_is_a_relu_at_zero_and_passes_gradients_above_its_threshold() -> None:
    x = torch.tensor([-1.0, 0.0, 0.4, 0.5, 0.6, 3.0], requires_grad=True)
    torch.testing.assert_close(FATReLU()(x), F.relu(x))
    y = FATReLU(0.5)(x)
    torch.testing.assert_close(y, torch.tensor([0.0, 0, 0, 0, 0.6, 3.0]))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0, 0, 1, 1]


def test_top_k_keeps_so_many_channels_of_each_pixel() -> None:
    x = torch.randn(2, 10, 5, 4, requires_grad=True)
    y = TopK(0.3)(x)
    assert (y != 0).sum(1).max() == 3
    assert bool(((y == 0) | (y == x)).all())
    largest = x.clamp(min=0).topk(3, dim=1).values.sum()
    torch.testing.assert_close(y.sum(), largest)
    y.sum().backward()
    assert bool(((x.grad != 0) == (y != 0)).all())


@pytest.mark.parametrize(
    "make", [lambda: FATReLU(-0.1), lambda: FATReLU(float("nan")), lambda: TopK(0.0), lambda: TopK(1.5)]
)
def test_parameters_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(StructureError, match="allowed"):
        make()  # type: ignore[operator]


def test_relus_are_replaced_once_and_by_name() -> None:
    model = _network()
    assert list(sparsify_activations(model, names=("5",))) == ["5"]
    assert isinstance(model[2], nn.ReLU)
    first = sparsify_activations(model)["5"]
    assert sparsify_activations(model)["5"] is first
    with pytest.raises(StructureError, match=r"'6'.*found are 2, 5"):
        sparsify_activations(model, names=("6",))


def test_smooth_activations_are_replaced_only_when_asked_for() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.SiLU(), nn.ReLU())
    assert list(sparsify_activations(model)) == ["4"]
    assert list(sparsify_activations(model, relufy=True)) == ["1", "3", "4"]
    x = torch.randn(3, 4)
    torch.testing.assert_close(model[1](x), F.relu(x))


@pytest.mark.parametrize("kind", REGULARISERS)
def test_gradients_of_regularisers(kind: str) -> None:
    y = (torch.rand(2, 3, 4, 4, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(REGULARISERS[kind], (y,))
    assert torch.isfinite(REGULARISERS[kind](torch.zeros(2, 3)))


def test_hoyer_is_at_most_the_density_whatever_the_scale() -> None:
    y = F.relu(torch.randn(4, 6, 5, 5))
    measure = REGULARISERS["hoyer"]
    assert float(measure(y)) < float((y != 0).float().mean())
    torch.testing.assert_close(measure(7.0 * y), measure(y))
    torch.testing.assert_close(measure((y > 0).float()), (y > 0).float().mean())


@pytest.mark.parametrize("kind", REGULARISERS)
def test_a_regulariser_lowers_the_density(kind: str, loader: DataLoader[tuple[Tensor, ...]]) -> None:
    densities = []
    for strength in (0.0, 3.0):
        model = _network()
        activations = sparsify_activations(model)
        hook = MapRegulariser(activations, kind, strength)
        settings = TrainSettings(epochs=6, learning_rate=0.05)
        Trainer(model, loader, loader, settings, hook).fit()
        hook.close()
        densities.append(mean_density(map_densities(model, activations, loader).values()))
    assert densities[1] < 0.8 * densities[0]


def test_thresholds_follow_the_maps_to_the_wanted_density(loader: DataLoader[tuple[Tensor, ...]]) -> None:
    model = _network()
    activations = sparsify_activations(model)
    hook = DensityRamp(activations, 0.2, ramp=3.0)
    Trainer(model, loader, loader, TrainSettings(epochs=6, learning_rate=0.05), hook).fit()
    hook.close()
    found = map_densities(model, activations, loader)
    assert all(abs(use.density - 0.2) < 0.06 for use in found.values()), found
    assert (hook.wanted(0.0), hook.wanted(1.5), hook.wanted(9.0)) == (0.5, pytest.approx(0.35), 0.2)


def test_thresholds_are_fitted_within_the_budget(loader: DataLoader[tuple[Tensor, ...]]) -> None:
    model = _network()
    activations = sparsify_activations(model)
    Trainer(model, loader, loader, TrainSettings(epochs=6, learning_rate=0.05)).fit()
    model.train()
    batches, before = list(take(loader, 200)), evaluate(model, loader)
    assert sum(len(labels) for _, labels in batches) == 200
    fit = fit_thresholds(model, activations, batches, 0.02)
    assert model.training
    assert fit.accuracy_after >= fit.accuracy_before - 0.02
    assert fit.density_after < fit.density_before
    assert fit.thresholds == {n: float(m.threshold) for n, m in activations.items()}
    assert max(fit.thresholds.values()) > 0.0
    assert evaluate(model, loader) >= before - 0.06  # 56 of the samples were not seen


def test_fitting_needs_data_and_a_budget() -> None:
    model = _network()
    with pytest.raises(StructureError, match="0 batches, budget 2"):
        fit_thresholds(model, sparsify_activations(model), [], 2.0)


RECIPE = {
    "name": "maps",
    "rules": [{"layers": "3", "sparsify": "block:4x1@0.5"}],
    "stages": [
        {"kind": "dense", "epochs": 2, "learning_rate": 0.05},
        {"kind": "magnitude"},
        {
            "kind": "activations",
            "epochs": 3,
            "learning_rate": 0.05,
            "density": 0.25,
            "ramp": 1.0,
            "regulariser": "hoyer",
            "strength": 0.1,
        },
        {"kind": "thresholds", "budget": 0.02, "samples": 128},
    ],
}


def test_a_recipe_of_both_sparsities_goes_on_after_a_stop_and_compiles(
    loader: DataLoader[tuple[Tensor, ...]], tmp_path: Path
) -> None:
    import sparseflow

    recipe = parse_recipe(RECIPE)
    first = run_recipe(recipe, tmp_path, workspace=Workspace(_network(), loader, loader))
    assert first.map_density is not None
    assert first.map_density < 0.35
    assert first.layers[1].kept == first.layers[1].total // 2
    assert all(m.threshold is not None and m.threshold > 0.0 for m in first.maps)
    (tmp_path / "stage-4-thresholds.ckpt").unlink()
    model = _network()
    again = run_recipe(recipe, tmp_path, workspace=Workspace(model, loader, loader))
    assert again.maps == first.maps
    x = next(iter(loader))[0][:1]
    engine = sparseflow.compile(Path(first.exported_path), measure=False)
    with torch.no_grad():
        np.testing.assert_allclose(engine(x.numpy()), model(x).numpy(), rtol=0, atol=1e-4)
    kinds = [operator.kind for operator in engine.profile(x.numpy())]
    assert not [kind for kind in kinds if "where" in kind or "greater" in kind], kinds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regulariser": "l0"}, r"regulariser is 'l0'; known: l1, hoyer"),
        ({"strength": 0.0}, "needs a strength"),
        ({"activation": "topk", "density": None}, "no density"),
        ({"density": 1.5}, r"stages\[2\].density"),
    ],
)
def test_recipes_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    stages = [dict(s) for s in RECIPE["stages"]]  # type: ignore[call-overload]
    stages[2] |= changes
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**RECIPE, "stages": [{k: v for k, v in s.items() if v is not None} for s in stages]})


DOCS = (Path(__file__).parents[2] / "docs" / "feature_maps.md").read_text()


def test_the_snippets_of_the_docs_run() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    exec(compile(snippet, "docs/feature_maps.md", "exec"), {})
    (stages,) = re.findall(r"```toml\n(.*?)```", DOCS, re.S)
    recipe = parse_recipe({"name": "docs", **tomllib.loads(stages)})
    assert [stage.kind for stage in recipe.stages] == ["activations", "thresholds"]


def test_activations_come_after_the_weights() -> None:
    stages = [RECIPE["stages"][i] for i in (0, 2, 1)]  # type: ignore[index]
    with pytest.raises(RecipeError, match="then activations and thresholds"):
        parse_recipe({**RECIPE, "stages": stages})


def test_unknown_activations_are_found_before_training(
    loader: DataLoader[tuple[Tensor, ...]], tmp_path: Path
) -> None:
    stages = [dict(s) for s in RECIPE["stages"]]  # type: ignore[call-overload]
    stages[3]["activations"] = ["nowhere.*"]
    recipe = parse_recipe({**RECIPE, "stages": stages})
    with pytest.raises(StructureError, match=r"nowhere"):
        run_recipe(recipe, tmp_path, workspace=Workspace(_network(), loader, loader))
    assert not list(tmp_path.iterdir())
