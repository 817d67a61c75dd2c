"""Recipes are strict: what they do not know, they refuse in one line that names the place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from sparseflow.data import load_data
from sparseflow.errors import RecipeError
from sparseflow.train import load_recipe, parse_recipe
from sparseflow.train.methods import METHODS, ByScores, MethodSettings
from sparseflow.train.models import build_model
from sparseflow.train.quickstart import TITLES, quickstart_recipe

RECIPES = Path(__file__).parents[2] / "recipes"

GOOD: dict[str, Any] = {
    "name": "small",
    "data": {"name": "mnist5k"},
    "model": {"name": "mnist_cnn"},
    "rules": [{"layers": "features.*", "sparsify": "block:4x1@0.9"}],
    "stages": [
        {"kind": "dense", "epochs": 2, "learning_rate": 0.1},
        {"kind": "admm", "epochs": 2, "learning_rate": 0.1, "rho": 1e-3},
        {"kind": "retrain", "epochs": 2, "learning_rate": 0.1},
    ],
}


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    place: Any = content
    for part in path[:-1]:
        place = place[part]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_of_the_repository_load(path: Path) -> None:
    recipe = load_recipe(path)
    kinds = list(dict.fromkeys(stage.kind for stage in recipe.stages))
    if "thresholds" in kinds:
        assert kinds[-2:] == ["activations", "thresholds"]
        kinds = kinds[:-2]
    if "int8" in path.stem:
        assert kinds.pop() == "quantise"
        assert recipe.data is not None
        assert recipe.data.validation == 5000
    assert kinds == (["dense", "admm", "retrain"] if recipe.rules else ["dense"])
    for rule in recipe.rules:
        assert rule.rule().structure is not None


@pytest.mark.parametrize(("structure", "title"), TITLES.items())
def test_quick_start_recipes_equal_their_files(structure: str, title: str) -> None:
    assert quickstart_recipe(structure) in [load_recipe(p) for p in RECIPES.glob("mnist5k_*.toml")]
    assert title in quickstart_recipe(structure).name
    assert quickstart_recipe(structure).fingerprint(0) == quickstart_recipe(None).fingerprint(0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colour",), "red", r"^recipe: colour: unknown key; known here: name, seed"),
        (("data", "batchsize"), 3, r"data\.batchsize: unknown key; known here: name, folder, batch_size"),
        (("rules", 0, "layer"), "x", r"rules\[0\]\.layer: unknown key; known here: layers, sparsify"),
        (("stages", 1, "rhoo"), 1.0, r"stages\[1\]\.rhoo: unknown key; known here: .*rho_factor"),
        (("stages", 0, "rho"), 1.0, r"stages\[0\]\.rho: unknown key"),
        (("stages", 0, "epochs"), "two", r"stages\[0\]\.epochs: found 'two'"),
        (("stages", 0, "epochs"), 2.0, r"stages\[0\]\.epochs: found 2\.0"),
        (("stages", 0, "epochs"), None, r"stages\[0\]\.epochs: missing"),
        (("stages", 0, "learning_rate"), -1.0, r"stages\[0\]\.learning_rate: found -1\.0"),
        (("stages", 0, "warmup"), 3.0, r"stages\[0\]: warmup is 3\.0 epochs"),
        (("stages", 0, "kind"), "lottery", r"stages\[0\].*lottery"),
        (("stages", 0, "kind"), "retrain", r"order"),
        (("stages", 2, "kind"), "admm", r"one is allowed"),
        (("stages",), [], r"stages: found \[\]"),
        (("rules",), [], r"no \[\[rules\]\]"),
        (("rules", 0, "sparsify"), "block:4x1@1.5", r"rules\[0\]\.sparsify: .*1\.5"),
        (("rules", 0, "sparsify"), "brick@0.5", r"rules\[0\]\.sparsify: .*brick"),
        (("rules", 0, "include"), ["neck"], r"rules\[0\]: rule .*: unknown role 'neck'; stem, "),
        (("seed",), -1, r"seed: found -1"),
    ],
)
def test_errors_name_the_key(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(changed(path, value))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.toml: cannot be read"):
        load_recipe(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    with pytest.raises(RecipeError, match=r"broken\.toml: not TOML") as caught:
        load_recipe(broken)
    assert "\n" not in str(caught.value)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not TOML"):
        load_recipe(broken)


def test_fingerprint_counts_what_matters_up_to_the_stage() -> None:
    base = parse_recipe(GOOD)
    later = parse_recipe(changed(("stages", 2, "epochs"), 5))
    assert base.fingerprint(1) == later.fingerprint(1)
    assert base.fingerprint(2) != later.fingerprint(2)
    rules = parse_recipe(changed(("rules", 0, "sparsify"), "block:4x1@0.8"))
    assert base.fingerprint(0) == rules.fingerprint(0)
    assert base.fingerprint(1) != rules.fingerprint(1)
    assert base.fingerprint(0) != parse_recipe(changed(("seed",), 7)).fingerprint(0)
    assert base.fingerprint(0) == parse_recipe(changed(("data", "folder"), "elsewhere")).fingerprint(0)


def test_runs_of_earlier_versions_stay_reusable() -> None:
    """Fingerprints as they were recorded with finished runs; a new optional key must not change them."""
    recorded = {
        "cifar10_pattern_connectivity": ("c18aa9aafe124445", "3474b6807f3236e8", "304790cb8a6d1379"),
        "mnist5k_block": ("726f1c3fcc0b4a1a", "85fbac860c0ca6b6", "01a0a8f4e3e50e29"),
    }
    for name, starts in recorded.items():
        recipe = load_recipe(RECIPES / f"{name}.toml")
        assert [recipe.fingerprint(i)[:16] for i in range(3)] == list(starts)


def test_arguments_reach_the_models_builder_and_count_in_the_fingerprint() -> None:
    data = load_data("mnist5k")
    narrow = parse_recipe(changed(("model", "arguments"), {"widths": [8, 16]}))
    assert narrow.fingerprint(0) != parse_recipe(GOOD).fingerprint(0)
    assert narrow.model is not None
    assert build_model("mnist_cnn", data, narrow.model.arguments).classifier.in_features == 16
    with pytest.raises(RecipeError, match=r"arguments\.depth: mnist_cnn has no such argument; known: widths"):
        build_model("mnist_cnn", data, {"depth": 3})
    with pytest.raises(RecipeError, match="cannot be built with"):
        build_model("mnist_cnn", data, {"widths": [3]})


def test_a_registered_method_is_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    class SleepSettings(MethodSettings):
        strength: float = Field(default=0.5, gt=0)

    class Sleep(ByScores):
        Settings = SleepSettings

    monkeypatch.setitem(METHODS._entries, "sleep", Sleep)
    stages = [{"kind": "dense", "epochs": 2, "learning_rate": 0.1}, {"kind": "sleep", "strength": 2.0}]
    recipe = parse_recipe(GOOD | {"stages": stages})
    assert recipe.stages[1].method_settings() == SleepSettings(strength=2.0)
    assert recipe.fingerprint(0) == parse_recipe(GOOD | {"stages": stages[:1]}).fingerprint(0)
    for key, value, message in (
        ("strength", -1.0, r"stages\[1\]\.strength: found -1\.0"),
        ("epochs", 3, r"stages\[1\]\.epochs: unknown key; known here: recalibrate, kind, strength"),
        (
            "kind",
            3,
            r"stages\[1\]\.kind: .*dense, retrain, activations, thresholds, quantise, post_training, admm",
        ),
        ("kind", "nap", r"stages\[1\]\.kind: unknown method 'nap'; known: .*sleep"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe(GOOD | {"stages": [stages[0], stages[1] | {key: value}]})
