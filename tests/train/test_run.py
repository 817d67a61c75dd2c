"""The trainer and the runner: what they write, and that a killed run goes on bit for bit."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from sparseflow.core.structures import PatternConnectivity, parse_structure
from sparseflow.errors import CheckpointError, RecipeError, RegistryError, SparseflowError, StructureError
from sparseflow.train import (
    LogProgress,
    Recipe,
    RichProgress,
    Trainer,
    TrainEvent,
    TrainSettings,
    Workspace,
    evaluate,
    parse_recipe,
    run_recipe,
)
from sparseflow.train.checkpoint import load_checkpoint, save_checkpoint
from sparseflow.train.models import CifarNet, MnistCnn

SCRIPT = Path(__file__)


def tiny_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 4),
    )


def loaders(delay: float = 0.0) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(4, (64,), generator=generator)
    x = torch.randn(64, 1, 8, 8, generator=generator) * 0.5
    for i in range(64):
        x[i, 0, 2 * int(y[i])] += 1.5

    class Slow(torch.utils.data.TensorDataset):
        def __getitem__(self, index: int) -> Any:
            time.sleep(delay)
            return super().__getitem__(index)

    data = Slow(x, y)
    # shuffled by torch's global generator: resuming has to restore that
    return torch.utils.data.DataLoader(data, 16, shuffle=True), torch.utils.data.DataLoader(data, 32)


def recipe(**changes: Any) -> Recipe:
    common = {"learning_rate": 0.05, "label_smoothing": 0.1}
    content = {
        "name": "tiny",
        "seed": 4,
        "threads": 1,  # the order of sums depends on it, and other tests' processes may have another
        "rules": [{"layers": "3", "sparsify": "pattern:4+connectivity@0.8"}],
        "stages": [
            {"kind": "dense", "epochs": 3, "warmup": 1.0, "mixup": 0.3, **common},
            {"kind": "admm", "epochs": 3, "rho": 1e-2, **common},
            {"kind": "retrain", "epochs": 3, **common},
        ],
    }
    return parse_recipe(content | changes)


def run(out: Path, progress: Any = None, **changes: Any) -> Any:
    train, test = loaders()
    return run_recipe(
        recipe(**changes), out, workspace=Workspace(tiny_model(), train, test), progress=progress
    )


class Stop(Exception):
    """Stands for a kill."""


def stop_at(stage: str, epoch: int, step: int) -> Any:
    def progress(event: TrainEvent) -> None:
        if (event.stage, event.epoch, event.step) == (stage, epoch, step):
            raise Stop

    return progress


def without_seconds(history: Any) -> Any:
    return {
        k: [{n: v for n, v in e.items() if n != "seconds"} for e in epochs] for k, epochs in history.items()
    }


def assert_equal_runs(a: Path, b: Path) -> None:
    first, second = (
        torch.load(a / "model.pt", weights_only=True),
        torch.load(b / "model.pt", weights_only=True),
    )
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    one, two = (json.loads((f / "results.json").read_text()) for f in (a, b))
    assert without_seconds(one["history"]) == without_seconds(two["history"])


def test_a_recipe_ends_in_the_structure(tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    result = run(tmp_path, events.append)
    weights = torch.load(result.model_path, weights_only=True)
    keep = weights["3.weight"].numpy() != 0
    assert parse_structure("pattern:4+connectivity").admits(keep)
    kept_kernels = round(0.2 * 9 / 4 * 8 * 16)
    assert keep.sum() == 4 * kept_kernels
    assert result.dense_accuracy > 0.9
    assert result.pruned_accuracy > 0.8
    layers = {layer.name: layer for layer in result.layers}
    assert layers["3"].kept == keep.sum()
    assert layers["0"].structure == "dense"
    total = 8 * 9 + 8 * 16 * 9
    assert result.conv_compression == pytest.approx(total / (8 * 9 + keep.sum()))
    assert [e.stage for e in events if e.accuracy is not None] == ["dense"] * 3 + ["admm"] * 3 + [
        "retrain"
    ] * 3
    assert "residual" in events[-1 - 3 * 5].detail
    stored = json.loads(Path(result.results_path).read_text())
    assert stored["pruned_accuracy"] == result.pruned_accuracy
    assert not list(tmp_path.glob("*.part*")) + list(tmp_path.glob("running-*"))
    program = torch.export.load(result.exported_path)
    x = torch.randn(1, 1, 8, 8)
    model = tiny_model().eval()
    model.load_state_dict(weights)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize(
    ("stage", "epoch", "step"),
    [("dense", 2, 3), ("admm", 0, 1), ("admm", 2, 2), ("retrain", 1, 0), ("retrain", 3, 0)],
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, stage: str, epoch: int, step: int) -> None:
    run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", stop_at(stage, epoch, step))
    torch.manual_seed(12345)  # a new process has other generators
    run(tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_is_given_back(tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(tmp_path, threads=threads)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    events: list[TrainEvent] = []
    second = run(tmp_path, events.append)
    assert not events
    assert second == first


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "cut")]
    for marker in ("running-1-dense.ckpt", "running-2-admm.ckpt", "running-3-retrain.ckpt"):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while not (tmp_path / "cut" / marker).exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, f"ended before {marker} was seen"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "cut" / "model.pt").exists()
    subprocess.run(command, check=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "model.pt").read_bytes()
    for changes in ({"seed": 5}, {"rules": [{"layers": "3", "sparsify": "unstructured@0.8"}]}):
        with pytest.raises(CheckpointError, match="another recipe") as caught:
            run(tmp_path, **changes)
        assert "\n" not in str(caught.value)
    with pytest.raises(Stop):
        run(tmp_path / "half", stop_at("dense", 2, 1))
    with pytest.raises(CheckpointError, match="another run"):
        run(tmp_path / "half", seed=5)
    assert (tmp_path / "model.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["stage-1-dense.ckpt", "running-2-admm.ckpt"])
def test_truncated_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Stop):
        run(tmp_path, stop_at("admm", 2, 1))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=name) as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)


def test_checkpoints_admit_no_code_and_no_strangers(tmp_path: Path) -> None:
    for content in (b"", b"text", b"PK\x03\x04"):
        (tmp_path / "x.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
            load_checkpoint(tmp_path / "x.ckpt")
    torch.save({"model": {}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="not a sparseflow checkpoint"):
        load_checkpoint(tmp_path / "x.ckpt")
    torch.save({"a": subprocess.Popen}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="no such"):
        load_checkpoint(tmp_path / "y.ckpt")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, {"value": 1})
    with pytest.raises(Exception, match=r"pickle|Can't"):
        save_checkpoint(path, {"value": lambda: 2})
    assert load_checkpoint(path)["value"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_equal_stages_are_taken_over(tmp_path: Path) -> None:
    run(tmp_path / "a")
    train, test = loaders()
    events: list[TrainEvent] = []
    other = recipe(rules=[{"layers": "3", "sparsify": "unstructured@0.8"}])
    workspace = Workspace(tiny_model(), train, test)
    result = run_recipe(
        other, tmp_path / "b", workspace=workspace, reuse=[tmp_path / "a"], progress=events.append
    )
    assert {e.stage for e in events} == {"admm", "retrain"}
    dense = [torch.load(tmp_path / d / "dense.pt", weights_only=True)["3.weight"] for d in "ab"]
    assert torch.equal(*dense)
    assert {layer.name: layer.sparsity for layer in result.layers}["3"] == pytest.approx(0.8, abs=1e-3)


def test_magnitude_without_retraining_and_dense_alone(tmp_path: Path) -> None:
    stages = [{"kind": "dense", "epochs": 3, "learning_rate": 0.05}, {"kind": "magnitude"}]
    result = run(tmp_path / "m", stages=stages, rules=[{"layers": "3", "sparsify": "nm:2:4"}])
    keep = torch.load(result.model_path, weights_only=True)["3.weight"].numpy() != 0
    assert np.array_equal(keep.reshape(16, 2, 4, 9).sum(2), np.full((16, 2, 9), 2))
    dense = run(tmp_path / "d", stages=stages[:1], rules=[])
    assert dense.compression == 1
    assert dense.dense_accuracy == dense.pruned_accuracy == result.dense_accuracy


def test_dense_training_may_have_several_cycles(tmp_path: Path) -> None:
    cycle = {"kind": "dense", "epochs": 2, "learning_rate": 0.05}
    events: list[TrainEvent] = []
    result = run(tmp_path, events.append, stages=[cycle, cycle, {"kind": "magnitude"}])
    assert list(dict.fromkeys(e.stage for e in events)) == ["dense", "dense 2"]
    assert list(result.history) == ["1-dense", "2-dense", "3-magnitude"]
    assert result.dense_accuracy == result.history["2-dense"][-1]["accuracy"]


def test_recipe_and_workspace_have_to_fit(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="data: missing"):
        run_recipe(recipe(), tmp_path, workspace=Workspace(tiny_model()))
    with pytest.raises(RecipeError, match="model: missing"):
        run_recipe(recipe(data={"name": "mnist5k"}), tmp_path)
    with pytest.raises(RegistryError, match="unknown model"):
        run_recipe(recipe(data={"name": "mnist5k"}, model={"name": "vit"}), tmp_path)
    events: list[TrainEvent] = []
    for changes, error, text in (
        ({"rules": [{"layers": "9", "sparsify": "pattern:4"}]}, StructureError, "layer '9'"),
        ({"rules": [{"layers": "neck.*", "sparsify": "filter@0.5"}]}, StructureError, "neck"),
        (
            {"stages": [{"kind": "dense", "epochs": 1, "learning_rate": 0.1, "freeze": ["neck"]}]},
            RecipeError,
            r"stages\[0\]\.freeze: .*neck",
        ),
    ):
        with pytest.raises(error, match=text):
            run(tmp_path, events.append, **changes)
    assert not events  # before anything is trained
    assert not list(tmp_path.iterdir())


def test_weights_to_start_from(tmp_path: Path) -> None:
    torch.manual_seed(8)
    torch.save(MnistCnn().state_dict(), tmp_path / "w.pt")
    changes: dict[str, Any] = {
        "data": {"name": "mnist5k"},
        "model": {"name": "mnist_cnn", "weights": str(tmp_path / "w.pt")},
        "rules": [{"layers": "features.*", "sparsify": "filter@0.5"}],
        "stages": [{"kind": "magnitude"}],
    }
    result = run_recipe(recipe(**changes), tmp_path / "out")
    dense, start = (torch.load(p, weights_only=True) for p in (result.dense_path, tmp_path / "w.pt"))
    assert all(torch.equal(dense[k], start[k]) for k in start)
    (tmp_path / "w.pt").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"w\.pt: no weights"):
        run_recipe(recipe(**changes), tmp_path / "other")


def test_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    settings = TrainSettings(epochs=10, learning_rate=0.4, warmup=2, final=0.1)
    rates = [settings.rate(step, 10) for step in range(100)]
    assert rates[:20] == pytest.approx([0.4 * (i + 1) / 20 for i in range(20)])
    assert rates[20] == pytest.approx(0.4)
    assert rates[60] == pytest.approx((0.4 + 0.04) / 2)
    assert rates[99] == pytest.approx(0.04, abs=1e-3)
    assert all(a >= b for a, b in pairwise(rates[20:]))


def test_a_diverging_loss_is_reported(tmp_path: Path) -> None:
    train, test = loaders()
    settings = TrainSettings(epochs=3, learning_rate=1e30)
    with pytest.raises(SparseflowError, match=r"loss is not finite.*lower the learning rate"):
        Trainer(tiny_model(), train, test, settings).fit()


@pytest.mark.parametrize(
    "changes", [{"precision": "int8"}, {"epochs": -1}, {"learning_rate": 0.0}, {"warmup": 9.0}]
)
def test_bad_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(SparseflowError):
        TrainSettings(**({"epochs": 3} | changes))


def test_bf16_and_channels_last_train_too() -> None:
    train, test = loaders()
    model = tiny_model()
    settings = TrainSettings(epochs=5, learning_rate=0.05, precision="bf16", channels_last=True)
    history = Trainer(model, train, test, settings).fit()
    assert history[-1]["loss"] < history[0]["loss"]
    assert evaluate(model, test) == history[-1]["accuracy"] > 0.9
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def test_progress_is_shown() -> None:
    stream = io.StringIO()
    events = [
        TrainEvent("dense", 0, 1, 1, 2, 0.1, 1.5),
        TrainEvent("dense", 1, 1, 0, 2, 0.1, 1.25, 0.5, "word"),
    ]
    log = LogProgress(stream)
    for event in events:
        log(event)
    assert stream.getvalue().count("\n") == 1
    assert "dense 1/1 loss 1.2500 accuracy 0.5000 word" in stream.getvalue()
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RichProgress(console) as bars:
        for event in events:
            bars(event)
    assert "50.00% word" in console.file.getvalue()  # type: ignore[attr-defined]


def test_whitening_decorrelates_patches() -> None:
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 40, 40), 3, 1)
    images = smooth[:, :, :32, :32] + 0.5 * smooth[:, :1, :32, :32]
    net = CifarNet()
    net.whiten(images)
    out = net.stem(images)[:, :12].permute(0, 2, 3, 1).reshape(-1, 12)
    covariance = out.T @ out / len(out)
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.1, rtol=0)
    assert torch.equal(net.stem.weight[12:], -net.stem.weight[:12])
    assert not net.stem.weight.requires_grad
    assert net(images[:2]).shape == (2, 10)
    assert PatternConnectivity().check(tuple(net.features[0][0].weight.shape)) is None


if __name__ == "__main__":  # the process that the kill test kills
    slow_train, plain_test = loaders(delay=0.005)
    run_recipe(recipe(), sys.argv[1], workspace=Workspace(tiny_model(), slow_train, plain_test))
