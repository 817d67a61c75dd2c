"""Training aids: off they change nothing; on they do what they say, hold masks, and survive a kill bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseflow.errors import RecipeError, SparseflowError
from sparseflow.train import Session, Trainer, TrainSettings, Workspace, evaluate, parse_recipe, run_recipe
from sparseflow.train.aids import Average, Objective, distillation, recalibrate_batch_norm

ALL = {"ema": 0.9, "recalibrate": 2, "clip": 1.0}
BASE = {"epochs": 3, "learning_rate": 0.05}


def tiny() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


def loaders() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(4, (64,), generator=generator)
    x = torch.randn(64, 1, 8, 8, generator=generator) * 0.5
    for i in range(64):
        x[i, 0, 2 * int(y[i])] += 1.5
    data = torch.utils.data.TensorDataset(x, y)
    return torch.utils.data.DataLoader(data, 16, shuffle=True), torch.utils.data.DataLoader(data, 32)


def run(out: Path, progress: Any = None, **stage: Any) -> Any:
    recipe = parse_recipe(
        {
            "name": "tiny",
            "seed": 4,
            "threads": 1,
            "rules": [{"layers": "3", "sparsify": "unstructured@0.75"}],
            "stages": [
                {"kind": "dense", **BASE},
                {"kind": "admm", "rho": 1e-2, **BASE, **stage},
                {"kind": "retrain", **BASE, **stage},
            ],
        }
    )
    train, test = loaders()
    return run_recipe(recipe, out, workspace=Workspace(tiny(), train, test), progress=progress)


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(("stage", "epoch", "step"), [("admm", 1, 2), ("retrain", 2, 0), ("retrain", 3, 0)])
def test_a_stopped_run_with_all_aids_goes_on_bit_for_bit(
    tmp_path: Path, stage: str, epoch: int, step: int
) -> None:
    def stop(event: Any) -> None:
        if (event.stage, event.epoch, event.step) == (stage, epoch, step):
            raise Stop

    aids = ALL | {"distill": 0.5, "mixup": 0.3}
    whole = run(tmp_path / "whole", **aids)
    with pytest.raises(Stop):
        run(tmp_path / "cut", stop, **aids)
    torch.manual_seed(99)
    run(tmp_path / "cut", **aids)
    a, b = (torch.load(tmp_path / n / "model.pt", weights_only=True) for n in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    zeros = a["3.weight"] == 0
    assert int(zeros.sum()) == 0.75 * zeros.numel()  # averaged weights hold the mask
    assert whole.pruned_accuracy > 0.9
    assert whole.pruned_accuracy == whole.history["3-retrain"][-1]["accuracy"]


def test_the_average_is_an_exponential_one_and_is_what_remains() -> None:
    model = nn.Linear(2, 1)
    average = Average(model, 0.5)
    values = []
    for value in (1.0, 3.0, 5.0):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        values.append(float(average.module.weight[0, 0]))
    assert values == [1.0, 2.0, 3.5]
    average.copy_to(model)
    assert float(model.weight[0, 0]) == 3.5
    train, test = loaders()
    net = tiny()
    history = Trainer(net, train, test, TrainSettings(**BASE, ema=0.8)).fit()
    assert evaluate(net, test) == history[-1]["accuracy"]


def test_distillation_is_the_divergence_and_needs_a_teacher() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4), torch.randn(5, 4)
    p, q = F.softmax(target / 3, 1), F.softmax(logits / 3, 1)
    wanted = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation(logits, target, 3.0), wanted)
    assert float(distillation(target, target, 3.0)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(SparseflowError, match="no teacher"):
        Objective(TrainSettings(**BASE, distill=0.5))
    train, test = loaders()
    teacher = tiny()
    longer = BASE | {"epochs": 15}
    Trainer(teacher, train, test, TrainSettings(**longer)).fit()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = tiny()
    session = Session(teacher=teacher)
    Trainer(student, train, test, TrainSettings(**longer, distill=1.0), session=session).fit()
    assert evaluate(student, test) > 0.9  # without having seen a label
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_recalibration_gives_the_statistics_of_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1)).eval()
    x = torch.randn(64, 1, 4, 4) * 3 + 2
    recalibrate_batch_norm(model, [(part, None) for part in x.split(16)], 4)
    torch.testing.assert_close(model[0].running_mean[0], x.mean(), atol=1e-5, rtol=0)
    assert not model.training
    recalibrate_batch_norm(nn.Linear(1, 1), [(x, None)], 1)  # nothing to do


class Counted(list[Any]):
    """A loader that counts the batches it gives."""

    given = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.given += 1
            yield batch


@pytest.mark.parametrize(
    "kind", [{"kind": "admm", **BASE}, {"kind": "dense", **BASE}, {"kind": "thresholds", "budget": 0.5}]
)
def test_each_stage_recalibrates_once_at_its_end(tmp_path: Path, kind: dict[str, Any]) -> None:
    rules = [{"layers": "3", "sparsify": "unstructured@0.75"}]
    data, given = list(loaders()[1]), {}
    for count in (0, 2):
        train = Counted(data)
        stages = [{"kind": "dense", **BASE}, kind | {"recalibrate": count}]
        recipe = parse_recipe({"name": "tiny", "rules": rules, "stages": stages})
        workspace = Workspace(tiny(), train, data)
        run_recipe(recipe, tmp_path / str(count), workspace=workspace)
        given[count] = train.given
    assert given[2] == given[0] + 2
    net = workspace.model
    assert net is not None
    before = {k: v.clone() for k, v in net.state_dict().items()}
    recalibrate_batch_norm(net, data, 2)
    assert int(before["4.num_batches_tracked"]) == 2
    torch.testing.assert_close(net.state_dict()["4.running_mean"], before["4.running_mean"])
    other = torch.load(tmp_path / "0" / "model.pt", weights_only=True)
    assert not torch.equal(other["4.running_mean"], before["4.running_mean"])


def test_clipping_bounds_the_step() -> None:
    train, test = loaders()
    moved = []
    for clip in (0.0, 1e-3):
        net = tiny()
        before = [p.detach().clone() for p in net.parameters()]
        settings = TrainSettings(epochs=1, learning_rate=0.01, momentum=0.0, weight_decay=0.0, clip=clip)
        Trainer(net, train, test, settings).fit()
        steps = zip(before, net.parameters(), strict=True)
        moved.append(sum(float((a - b).square().sum()) for a, b in steps) ** 0.5)
    assert moved[1] <= len(train) * 0.01 * 1e-3 * 1.01 < moved[0]


def test_fp16_scales_the_loss() -> None:
    train, test = loaders()
    net = tiny()
    trainer = Trainer(net, train, test, TrainSettings(epochs=5, learning_rate=0.05, precision="fp16"))
    history = trainer.fit()
    assert history[-1]["loss"] < history[0]["loss"]
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert trainer._state()["scaler"]["scale"] > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 1.0},
        {"distill": 1.5},
        {"temperature": 0.0},
        {"recalibrate": -1},
        {"clip": -1.0},
        {"precision": "int8"},
    ],
)
def test_bad_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(SparseflowError) as caught:
        TrainSettings(**(BASE | changes))
    assert "\n" not in str(caught.value)


def test_aids_are_keys_of_stages_and_change_fingerprints_only_where_set() -> None:
    def recipe(**keys: Any) -> Any:
        return parse_recipe({"name": "x", "stages": [{"kind": "dense", **BASE, **keys}]})

    plain = recipe().fingerprint(0)
    assert plain == recipe(ema=0.0, clip=0.0, recalibrate=0).fingerprint(0)
    for key, value in ALL.items():
        assert recipe(**{key: value}).fingerprint(0) != plain
        assert getattr(recipe(**{key: value}).stages[0].settings(), key) == value
    with pytest.raises(RecipeError, match="the dense network is the teacher"):
        recipe(distill=0.5)
