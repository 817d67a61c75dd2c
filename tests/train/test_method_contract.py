"""What every registered method keeps, over every structure of core."""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparseflow.core.structures import STRUCTURES, Unstructured, parse_structure
from sparseflow.errors import DataError, SparseflowError, StructureError
from sparseflow.train import Session, Trainer, TrainEvent, TrainSettings
from sparseflow.train.criteria.base import Reads, criteria_of
from sparseflow.train.methods import METHODS, InTraining, Need, OneShot
from sparseflow.train.rules import Rule
from tests.train.method_cases import (
    EPOCHS,
    STEPS,
    batch,
    density_for,
    layer_for,
    make,
    model,
    run,
    train_epoch,
)

IN_TRAINING = [name for name, method in METHODS.items() if issubclass(method, InTraining)]
CALIBRATED = [(name, {}) for name, method in METHODS.items() if method.needs is Need.CALIBRATION]
CALIBRATED += [("one_shot", {"criterion": c}) for c in criteria_of([Reads.INPUTS, Reads.GRADIENTS])]


def rules_for(name: str) -> list[Rule]:
    """Two layers, with a structure that the method admits: one that has a library to choose if it can."""
    text = "filter@0.5" if METHODS[name].refuses(Unstructured(), nn.Linear(4, 4)) else "unstructured"
    pattern = parse_structure("pattern:4+connectivity")
    body = pattern if METHODS[name].refuses(pattern, nn.Conv2d(4, 4, 3)) is None else parse_structure(text)
    return [Rule("body", body, 0.25), Rule("hidden", parse_structure(text), 0.25)]


@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize("name", list(METHODS))
def test_it_ends_in_the_structure_or_refuses_with_a_reason(name: str, structure: str) -> None:
    wanted, layer = layer_for(structure)
    net = model()
    rules = [Rule(layer, wanted, density_for(wanted))]
    reason = METHODS[name].refuses(wanted, net.get_submodule(layer))
    if reason is not None:
        with pytest.raises(StructureError, match=re.escape(reason)) as caught:
            make(name, net, rules)
        assert "\n" not in str(caught.value)
        assert len(reason.split()) > 5
        return
    masks = run(make(name, net, rules))
    assert list(masks) == [layer]
    keep = masks[layer].keep
    weight = net.get_submodule(layer).weight.detach().numpy()
    assert wanted.admits(keep)
    assert keep.sum() == wanted.mask(np.abs(weight), density_for(wanted)).keep.sum()
    assert not weight[~keep].any()
    assert np.isfinite(weight).all()
    assert np.count_nonzero(weight[keep]) > 0.9 * keep.sum() or name == "rigl"  # which grows from zero


@pytest.mark.parametrize("name", list(METHODS))
def test_wildcards_take_convolutions_and_linear_layers_and_leave_depthwise_ones(name: str) -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    masks = run(make(name, net, [Rule("*", parse_structure("block:4x1"), 0.25)]))
    assert set(masks) == {"body", "hidden"}
    for layer in masks:
        assert np.count_nonzero(net.get_submodule(layer).weight.detach().numpy()) <= masks[layer].keep.sum()
    assert np.count_nonzero(net.deep.weight.detach().numpy()) == net.deep.weight.numel()
    if issubclass(METHODS[name], OneShot):
        assert all(
            torch.equal(net.state_dict()[key], value)
            for key, value in before.items()
            if not key.startswith(("body", "hidden"))
        )


@pytest.mark.parametrize("name", list(METHODS))
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    results = []
    for _ in range(2):
        net = model()
        masks = run(make(name, net, rules_for(name)))
        results.append((net.state_dict(), masks))
    (one, masks_one), (two, masks_two) = results
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert masks_one == masks_two


