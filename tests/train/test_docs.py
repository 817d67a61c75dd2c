"""docs/training.md says what the registry of methods says; tests/docs runs its snippets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sparseflow.core.structures import STRUCTURES
from sparseflow.errors import SparseflowError
from sparseflow.train import CRITERIA, parse_recipe
from sparseflow.train.criteria import Reads
from sparseflow.train.methods import METHODS, Method, Need
from tests.train.method_cases import layer_for, model

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "training.md").read_text()


def test_the_recipe_is_one() -> None:
    (snippet,) = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
    assert [stage.kind for stage in parse_recipe(tomllib.loads(snippet)).stages] == [
        "dense",
        "admm",
        "retrain",
    ]


@pytest.mark.parametrize("name", list(METHODS))
def test_the_table_of_methods_is_the_registry(name: str) -> None:
    method, refused = METHODS[name], []
    for structure in STRUCTURES:
        example, layer = layer_for(structure)
        if method.refuses(example, model().get_submodule(layer)) is not None:
            refused.append(structure)
    structures = "all but " + ", ".join(refused) if refused else "all"
    assert f"| `{name}` | {method.needs} | {structures} | {method.when} |" in TEXT.splitlines()
    rows = re.findall(r"^\| `(\w+)` \| (?:what its criterion reads|calibration data|training) \|", TEXT, re.M)
    assert sorted(rows) == sorted(METHODS)


def test_the_tables_of_criteria_are_the_registry() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \| (.*) \|$", TEXT, re.M)
    found = {name: (reads, when) for name, reads, when in rows if reads in list(Reads)}
    assert found == {name: (str(c.reads), c.when) for name, c in CRITERIA.items()}
    takers = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `(\w+)` \| (`\w+`(?:, `\w+`)*) \|$", TEXT, re.M)
    said = {m: (own, o) for names, own, o in takers for m in re.findall(r"\w+", names)}
    for name, method in METHODS.items():
        field = method.Settings.model_fields.get("criterion")
        assert (name in said) == (field is not None)
        if field is not None:
            own, others = said[name]
            assert own == field.default
            assert {own, *re.findall(r"\w+", others)} == {c for c in found if takes(method, c)}


def takes(method: type[Method], criterion: str) -> bool:
    """Whether the method's settings admit the criterion."""
    needed = {"epochs": 2} if method.needs is Need.TRAINING else {}
    try:
        method.Settings(criterion=criterion, **needed)
    except SparseflowError:
        return False
    return True


def test_every_setting_of_a_method_is_explained() -> None:
    for name, method in METHODS.items():
        for setting in method.Settings.model_fields:
            assert re.search(rf"`{setting}`|^{setting} =", TEXT, re.M), f"{name}: {setting}"
