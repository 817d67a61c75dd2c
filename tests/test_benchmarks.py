"""The benchmark scripts: what they write, and that a failed case is reported and leaves the others."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def whole_networks() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("whole_networks", SCRIPTS / "whole_networks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["whole_networks"] = module
    spec.loader.exec_module(module)
    return module


def record(ours_ms: float, peer_ms: float, sparsify: str | None) -> dict[str, Any]:
    rows = (("sparseflow", ours_ms, 2e-6), ("onnxruntime", peer_ms, 0.0))
    return {
        "model": "zoo:resnet50",
        "sparsify": sparsify,
        "threads": 1,
        "machine": "CPU",
        "results": [
            {"engine": name, "latency_ms": {"median": ms}, "max_relative_error": error}
            for name, ms, error in rows
        ],
        "speedup_vs_best_peer": peer_ms / ours_ms,
        "versions": {"sparseflow": "1", "onnxruntime": "2"},
    }


def test_table(whole_networks: ModuleType) -> None:
    lines = whole_networks.markdown([record(40, 44, None), record(10, 44, "block:4x1@0.9")]).splitlines()
    assert lines[0].startswith("| model | weights | threads | sparseflow | onnxruntime | against the best")
    assert lines[2] == "| resnet50 | dense | 1 | 40.00 ms | 44.00 ms | **1.10×** | 2e-06 |"
    assert lines[3] == "| resnet50 | block:4x1@0.9 | 1 | 10.00 ms | 44.00 ms | **4.40×** | 2e-06 |"
    assert "seeded random" in lines[-1]
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_a_failed_case_is_counted_and_told(
    whole_networks: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"resnet50 none 1": record(40, 44, None)}
    (tmp_path / "whole_networks.json").write_text(json.dumps(kept))
    arguments = ["--models", "resnet50,alexnet", "--sparsify", "none", "--out", str(tmp_path), "--resume"]
    assert whole_networks.main(arguments) == 1
    printed = capsys.readouterr()
    assert "unknown zoo model 'alexnet'" in printed.err
    assert "| resnet50 | dense |" in printed.out
    assert json.loads((tmp_path / "whole_networks.json").read_text()) == kept
