"""Sparsity training inside Lightning and the Hugging Face Trainer, in two processes, and into logs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseflow.core.structures import Unstructured
from sparseflow.errors import SparseflowError
from sparseflow.train import (
    ADMM,
    AdmmSettings,
    ByScores,
    MaskedWeights,
    Rule,
    Workspace,
    parse_recipe,
    run_recipe,
)
from sparseflow.train.checkpoint import load_checkpoint
from sparseflow.train.integrations.logs import COLUMNS, CsvLog, TensorBoardLog
from sparseflow.train.integrations.phases import Phases
from sparseflow.train.progress import TrainEvent

SCRIPT = Path(__file__)
EVENTS = (
    TrainEvent("dense", 0, 2, 1, 2, 0.1, 1.5),
    TrainEvent("dense", 1, 2, 0, 2, 0.1, 1.25, 0.5, "word"),
    TrainEvent("dense", 2, 2, 0, 2, 0.05, 1.0),
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(8, 32)
        self.body = nn.Linear(32, 32)
        self.last = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.body(torch.relu(self.first(x)))))


def dataset() -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(4, (64,), generator=generator)
    x = torch.randn(64, 8, generator=generator) * 0.3
    x[torch.arange(64), y] += 1.5
    return torch.utils.data.TensorDataset(x, y)


def make(model: nn.Module) -> ADMM:
    name = "net.body" if hasattr(model, "net") else "body"
    return ADMM(model, [Rule(name, Unstructured(), 0.25)], AdmmSettings(epochs=2, rho=1e-2, rho_steps=2))


def plain_loop(epochs: int) -> nn.Module:
    """The same training written out, to compare the callbacks with."""
    net = Net()
    hook: Any = make(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        hook.begin_epoch(epoch, 4)
        for x, y in torch.utils.data.DataLoader(dataset(), 16):
            loss = F.cross_entropy(net(x), y)
            penalty = hook.penalty()
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            hook.before_step()
            optimizer.step()
            hook.after_step()
        hook.after_epoch(epoch + 1)
        if epoch + 1 == 2:
            hook = MaskedWeights(net, hook.finish())
    return net


def assert_sparse_and_close(net: nn.Module, wanted: nn.Module) -> None:
    assert int((net.body.weight == 0).sum()) == 0.75 * 32 * 32
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def lightning_parts(callback: Any, folder: Path) -> tuple[Any, Any]:
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = lightning.Trainer(
        max_epochs=4, callbacks=[keep, callback], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    return trainer, Module()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_equals_the_plain_loop_and_resumes(tmp_path: Path) -> None:
    from sparseflow.train.integrations.lightning import SparsityCallback

    batches = torch.utils.data.DataLoader(dataset(), 16)
    callback = SparsityCallback(make)
    with pytest.raises(SparseflowError, match="not begun"):
        _ = callback.masks
    trainer, module = lightning_parts(callback, tmp_path / "whole")
    trainer.fit(module, batches)
    assert_sparse_and_close(module.net, plain_loop(4))
    assert callback.masks["net.body"].sparsity == 0.75
    for last in (0, 2):  # inside of the method, and after it
        trainer, module = lightning_parts(SparsityCallback(make), tmp_path / f"from-{last}")
        path = tmp_path / "whole" / f"epoch={last}.ckpt"
        trainer.fit(module, batches, ckpt_path=path, weights_only=False)
        assert_sparse_and_close(module.net, plain_loop(4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer_equals_the_plain_loop_and_resumes(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from sparseflow.train.integrations.transformers import FILE, SparsityCallback

    class Wrapped(Net):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:  # type: ignore[override]
            logits = super().forward(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(dataset())

    def trainer(epochs: int) -> tuple[Any, Any]:
        net = Wrapped()
        arguments = TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=epochs, per_device_train_batch_size=16, report_to=[],
            save_strategy="epoch", logging_strategy="no", disable_tqdm=True, max_grad_norm=0.0, use_cpu=True,
            lr_scheduler_type="constant",
        )  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        callback = SparsityCallback(make)
        data = [{"x": x, "labels": y} for x, y in dataset()]
        made = InOrder(net, arguments, train_dataset=data, optimizers=(optimizer, None), callbacks=[callback])
        return made, net

    run, net = trainer(4)
    run.train()
    assert_sparse_and_close(net, plain_loop(4))
    for cut in (1, 3):
        checkpoint = tmp_path / f"checkpoint-{4 * cut}"
        assert (checkpoint / FILE).is_file()
        run, net = trainer(4)
        run.train(resume_from_checkpoint=str(checkpoint))
        assert_sparse_and_close(net, plain_loop(4))


def test_phases_refuse_a_state_of_other_layers() -> None:
    phases = Phases(Net(), make)
    state = phases.state_dict()
    other = Phases(Net(), lambda m: ADMM(m, [Rule("first", Unstructured(), 0.5)], AdmmSettings(epochs=2)))
    with pytest.raises(SparseflowError, match="does not fit the method") as caught:
        other.load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_phases_of_a_method_that_does_not_train_mask_at_once() -> None:
    net = Net()
    phases = Phases(net, lambda model: ByScores(model, [Rule("body", Unstructured(), 0.5)]))
    assert int((net.body.weight == 0).sum()) == 512
    phases.begin_epoch(0, 4)
    phases.before_step()
    net.body.weight.data.fill_(1.0)
    phases.after_step()
    assert "0.5" in phases.after_epoch(1)
    assert int((net.body.weight == 0).sum()) == 512
    assert phases.finish()["body"].sparsity == 0.5


def test_logs(tmp_path: Path) -> None:
    for _ in range(2):  # a resumed training appends
        log = CsvLog(tmp_path / "log.csv")
        for event in EVENTS:
            log(event)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[1:3] == ["dense,1,0.1,1.25,0.5,word", "dense,2,0.05,1.0,,"]
    assert len(lines) == 5


@pytest.mark.slow
def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardLog(tmp_path) as log:
        for event in EVENTS:
            log(event)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("dense/loss")] == [(1, 1.25), (2, 1.0)]
    assert [e.step for e in found.Scalars("dense/accuracy")] == [1]


def shared_run(out: Path) -> None:
    """What each process of the data-parallel test runs."""
    recipe = parse_recipe(
        {
            "name": "two processes",
            "seed": 4,
            "threads": 1,
            "data": {"name": "mnist5k", "batch_size": 250},
            "model": {"name": "mnist_cnn", "arguments": {"widths": [4, 8]}},
            "rules": [{"layers": "features.*", "sparsify": "block:4x1@0.5"}],
            "stages": [
                {"kind": "admm", "epochs": 2, "learning_rate": 0.05, "rho": 1e-2, "ema": 0.9},
                {"kind": "retrain", "epochs": 1, "learning_rate": 0.05, "mixup": 0.2, "recalibrate": 2},
            ],
        }
    )
    kept: list[Any] = []
    finish = ADMM.finish

    def watched(self: ADMM) -> Any:
        kept.append({"u": self.u, "masks": {n: m.keep for n, m in finish(self).items()}})
        return finish(self)

    ADMM.finish = watched  # type: ignore[method-assign]
    result = run_recipe(recipe, out)
    rank = os.environ.get("RANK", "0")
    masks = {n: torch.from_numpy(k.copy()) for n, k in kept[0]["masks"].items()} if kept else {}
    duals = {n: u.clone() for n, u in kept[0]["u"].items()} if kept else {}
    torch.save({"masks": masks, "u": duals, "accuracy": result.pruned_accuracy}, out / f"rank-{rank}.pt")


@pytest.mark.slow
def test_two_processes_have_equal_masks_and_duals(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(SCRIPT), str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"rank-{r}.pt", weights_only=True) for r in (0, 1))
    assert first["accuracy"] == second["accuracy"] > 0.3
    for part in ("masks", "u"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][n], second[part][n]) for n in first[part])
    assert any(bool(u.any()) for u in first["u"].values())
    stored = load_checkpoint(tmp_path / "stage-2-retrain.ckpt")["masks"]
    assert all(torch.equal(stored[n][1], first["masks"][n]) for n in stored)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, (_, keep) in stored.items():
        assert np.array_equal((weights[f"{name}.weight"] != 0).numpy() | ~keep.numpy(), np.ones(keep.shape))
    single = run_recipe(
        parse_recipe({"name": "alone", "stages": [{"kind": "dense", "epochs": 1, "learning_rate": 0.1}]}),
        tmp_path / "alone",
        workspace=Workspace(Net(), *(torch.utils.data.DataLoader(dataset(), 16) for _ in range(2))),
    )
    assert 0 <= single.pruned_accuracy <= 1  # no group is left behind in this process


if __name__ == "__main__":  # one process of the data-parallel test
    shared_run(Path(sys.argv[1]))
