"""Criteria: what each one is, and that every method which prunes by scores takes all whose readings it can give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseflow.core.structures import Column, Filter, Unstructured, parse_structure
from sparseflow.errors import DataError, RecipeError, SparseflowError
from sparseflow.train import CRITERIA, METHODS, ByScores, Criterion, Rule, parse_recipe
from sparseflow.train.criteria import Reads, Scores
from sparseflow.train.criteria.base import criteria_of
from sparseflow.train.methods import InTraining, SecondOrder, method_of
from tests.train.method_cases import STEPS, batch, make, model, run

TAKERS = [name for name, method in METHODS.items() if "criterion" in method.Settings.model_fields]


def allowed(method: str) -> list[str]:
    """The criteria that a method's settings take."""
    needed = {"epochs": 2} if issubclass(METHODS[method], InTraining) else {}
    found = []
    for name in CRITERIA:
        try:
            METHODS[method].Settings(criterion=name, **needed)
        except SparseflowError as error:
            assert "criteria allowed here: " in str(error)  # noqa: PT017
        else:
            found.append(name)
    return sorted(found)


def test_methods_that_prune_by_scores_take_the_criteria_whose_readings_they_give() -> None:
    assert {name: allowed(name) for name in TAKERS} == {
        "gradual": ["magnitude", "movement", "taylor"],
        "movement": ["magnitude", "movement", "taylor"],
        "one_shot": ["magnitude", "second_order", "taylor", "wanda"],
        "rigl": ["magnitude", "movement", "taylor"],
        "second_order": ["magnitude", "second_order", "wanda"],
        "sr_ste": ["magnitude", "movement", "taylor"],
    }


@pytest.mark.parametrize("structure", ["unstructured", "block:4x1", "filter", "column", "nm:2:4"])
@pytest.mark.parametrize(("name", "criterion"), [(n, c) for n in TAKERS for c in allowed(n)])
def test_every_method_runs_with_every_criterion_that_it_takes(
    name: str, criterion: str, structure: str
) -> None:
    net, wanted = model(), parse_structure(structure)
    if METHODS[name].refuses(wanted, net.body) is not None:
        pytest.skip("refused, as the contract of methods tests")
    density = wanted.fixed_density or 0.25
    before = net.body.weight.detach().abs().numpy().copy()
    masks = run(make(name, net, [Rule("body", wanted, density)], criterion=criterion))
    keep = masks["body"].keep
    assert wanted.admits(keep)
    assert keep.sum() == wanted.mask(before, density).keep.sum()
    assert not net.body.weight.detach().numpy()[~keep].any()
    assert torch.isfinite(net.body.weight).all()


@pytest.mark.parametrize("name", TAKERS)
def test_the_criterion_decides(name: str) -> None:
    masks = []
    for criterion in allowed(name):
        masks.append(
            run(make(name, model(), [Rule("body", Unstructured(), 0.25)], criterion=criterion))["body"]
        )
    assert all((a.keep != b.keep).any() for i, a in enumerate(masks) for b in masks[:i])


@pytest.mark.parametrize("criterion", criteria_of([Reads.STEPS, Reads.GRADIENTS]))
def test_masks_of_a_gradual_pruning_are_nested_by_any_criterion(criterion: str) -> None:
    net = model()
    method = make("gradual", net, [Rule("body", Unstructured(), 0.25)], criterion=criterion)
    assert isinstance(method, InTraining)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    removed = np.zeros(tuple(net.body.weight.shape), bool)
    for epoch in range(method.settings.epochs):
        method.begin_epoch(epoch, STEPS)
        for step in range(STEPS):
            x, y = batch(epoch * STEPS + step)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            method.before_step()
            optimizer.step()
            method.after_step()
            now = net.body.weight.detach().numpy() == 0
            assert not (removed & ~now).any()
            removed = now
    assert not (removed & method.finish()["body"].keep).any()


