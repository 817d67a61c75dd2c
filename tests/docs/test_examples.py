"""Every script of examples/ runs, and prints what it promises."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {
    "pruned_torch": "saved and loaded: equal results",
    "fine_tune": r"engine: 9\d\.\d% of the test digits right",
    "onnx_to_engine": "saved to .*small.engine",
    "sparse_maps": "8 of 8 answers as torch's",
    "stream": r"frame 3: \d% of all maps' pixels changed",
}
"""Name of a script → a line that it prints."""
SLOW = ("fine_tune", "sparse_maps")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in PRINTS]
)
def test_the_example_runs(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(f"^{PRINTS[name]}", capsys.readouterr().out, re.M)


def test_every_example_is_run_and_listed() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == set(PRINTS)
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \|", (EXAMPLES / "README.md").read_text("utf-8"), re.M)
    assert set(listed) == scripts
