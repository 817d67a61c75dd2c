"""A small network in every form that the command line takes."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sparseflow.cli.main import app


@dataclass(frozen=True)
class Outcome:
    """What a command printed and returned."""

    code: int
    out: str
    err: str


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Files:
    """Paths of one network: exported, as ONNX with a free batch, compiled."""

    pt2: Path
    onnx: Path
    engine: Path


@pytest.fixture(scope="session")
def invoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    os.environ["SPARSEFLOW_CACHE"] = str(tmp_path_factory.mktemp("cache"))

    def call(*arguments: object) -> Outcome:
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Outcome]) -> Files:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    module, x = Small().eval(), torch.randn(1, 3, 8, 8)
    torch.export.save(torch.export.export(module, (x,)), folder / "small.pt2")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module, (x,), buffer, dynamo=False, input_names=["image"], dynamic_axes={"image": {0: "batch"}}
        )
    (folder / "small.onnx").write_bytes(buffer.getvalue())
    engine = folder / "small.engine"
    done = invoke(
        "compile", folder / "small.pt2", "--sparsify", "block:4x1@0.75", "--no-measure", "-o", engine
    )
    assert done.code == 0, done.err
    return Files(folder / "small.pt2", folder / "small.onnx", engine)