def test_second_order_is_the_error_of_removing_one_weight_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    weight = torch.randn(3, 6, generator=generator)
    seen = Scores("second_order")
    for part in x.split(10):
        seen.add("a", weight, part[None])
    scores = seen.of("a", weight)
    gram = (x.T @ x).double()
    hessian = gram + 0.01 * gram.diagonal().mean() * torch.eye(6)
    for row in range(3):
        for j in range(6):
            rest = [k for k in range(6) if k != j]
            w = weight[row].double()
            change = torch.zeros(6, dtype=torch.float64)
            change[j] = -w[j]
            change[rest] = torch.linalg.solve(hessian[rest][:, rest], -hessian[rest, j] * change[j])
            assert float(scores[row, j]) == pytest.approx(float(change @ hessian @ change), rel=1e-3)


def test_groups_of_a_convolution_have_statistics_of_their_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, bias=False))
    x = torch.randn(8, 4, 6, 6)
    x[:, :2] *= 10.0  # the first group's channels
    for criterion in ("wanda", "second_order"):
        settings = ByScores.Settings(criterion=criterion, compare="layer")
        method = ByScores(net, [Rule("0", Unstructured(), 0.5)], settings)
        method.calibrate([x])
        keep = method.finish()["0"].keep
        assert keep[:4].mean() > 0.9 > 0.1 > keep[4:].mean()


def test_second_order_makes_up_for_what_another_criterion_removes() -> None:
    x = torch.cat([batch(i)[0] for i in range(4)])
    dense = model()
    with torch.no_grad():
        seen = torch.relu(dense.stem(x))
        wanted = dense.body(seen)
    errors = {}
    for method in (ByScores, SecondOrder):
        for structure in (Unstructured(), Column()):
            net = model()
            settings = method.Settings(criterion="magnitude")
            made = method(net, [Rule("body", structure, 0.5)], settings)
            made.calibrate([x])
            keep = made.finish()["body"].keep
            with torch.no_grad():
                net.body.weight.mul_(torch.from_numpy(keep.copy()))
                errors[method, structure] = float((net.body(seen) - wanted).square().sum())
            assert (keep == structure.mask(dense.body.weight.detach().abs().numpy(), 0.5).keep).all()
    for structure in (Unstructured(), Column()):
        assert errors[SecondOrder, structure] < 0.6 * errors[ByScores, structure]


def test_a_criterion_of_ones_own_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Last(Criterion):
        """The later an output, the more it counts."""

        when = "never"

        def __call__(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
            return torch.arange(len(weight)).reshape(-1, 1, 1, 1).expand_as(weight).float()

    monkeypatch.setitem(CRITERIA._entries, "last", Last)
    method = ByScores(model(), [Rule("body", Filter(), 0.25)], ByScores.Settings(criterion="last"))
    assert np.flatnonzero(method.finish()["body"].keep[:, 0, 0, 0]).tolist() == [12, 13, 14, 15]
    assert method_of("last") == (ByScores, {"criterion": "last"})


def test_recipes_name_a_criterion_as_a_key_or_as_the_kind() -> None:
    def stage(**keys: str) -> object:
        rules = [{"layers": "*", "sparsify": "filter@0.5"}]
        return parse_recipe({"name": "x", "rules": rules, "stages": [keys]}).stages[0]

    for kind in ("magnitude", "taylor", "wanda"):
        short, whole = stage(kind=kind), stage(kind="one_shot", criterion=kind)
        assert short.method_settings() == whole.method_settings()  # type: ignore[attr-defined]
        assert short.method_settings().criterion == kind  # type: ignore[attr-defined]
    for keys, message in (
        ({"kind": "one_shot", "criterion": "movement"}, "reads gradients while training; criteria allowed"),
        ({"kind": "one_shot", "criterion": "beauty"}, "not known; criteria allowed here: magnitude, "),
        ({"kind": "magnitude", "criterion": "taylor"}, "criterion: found 'taylor'"),
    ):
        with pytest.raises(RecipeError, match=message) as caught:
            stage(**keys)
        assert "\n" not in str(caught.value)


def test_gradients_need_labels() -> None:
    method = ByScores(model(), [Rule("body", Unstructured(), 0.5)], ByScores.Settings(criterion="taylor"))
    with pytest.raises(DataError, match="taylor: found batches without labels"):
        method.calibrate([batch()[0]])


@pytest.mark.parametrize("name", list(CRITERIA))
def test_each_says_when_to_choose_it_and_cites_its_paper(name: str) -> None:
    assert CRITERIA[name].when
    assert (CRITERIA[name].__doc__ or "").count("References\n") == 1
