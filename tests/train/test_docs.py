"""The snippets of docs/training.md run as they stand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sparseflow.train import parse_recipe

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


@pytest.mark.parametrize("number", range(len(re.findall(r"```python\n", TEXT))))
def test_python_snippets_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippet = re.findall(r"```python\n(.*?)```", TEXT, re.S)[number]
    exec(compile(snippet, f"docs/training.md:{number}", "exec"), {})


def test_the_recipe_is_one() -> None:
    (snippet,) = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
    assert [stage.kind for stage in parse_recipe(tomllib.loads(snippet)).stages] == [
        "dense",
        "admm",
        "retrain",
    ]
