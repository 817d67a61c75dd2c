"""Recipes that end on levels: what they leave behind, that a stopped run goes on bit for bit, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparseflow.core.map_ranges import MapRanges
from sparseflow.core.structures import parse_structure
from sparseflow.data import hold_out, load_data
from sparseflow.errors import DataError, RecipeError, StructureError
from sparseflow.report.kinds.prune import build
from sparseflow.train import Workspace, evaluate, parse_recipe, run_recipe
from sparseflow.train.quantise import rounded_maps
from tests.train.test_aids import Stop, loaders, tiny

BASE = {"epochs": 2, "learning_rate": 0.05}
STAGES: list[dict[str, Any]] = [{"kind": "dense", **BASE}, {"kind": "magnitude"}, {"kind": "retrain", **BASE}]
LEARN = {"kind": "quantise", "samples": 32, **BASE}
ROUND = {"kind": "post_training", "samples": 32}


def recipe(*last: dict[str, Any], **changes: Any) -> Any:
    rules = [{"layers": "3", "sparsify": "block:4x4@0.75"}]
    content = {"name": "tiny", "seed": 4, "threads": 1, "rules": rules, "stages": [*STAGES, *last]}
    return parse_recipe(content | changes)


def run(out: Path, *last: dict[str, Any], progress: Any = None, **changes: Any) -> Any:
    train, test = loaders()
    workspace = Workspace(tiny(), train, test)
    return run_recipe(recipe(*last, **changes), out, workspace=workspace, progress=progress)


def same_state(a: Path, b: Path) -> None:
    one, two = (torch.load(p / "model.pt", weights_only=True) for p in (a, b))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert (a / "quantisation.json").read_bytes() == (b / "quantisation.json").read_bytes()


@pytest.mark.parametrize(
    "last",
    [LEARN, LEARN | {"batch_norm": "before", "bits": 4, "maps": 6}, LEARN | {"ema": 0.9}, ROUND],
    ids=str,
)
def test_what_a_recipe_leaves_is_sparse_on_levels_and_whole(tmp_path: Path, last: dict[str, Any]) -> None:
    result = run(tmp_path, last)
    ranges = MapRanges.load(Path(result.quantisation_path))
    assert ranges == result.quantised
    assert [r.name for r in ranges.layers] == ["0.weight", "3.weight", "8.weight"]
    bits = last.get("bits", 8)
    assert [r.weight_bits for r in ranges.layers] == [8, bits, 8]
    assert [r.bits for r in ranges.layers] == [8, last.get("maps", 8), 8]
    assert ranges.layers[0].low < 0  # the data
    assert ranges.layers[1].low == 0.0  # behind a ReLU
    model = tiny().eval()
    model.load_state_dict(torch.load(result.model_path, weights_only=True))
    weight = model.get_submodule("3").weight.detach()
    assert int((weight != 0).sum()) <= 0.25 * weight.numel()
    blocks = weight.reshape(4, 4, 2, 4, 9).ne(0).any(3).any(1)
    assert int(blocks.sum()) <= 0.25 * blocks.numel()
    assert all(len(row.unique()) <= 2**bits - 1 for row in weight.flatten(1))
    with rounded_maps(model, ranges):
        assert evaluate(model, loaders()[1]) == result.pruned_accuracy > 0.8
    program = torch.export.load(result.exported_path)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(program.module()(x), model(x))
    assert any("Low precision" in section.title for section in build(result).sections)


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize("batch_norm", ["kept", "before", "during"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, batch_norm: str, epoch: int, step: int) -> None:
    last = LEARN | {"batch_norm": batch_norm, "ema": 0.5, "bits": 4, "levels": "two-powers"}
    first = run(tmp_path / "whole", last)

    def stop(event: Any) -> None:
        if (event.stage, event.epoch, event.step) == ("quantise", epoch, step):
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "cut", last, progress=stop)
    torch.manual_seed(77)
    second = run(tmp_path / "cut", last)
    same_state(tmp_path / "whole", tmp_path / "cut")
    assert first.pruned_accuracy == second.pruned_accuracy
    torch.manual_seed(78)
    third = run(tmp_path / "cut", last)  # all of it is read from files
    assert third.quantised == first.quantised
    assert third.pruned_accuracy == first.pruned_accuracy


def test_stages_of_levels_may_follow_each_other_and_the_last_one_counts(tmp_path: Path) -> None:
    result = run(tmp_path, ROUND, LEARN | {"bits": 4, "include": ["stem", "classifier"]})
    assert {r.weight_bits for r in result.quantised.layers} == {4}
    assert list(result.history)[-2:] == ["4-post_training", "5-quantise"]


def test_coupled_channels_stay_silent(tmp_path: Path) -> None:
    rules = [{"layers": "0", "sparsify": "filter@0.5", "coupled": True}]
    for batch_norm in ("kept", "before", "during"):
        result = run(tmp_path / batch_norm, LEARN | {"batch_norm": batch_norm}, rules=rules)
        x = torch.randn(1, 1, 8, 8)
        whole, small = (
            torch.export.load(tmp_path / batch_norm / f"{n}.pt2").module()(x) for n in ("model", "small")
        )
        torch.testing.assert_close(whole, small, rtol=1e-4, atol=1e-5)
        assert result.layers[0].sparsity == 0.5


def test_a_run_without_levels_has_no_record(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.quantised is None
    assert not (tmp_path / "quantisation.json").exists()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (LEARN | {"bits": 12}, r"stages\[3\]\.bits: found 12"),
        (LEARN | {"levels": "log"}, r"stages\[3\]\.levels: unknown levels 'log'; known: two-powers, uniform"),
        (LEARN | {"bits": 5, "levels": "two-powers"}, r"stages\[3\]: TwoPowers: found 5 bits; 4, 6 are allowed"),
        (LEARN | {"batch_norm": "gone"}, r"stages\[3\]\.batch_norm: found 'gone'; .*'kept', 'during' or 'before'"),
        (LEARN | {"batch_norm": "before", "recalibrate": 3}, r"stages\[3\]: recalibrate has no batch norms left"),
        (LEARN | {"method": "dorefa"}, r"stages\[3\]\.method: found 'dorefa'"),
        (LEARN | {"include": ["neck"]}, r"stages\[3\]\.include\[0\]: found 'neck'"),
        ({"kind": "quantise"}, r"stages\[3\]\.epochs: missing"),
        (ROUND | {"epochs": 3}, r"stages\[3\]\.epochs: unknown key; known here: .*equalise, correct_bias"),
        (ROUND | {"ranges": "max"}, r"stages\[3\]\.ranges: unknown map range 'max'; known: min-max, mse, percentile"),
    ],
)  # fmt: skip
def test_errors_name_the_key(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe(stage)
    assert "\n" not in str(caught.value)


def test_the_order_of_stages() -> None:
    for stages in (
        [LEARN, *STAGES],
        [*STAGES[:2], LEARN, STAGES[2]],
        [ROUND, {"kind": "thresholds", "budget": 0.1}],
    ):
        with pytest.raises(RecipeError, match="thresholds, then quantise and post_training is allowed"):
            recipe(stages=stages)
    assert [s.kind for s in recipe(stages=[STAGES[0], LEARN]).stages] == ["dense", "quantise"]


def test_excluded_layers_are_checked_before_training(tmp_path: Path) -> None:
    events: list[Any] = []
    with pytest.raises(StructureError, match="exclude 'neck'"):
        run(tmp_path, LEARN | {"exclude": ["neck"]}, progress=events.append)
    assert not events
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- validation
def test_held_out_images_are_a_fixed_part_of_the_training_data() -> None:
    data = load_data("mnist5k")
    rest, (images, labels) = hold_out(data, 400, seed=3)
    assert (len(rest.train_images), len(images), len(labels)) == (3600, 400, 400)
    assert torch.equal(rest.test_images, data.test_images)
    flat = torch.cat([rest.train_images, images]).flatten(1).long()
    key = torch.arange(flat.shape[1]) + 1
    assert torch.equal(
        (flat * key).sum(1).sort().values, (data.train_images.flatten(1).long() * key).sum(1).sort().values
    )
    again = hold_out(data, 400, seed=3)[1]
    assert torch.equal(again[0], images)
    assert torch.equal(again[1], labels)
    assert not torch.equal(hold_out(data, 400, seed=4)[1][0], images)
    for count in (0, 4000):
        with pytest.raises(DataError, match=f"mnist5k: validation: found {count}; 1 to 3999 images"):
            hold_out(data, count)


def test_stages_are_judged_on_validation_images_and_the_test_images_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparseflow.train import trainer
    from sparseflow.train.recipe import run as running

    seen: list[int] = []

    def counted(model: nn.Module, loader: Any) -> float:
        seen.append(len(loader.images))
        return evaluate(model, loader)

    monkeypatch.setattr(trainer, "evaluate", counted)
    monkeypatch.setattr(running, "evaluate", counted)
    content = {
        "name": "held out",
        "data": {"name": "mnist5k", "batch_size": 100, "validation": 300},
        "model": {"name": "mnist_cnn", "arguments": {"widths": [4, 8]}},
        "rules": [{"layers": "features.*", "sparsify": "block:4x4@0.5"}],
        "stages": [
            {"kind": "dense", "epochs": 1, "learning_rate": 0.1},
            {"kind": "magnitude"},
            {"kind": "quantise", "epochs": 1, "learning_rate": 0.05},
        ],
    }
    result = run_recipe(parse_recipe(content), tmp_path)
    assert seen == [300, 300, 1000, 300, 300, 1000]  # one epoch, the dense network, one epoch, the result
    assert result.history["1-dense"][-1]["accuracy"] == result.dense_validation
    assert result.pruned_validation is not None
    assert result.pruned_validation != result.pruned_accuracy
    assert "on the validation data" in build(result).lede
    assert json.loads((tmp_path / "results.json").read_text())["dense_validation"] == result.dense_validation
    with pytest.raises(RecipeError, match="validation is given beside factory"):
        parse_recipe(content | {"data": {"factory": "a:b", "validation": 3}})


def test_structures_of_the_result_are_those_of_the_rules(tmp_path: Path) -> None:
    result = run(tmp_path, ROUND)
    assert {layer.structure for layer in result.layers} == {"dense", str(parse_structure("block:4x4"))}


def test_admm_alone_ends_on_levels(tmp_path: Path) -> None:
    admm = {"kind": "admm", "bits": 3, "rho": 0.1, **BASE}
    result = run(tmp_path, stages=[STAGES[0], admm])
    weight = torch.load(result.model_path, weights_only=True)["3.weight"].flatten(1)
    assert all(len(row.unique()) <= 7 for row in weight)
    assert int((weight != 0).sum()) <= 0.25 * weight.numel()
    with pytest.raises(RecipeError, match=r"stages\[1\]: AdmmSettings: TwoPowers: found 3 bits"):
        recipe(stages=[STAGES[0], admm | {"levels": "two-powers"}])
