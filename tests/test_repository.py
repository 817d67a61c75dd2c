"""What the project says of itself in more than one place agrees, and a missing part fails instead of passing."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import sparseflow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/sparseflow/__init__.py"
    assert importlib.metadata.version("sparseflow") == sparseflow.__version__


def test_the_newest_release_in_the_changelog_is_not_newer_than_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n")
    assert "\n## Unreleased\n" in text
    released = re.findall(r"^## \[?([\d.]+)", text, re.M)
    assert released[:1] in ([], [sparseflow.__version__])
    headings = set(re.findall(r"^### (.*)$", text, re.M))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_no_test_is_skipped_because_a_package_is_missing() -> None:
    skip = "import" + "orskip"
    found = [p for p in (ROOT / "tests").rglob("*.py") if skip in p.read_text(encoding="utf-8")]
    assert found == []


def test_ci_stops_at_the_first_failure() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    steps = [line for line in lines if line.startswith("make ")]
    assert all(re.fullmatch(r"make [\w-]+", step) for step in steps)
    assert {"make check", "make docs", "make emulator", "make test", "make test-slow"} == set(steps)


def test_every_target_of_the_makefile_is_phony_and_explained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    assert set(phony.split()) == targets
    told = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "CONTRIBUTING.md"))
    assert {name for name in targets if f"make {name}" not in told} <= {"clean"}
