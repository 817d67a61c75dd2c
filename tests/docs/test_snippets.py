"""Every code block of the README, of CONTRIBUTING and of docs/ runs, or is in a list here with the reason why not."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import click
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from sparseflow.cli.main import app
from sparseflow.core import parse_sparsify
from sparseflow.engine.sparsify import sparsify
from sparseflow.train import parse_recipe
from sparseflow.train.criteria import CRITERIA
from tests.docs.snippets import ROOT, Snippet, commands, snippets

SLOW = {
    "README.md": "measures the kernels of MobileNet-v2",
    "docs/streams.md": "measures the tiles of ResNet-18",
}
"""Page of a Python block → why only `make test-slow` runs it."""

NOT_RUN = {
    "docs/quickstart.md": "trains for minutes; tests/studies/test_quickstart.py has small settings",
}
"""Page of a Python block → why nothing runs it."""

ELSEWHERE = {"CONTRIBUTING.md": "tests/docs/test_contributing.py runs its blocks section by section"}
"""Page of Python blocks → what runs them."""

RUN = (
    "sparseflow compile runs/digits/model.pt2 -o digits.engine",
    "sparseflow explain digits.engine",
    "sparseflow inspect runs/digits/model.pt2 --data mnist5k",
    "sparseflow compile runs/digits/model.pt2 --calibrate mnist5k -o digits.engine",
    "sparseflow inspect zoo:resnet18 --sparsify filter@0.5 --cut",
    "sparseflow inspect MODEL --data DATA --json maps.json",
    "sparseflow report maps.json",
)
"""Commands that are run, in this order, with a small network in the place of the trained one."""

COMMANDS_NOT_RUN = {
    "make *": "are this test suite itself, or hold it; tests/test_repository.py checks the Makefile",
    "tools/fetch_data.sh *": "downloads",
    "python benchmarks/render.py": "writes into the repository; tests/test_benchmarks.py runs it on a copy",
    "python benchmarks/*": "measures or trains for minutes to hours",
    "sparseflow prune *": "trains for minutes to hours; tests/cli runs it with a small recipe",
    "sparseflow sweep *": "trains for minutes to hours; tests/studies runs a small sweep",
    "sparseflow report runs/*": "needs what was trained; tests/report renders every kind",
    "sparseflow inspect runs/cifar10-maps/*": "needs what was trained",
    "sparseflow compile runs/cifar10-int8/*": "the same; tests/engine/test_int8.py takes ranges that training fixed",
    "sparseflow tune *": "times dozens of kernels for each layer",
    "sparseflow bench *": "measures ResNet-50 in four engines; tests/cli runs it with a small network",
    "sparseflow inspect zoo:resnet50 *": "half a minute; ResNet-18 is run",
    "sparseflow compile zoo:resnet50 *": "measures ResNet-50 for minutes; tests/targets compiles for AVX2",
    "sparseflow compile pruned.pt2 --target neon *": "needs a cross compiler; tests/targets runs it in an emulator",
    "pip install *": "changes the environment that the tests run in",
    "LITERT=1 tools/install_env.sh": "the same; it takes 800 MB",
    "torchrun *": "needs a recipe; tests/train runs two processes",
}
"""Pattern of commands → why they are not run; the first pattern that fits counts."""


def python_cases(left_out: set[str]) -> list[object]:
    return [
        pytest.param(s, id=s.place, marks=[pytest.mark.slow] if s.page in SLOW else [])
        for s in snippets("python")
        if s.page not in left_out
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("snippet", python_cases({*NOT_RUN, *ELSEWHERE}))
def test_python_blocks_run(snippet: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA))  # to which a block adds
    exec(compile(snippet.text, snippet.place, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("snippet", [s for s in snippets("python") if s.page in {*SLOW, *NOT_RUN}])
def test_blocks_that_are_not_run_at_once_import_what_exists(snippet: Snippet) -> None:
    lines = re.findall(
        r"^(?:from sparseflow\S* import (?:\([^)]*\)|.*)|import sparseflow.*)$", snippet.text, re.M
    )
    assert lines
    exec("\n".join(lines), {})


def test_lists_name_pages_with_blocks() -> None:
    assert {*SLOW, *NOT_RUN, *ELSEWHERE} <= {s.page for s in snippets("python")}


def reason_not_to_run(command: str) -> str | None:
    return next((p for p in COMMANDS_NOT_RUN if fnmatchcase(command, p)), None)


def test_every_command_is_run_or_says_why_not() -> None:
    found = set(commands())
    assert set(RUN) <= found
    rest = found - set(RUN)
    assert {c for c in rest if reason_not_to_run(c) is None} == set()
    assert set(COMMANDS_NOT_RUN) == {reason_not_to_run(c) for c in rest}


def network() -> nn.Module:
    """A small network for digits with blocks of zeros, in the place of the trained one."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    ).eval()  # fmt: skip
    sparsify(net, parse_sparsify("block:4x1@0.8"))
    return net


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_commands_run(tmp_path: Path) -> None:
    (tmp_path / "runs/digits").mkdir(parents=True)
    program = torch.export.export(network(), (torch.zeros(1, 1, 28, 28),))
    torch.export.save(program, tmp_path / "runs/digits/model.pt2")
    places = {"MODEL": "runs/digits/model.pt2", "DATA": "mnist5k"}
    for command in RUN:
        arguments = [places.get(word, word) for word in shlex.split(command)[1:]]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, f"{commands()[command]}: {command}: {done.stderr}"


@pytest.mark.parametrize(
    "command", [c for c in commands() if re.search(r"(^|\.main )(sparseflow|prune) ", c)]
)
def test_options_of_commands_exist(command: str) -> None:
    """Also of those that are not run: the command line takes their options and values."""
    name, *arguments = shlex.split(re.sub(r"^(torchrun .*\.main|sparseflow) ", "", command))
    group = typer.main.get_command(app)
    found = group.get_command(click.Context(group), name)  # type: ignore[attr-defined]
    assert found is not None
    found.make_context(name, arguments)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith(("python ", "tools/"))])
def test_scripts_of_commands_exist(command: str) -> None:
    script, *arguments = [word for word in shlex.split(command) if word != "python"]
    text = (ROOT / script).read_text(encoding="utf-8") + (ROOT / "benchmarks/options.py").read_text("utf-8")
    for option in (a for a in arguments if a.startswith("--")):
        assert f'"{option}"' in text, option
    named = [a for a in arguments if a.endswith(".toml")]
    assert all((ROOT / path).is_file() for path in named)
    assert script.endswith(".py") or shutil.which(ROOT / script)


def test_recipes_of_the_pages_are_recipes() -> None:
    base = {
        "name": "base",
        "data": {"name": "cifar10"},
        "model": {"name": "cifar_net"},
        "rules": [{"layers": "features.*", "sparsify": "block:4x1@0.9"}],
    }
    for snippet in snippets("toml"):
        recipe = parse_recipe({**base, **tomllib.loads(snippet.text)})
        assert recipe.stages, snippet.place