@pytest.mark.parametrize("name", IN_TRAINING)
def test_state_goes_through_a_file_and_training_goes_on_bit_for_bit(name: str) -> None:
    def start() -> tuple[nn.Module, InTraining, torch.optim.Optimizer]:
        net = model()
        method = make(name, net, rules_for(name))
        assert isinstance(method, InTraining)
        return net, method, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

    net, method, optimizer = start()
    stream = io.BytesIO()
    for epoch in range(EPOCHS):
        if epoch == 1:
            torch.save((net.state_dict(), optimizer.state_dict(), method.state_dict()), stream)
        train_epoch(method, optimizer, epoch)
    stream.seek(0)
    weights, moments, state = torch.load(stream, weights_only=True)
    other, resumed, second = start()
    with torch.no_grad():
        other.body.weight.normal_()
    resumed.begin_epoch(0, STEPS)
    other.load_state_dict(weights)
    second.load_state_dict(moments)
    resumed.load_state_dict(state)
    for epoch in range(1, EPOCHS):
        train_epoch(resumed, second, epoch)
    masks, again = method.finish(), resumed.finish()
    assert masks == again
    assert all(torch.equal(net.state_dict()[k], v) for k, v in other.state_dict().items())


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("name", IN_TRAINING)
def test_the_trainer_resumes_it_bit_for_bit(name: str, tmp_path: Path) -> None:
    data = [batch(i) for i in range(STEPS)]

    def train(path: Path, progress: Any = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        net = model()
        method = make(name, net, rules_for(name))
        assert isinstance(method, InTraining)
        settings = TrainSettings(epochs=EPOCHS, learning_rate=0.05)
        session = Session("sparse", path, "mine", progress)
        Trainer(net, data, data, settings, method, session).fit()  # type: ignore[arg-type]
        method.finish()
        return net.state_dict()

    def stop(event: TrainEvent) -> None:
        if (event.epoch, event.step) == (1, 2):
            raise Stop

    whole = train(tmp_path / "whole.ckpt")
    with pytest.raises(Stop):
        train(tmp_path / "cut.ckpt", stop)
    resumed = train(tmp_path / "cut.ckpt")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", IN_TRAINING)
def test_it_moves_something(name: str) -> None:
    net = model()
    method = make(name, net, rules_for(name))
    assert isinstance(method, InTraining)
    before = copy.deepcopy(method.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(EPOCHS):
        assert isinstance(train_epoch(method, optimizer, epoch), str)
    if before:
        assert moved(before, method.state_dict())
    else:
        net.zero_grad()
        penalty = method.penalty()
        assert penalty is not None
        penalty.backward()
        assert net.body.weight.grad.abs().max() > 0


def moved(a: Any, b: Any) -> bool:
    """Whether any tensor or key in the two states differs."""
    if isinstance(a, dict):
        return a.keys() != b.keys() or any(moved(a[key], b[key]) for key in a)
    return not torch.equal(a, b) if isinstance(a, torch.Tensor) else a != b


@pytest.mark.parametrize("name", IN_TRAINING)
def test_state_of_other_layers_is_refused(name: str) -> None:
    state = make(name, model(), rules_for(name)[:1]).state_dict()  # type: ignore[attr-defined]
    other = make(name, model(), rules_for(name)[1:])
    if state:
        with pytest.raises(ValueError, match="other layers"):
            other.load_state_dict(state)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "changes"), CALIBRATED)
def test_calibration_data_decide_and_are_asked_for(name: str, changes: dict[str, Any]) -> None:
    results = []
    for scale in (1.0, 5.0):
        net = model()
        method = make(name, net, [Rule("body", Unstructured(), 0.25)], **changes)
        assert isinstance(method, OneShot)
        with pytest.raises(SparseflowError, match=r"call calibrate\(batches\) first"):
            method.finish()
        with pytest.raises(DataError, match="found no sample"):
            method.calibrate([])
        x, y = batch()
        x = x.clone()
        x[:, :, :4] *= scale  # half of each image counts more
        method.calibrate([(x, y)])
        results.append(method.finish()["body"])
    assert results[0] != results[1]
    assert results[0].density == results[1].density


@pytest.mark.parametrize("name", list(METHODS))
def test_settings_are_strict_and_say_what_is_known(name: str) -> None:
    settings = METHODS[name].Settings
    assert METHODS[name].when
    assert (METHODS[name].__doc__ or "").count("References\n") == 1
    with pytest.raises(SparseflowError, match=r"colour.*settings: ") as caught:
        settings(epochs=2, colour="red") if "epochs" in settings.model_fields else settings(colour="red")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(METHODS))
def test_grouped_convolutions_are_pruned_or_refused(name: str) -> None:
    net, rules = model(), [Rule("deep", Unstructured(), 0.5)]
    reason = METHODS[name].refuses(Unstructured(), net.deep)
    if reason is not None:
        with pytest.raises(StructureError, match=re.escape(reason)):
            make(name, net, rules)
        return
    masks = run(make(name, net, rules))
    assert masks["deep"].keep.sum() == net.deep.weight.numel() // 2
