"""The defining formula of each method, against a computation by other means on a small problem."""

from __future__ import annotations

import itertools
from math import cos, pi
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseflow.core.structures import Block, Column, Filter, Unstructured, parse_structure
from sparseflow.errors import SparseflowError
from sparseflow.train.criteria.second_order import Curvature
from sparseflow.train.methods import (
    ADMM,
    AdmmSettings,
    ByScores,
    GroupLasso,
    Hoyer,
    MaskedWeights,
    Movement,
    RampSettings,
    RigL,
    RigLSettings,
    SecondOrder,
    SrSte,
)
from sparseflow.train.methods.least_squares import aim, eliminate, error, refit, sweep
from sparseflow.train.methods.observe import input_rows, observing
from sparseflow.train.methods.penalties import unit_sums
from sparseflow.train.rules import Rule
from tests.train.method_cases import STEPS, batch, make, model, run, train_epoch


# ------------------------------------------------------------------ second order
def problem(rows: int = 5, n: int = 12) -> tuple[torch.Tensor, Curvature]:
    """Weights, and the curvature of correlated inputs."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, n, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(n, n, generator=generator, dtype=torch.float64)
    return torch.randn(rows, n, generator=generator, dtype=torch.float64), Curvature.of(x.T @ x, 1e-3)


def least_squares(weight: torch.Tensor, keep: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """The exact minimiser, row by row, from the normal equations."""
    solved = torch.zeros_like(weight)
    for row in range(len(weight)):
        kept = torch.nonzero(keep[row]).flatten()
        right = hessian[kept] @ weight[row]
        solved[row, kept] = torch.linalg.solve(hessian[kept][:, kept], right)
    return solved


@pytest.mark.parametrize("size", [1, 3])
def test_elimination_ends_in_the_least_squares_solution(size: int) -> None:
    weight, curvature = problem()
    units = torch.arange(12) // size
    pruned, keep = eliminate(weight, curvature.inverse, units, 12 // size // 2)
    assert (~keep).sum() == 6
    exact = least_squares(weight, keep.expand_as(weight), curvature.hessian)
    torch.testing.assert_close(pruned, exact)


def test_elimination_takes_the_cheapest_unit_first() -> None:
    weight, curvature = problem()
    _, keep = eliminate(weight, curvature.inverse, torch.arange(12), 1)
    errors = []
    for j in range(12):
        mask = torch.ones_like(weight, dtype=torch.bool)
        mask[:, j] = False
        solved = least_squares(weight, mask, curvature.hessian)
        errors.append(error(weight, solved, curvature.hessian))
    assert int((~keep).nonzero()) == int(np.argmin(errors))


def test_the_sweep_equals_removing_one_weight_after_another() -> None:
    weight, curvature = problem()
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    for chunk, lazy in ((1, 1), (2, 4), (3, 6), (12, 12), (5, 128)):
        pruned, kept = sweep(weight, curvature.factor, lambda s, a, b: keep[:, a:b], chunk, lazy)
        assert torch.equal(kept, keep)
        slow = weight.clone()
        for row in range(len(weight)):
            for j in range(12):  # each step: optimal brain surgeon among the columns from j on
                if not keep[row, j]:
                    inverse = torch.linalg.inv(curvature.hessian[j:, j:])
                    slow[row, j:] -= slow[row, j] / inverse[0, 0] * inverse[0]
        torch.testing.assert_close(pruned, slow * keep)


def test_the_sweep_selects_by_the_error_of_removal() -> None:
    weight, curvature = problem()
    seen = {}

    def select(scores: torch.Tensor, first: int, last: int) -> torch.Tensor:
        seen[first] = scores
        return torch.ones_like(scores, dtype=torch.bool)

    sweep(weight, curvature.factor, select, 4, 4)
    for j in (0, 4, 8):
        inverse = torch.linalg.inv(curvature.hessian[j:, j:])
        torch.testing.assert_close(seen[j][:, 0], weight[:, j].square() / inverse[0, 0])


def test_refitting_reaches_the_least_squares_solution_and_each_step_helps() -> None:
    weight, curvature = problem()
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    start = weight * keep
    errors = [
        error(weight, refit(weight, start, keep, curvature.hessian, i), curvature.hessian)
        for i in range(0, 30, 3)
    ]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    done = refit(weight, start, keep, curvature.hessian, 60)
    torch.testing.assert_close(done, least_squares(weight, keep, curvature.hessian))


def test_the_aim_is_the_ridge_solution_for_the_other_inputs() -> None:
    generator = torch.Generator().manual_seed(5)
    x, dense = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    strength = 0.1 * float((x.T @ x).diagonal().mean())
    # the ridge as six more samples, on which the weights stay what they are
    extra = strength**0.5 * torch.eye(6, dtype=torch.float64)
    left, right = torch.cat([x, extra]), torch.cat([dense @ weight.T, extra @ weight.T])
    exact = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(aim(weight, x.T @ x, dense.T @ x, 0.1), exact)
    torch.testing.assert_close(aim(weight, x.T @ x, x.T @ x, 0.1), weight)


def test_looking_at_early_layers_leaves_out_the_later_ones_but_no_call() -> None:
    seen: list[tuple[str, int]] = []
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net.insert(2, net[0])  # called twice
    late = []
    net[3].register_forward_hook(lambda layer, args, out: late.append(len(out)))
    sizes = [3, 4, 5]
    net.train()
    inputs = [torch.ones(n, 2) for n in sizes]
    list(observing(net, ["0"], lambda name, layer, x: seen.append((name, len(x))), inputs))
    assert seen == [("0", n) for n in sizes for _ in range(2)]
    assert late == sizes[:1]
    assert net.training
    assert not net[0]._forward_pre_hooks


def test_layers_that_aim_at_the_dense_network_make_up_for_those_before() -> None:
    x = torch.cat([batch(i)[0] for i in range(4)])
    seen, errors = {}, {}
    for against_dense in (False, True):
        net = model()
        net.hidden.register_forward_hook(lambda layer, args, out: seen.update(out=out.detach()))
        with torch.no_grad():
            net.eval()(x)
            wanted = seen["out"]
        rules = [Rule("body", Unstructured(), 0.2), Rule("hidden", parse_structure("nm:2:4"), 0.5)]
        method = make("second_order", net, rules, layers_per_pass=1, against_dense=against_dense)
        method.calibrate([x])
        MaskedWeights(net, method.finish())
        with torch.no_grad():
            net(x)
        errors[against_dense] = float((seen["out"] - wanted).square().sum())
    assert errors[True] < 0.8 * errors[False]


@pytest.mark.parametrize(
    "text",
    ["unstructured", "nm:2:4", "nm:2:4:0", "block:4x1", "block:1x4", "pattern:4", "connectivity", "column",
     "channel", "pattern:4+connectivity", "nm:2:4+filter", "block:16x2"],
)  # fmt: skip
def test_second_order_loses_less_than_magnitude(text: str) -> None:
    structure = parse_structure(text)
    density = structure.fixed_density or min(0.5, structure.max_density)
    x = torch.cat([batch(i)[0] for i in range(4)])
    dense, errors = model(), {}
    with torch.no_grad():
        seen = torch.relu(dense.stem(x))
        wanted = dense.body(seen)
    for method in (ByScores, SecondOrder):
        net = model()
        made = method(net, [Rule("body", structure, density)])
        made.calibrate([x])
        MaskedWeights(net, made.finish())
        with torch.no_grad():
            errors[method] = float((net.body(seen) - wanted).square().sum())
    assert errors[SecondOrder] < 0.6 * errors[ByScores]


def test_filters_are_kept_by_the_energy_of_their_output() -> None:
    net, x = model(), batch()[0]
    with torch.no_grad():
        energy = net.body(torch.relu(net.stem(x))).square().sum((0, 2, 3))
    method = SecondOrder(net, [Rule("body", Filter(), 0.25)], SecondOrder.Settings(damping=1e-9))
    method.calibrate([x])
    keep = method.finish()["body"].keep[:, 0, 0, 0]
    assert set(np.flatnonzero(keep)) == set(energy.argsort(descending=True)[:4].tolist())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4, bias=False), (3, 5, 6)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9)),
        (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), bias=False), (2, 4, 11, 9)),
        (nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False), (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False), (2, 4, 7, 5)),
        (nn.Conv3d(2, 4, 3, padding=1, bias=False), (2, 2, 5, 4, 3)),
    ],
)
def test_input_rows_times_the_weight_are_the_output(layer: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    rows = input_rows(layer, x)
    groups = rows.shape[0]
    weight = layer.weight.flatten(1).reshape(groups, -1, rows.shape[2])
    out = (rows @ weight.mT).transpose(0, 1).flatten(1)  # (rows, out)
    wanted = layer(x)
    wanted = wanted.flatten(0, 1) if isinstance(layer, nn.Linear) else wanted.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ one-shot scores
def test_wanda_is_magnitude_times_input_norm_within_each_row() -> None:
    net, x = model(), torch.rand(20, 16, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 2))
    method = ByScores(net, [Rule("0", Unstructured(), 0.25)], ByScores.Settings(criterion="wanda"))
    method.calibrate([x])
    keep = method.finish()["0"].keep
    scores = net[0].weight.detach().abs() * x.norm(dim=0)
    assert (keep.sum(1) == 4).all()
    for row in range(8):
        assert set(np.flatnonzero(keep[row])) == set(scores[row].argsort(descending=True)[:4].tolist())
    settings = ByScores.Settings(criterion="wanda", compare="layer")
    layer = ByScores(net, [Rule("0", Unstructured(), 0.25)], settings)
    layer.calibrate([x])
    flat = layer.finish()["0"].keep.reshape(-1)
    assert set(np.flatnonzero(flat)) == set(scores.flatten().argsort(descending=True)[:32].tolist())


def test_taylor_is_the_squared_product_of_gradient_and_weight() -> None:
    net = model()
    method = ByScores(net, [Rule("body", Column(), 0.25)], ByScores.Settings(criterion="taylor"))
    batches = [batch(i) for i in range(3)]
    net.body.weight.requires_grad_(False)  # what a recipe freezes can be pruned all the same
    method.calibrate(batches)
    assert not net.body.weight.requires_grad
    net.body.weight.requires_grad_(True)
    expected = torch.zeros_like(net.body.weight)
    for x, y in batches:
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        expected += (net.body.weight.grad * net.body.weight.detach()).square()
    torch.testing.assert_close(method.seen.sums["body"], expected)
    kept = method.finish()["body"].keep[0].reshape(-1)
    assert set(np.flatnonzero(kept)) == set(expected.sum(0).flatten().argsort(descending=True)[:18].tolist())


# ------------------------------------------------------------------ straight-through
def test_sr_ste_updates_dense_weights_with_the_gradient_of_masked_ones() -> None:
    net, structure = model(), parse_structure("nm:2:4")
    method = make("sr_ste", net, [Rule("body", structure, 0.5)], decay=0.05)
    assert isinstance(method, SrSte)
    dense = net.body.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method.begin_epoch(0, STEPS)
    keep = torch.from_numpy(structure.mask(dense.abs().numpy(), 0.5).keep.copy())
    assert torch.equal(net.body.weight.detach(), dense * keep)
    x, y = batch()
    F.cross_entropy(net(x), y).backward()
    gradient = net.body.weight.grad.clone()
    method.before_step()
    optimizer.step()
    method.after_step()
    expected = dense - 0.1 * (gradient + 0.05 * ~keep * dense)
    torch.testing.assert_close(method.latent["body"], expected)
    again = torch.from_numpy(structure.mask(expected.abs().numpy(), 0.5).keep.copy())
    torch.testing.assert_close(net.body.weight.detach(), expected * again)


def test_movement_sums_gradient_times_weight_and_masks_the_gradient() -> None:
    net = model()
    method = make("movement", net, [Rule("body", Unstructured(), 0.25)], epochs=2)
    assert isinstance(method, Movement)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scores = torch.zeros_like(net.body.weight)
    method.begin_epoch(0, STEPS)
    for step in range(STEPS):
        dense, keep = method.latent["body"].clone(), method.keep["body"].clone()
        assert torch.equal(net.body.weight.detach(), dense * keep)
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        scores -= net.body.weight.grad * dense
        expected = dense - 0.1 * net.body.weight.grad * keep
        method.before_step()
        optimizer.step()
        method.after_step()
        torch.testing.assert_close(method.latent["body"], expected)
    torch.testing.assert_close(method.seen.sums["body"], scores)
    assert not keep.all()
    kept = method.finish()["body"].keep
    assert scores[torch.from_numpy(kept.copy())].min() >= scores[torch.from_numpy(~kept)].max()


# ------------------------------------------------------------------ ramps and regrowth
def test_the_ramp_is_cubic() -> None:
    settings = RampSettings(epochs=10, begin=0.2, end=0.7)
    for progress, t in ((0.1, 0.0), (0.2, 0.0), (0.45, 0.5), (0.7, 1.0), (0.9, 1.0)):
        sparsity = 0.9 + (0.0 - 0.9) * (1 - t) ** 3
        assert settings.density(0.1, progress) == pytest.approx(1 - sparsity)
    with pytest.raises(SparseflowError, match="begin < end"):
        RampSettings(epochs=1, begin=0.7)


def test_gradual_masks_are_nested_and_follow_the_ramp() -> None:
    net = model()
    rules = [Rule("body", parse_structure("nm:1:4"), 0.25), Rule("hidden", Unstructured(), 0.1)]
    method = make("gradual", net, rules, epochs=4, update_every=1, end=1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    before, kept = None, []
    for epoch in range(4):
        train_epoch(method, optimizer, epoch)
        zeros = net.hidden.weight.detach() == 0
        assert before is None or not (before & ~zeros).any()
        before = zeros
        assert int((~zeros).sum()) == round(256 * method.settings.density(0.1, (epoch + 1) / 4))
        kept.append(int((net.body.weight.detach() != 0).sum()) // (net.body.weight.numel() // 4))
    assert kept == [3, 2, 2, 1]


def test_rigl_drops_small_weights_and_grows_large_gradients() -> None:
    net = model()
    method = RigL(net, [Rule("body", Unstructured(), 0.25)], RigLSettings(epochs=1, update_every=1))
    target, keep = method.targets[0], method.keep["body"].clone()
    gradient = torch.rand(keep.shape, generator=torch.Generator().manual_seed(5))
    mask = torch.from_numpy(method.replace(target, gradient.numpy(), 0.2).keep.copy())
    count, weight = int(keep.sum()), net.body.weight.detach().abs()
    dropped = round(count * 0.2)
    survivors = torch.zeros_like(keep).flatten()
    survivors[(weight * keep).flatten().argsort(descending=True)[: count - dropped]] = True
    assert int(mask.sum()) == count
    assert mask.flatten()[survivors].all()
    grown = mask.flatten() & ~survivors
    candidates = gradient.flatten().masked_fill(survivors, -1).argsort(descending=True)[:dropped]
    assert set(grown.nonzero().flatten().tolist()) == set(candidates.tolist())
    settings = RigLSettings(epochs=1, fraction=0.4, end=0.5)
    assert settings.replaced(0.25) == pytest.approx(0.2 * (1 + cos(pi / 2)))
    assert settings.replaced(0.5) == settings.replaced(0.8) == 0


def test_rigl_grows_from_zero_and_keeps_the_count() -> None:
    net = model()
    rule = Rule("body", Block(4, 1), 0.25)
    method = make("rigl", net, [rule], update_every=1, end=1.0, start="random")
    assert isinstance(method, RigL)
    count = int(method.keep["body"].sum())
    x, y = batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    method.begin_epoch(0, STEPS)
    for _ in range(STEPS):
        before = method.keep["body"].clone()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        method.before_step()
        optimizer.step()
        method.after_step()
        grown = method.keep["body"] & ~before
        assert not net.body.weight[grown].any()
        assert int(method.keep["body"].sum()) == count
    assert method.moved > 0


# ------------------------------------------------------------------ penalties
def test_unit_sums_equal_a_loop_with_ragged_units() -> None:
    x = torch.rand(5, 3, 2)
    sums = unit_sums(x, (2, 2, 2))
    assert sums.shape == (3, 2, 1)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(sums[i, j, 0], x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum())


def test_group_lasso_is_the_sum_of_weighted_norms() -> None:
    net = model()
    method = make("group_lasso", net, [Rule("body", Filter(), 0.5), Rule("hidden", Unstructured(), 0.5)])
    assert isinstance(method, GroupLasso)
    filters = net.body.weight.flatten(1)
    expected = 1e-4 * (72**0.5 * filters.norm(dim=1).sum() + net.hidden.weight.abs().sum())
    torch.testing.assert_close(method.penalty(), expected, rtol=1e-4, atol=0)
    method.penalty().backward()
    slope = 1e-4 * 72**0.5 * filters / filters.norm(dim=1, keepdim=True)
    torch.testing.assert_close(net.body.weight.grad.flatten(1), slope.detach())


def test_hoyer_counts_units_whatever_their_scale() -> None:
    net = model()
    method = make("hoyer", net, [Rule("body", Filter(), 0.5)], strength=1.0)
    assert isinstance(method, Hoyer)
    norms = net.body.weight.flatten(1).norm(dim=1)
    value = norms.sum().square() / norms.square().sum()
    torch.testing.assert_close(method.penalty(), value)
    with torch.no_grad():
        net.body.weight.mul_(3)
        torch.testing.assert_close(method.penalty(), value)
        net.body.weight[:12] = 0
        net.body.weight[12:] = torch.sign(net.body.weight[12:])
        assert method.penalty() == pytest.approx(4, rel=1e-3)


# ------------------------------------------------------------------ ADMM in steps
def test_admm_in_steps_removes_for_good_and_goes_on() -> None:
    net = model()
    settings = AdmmSettings(epochs=6, steps=3, rho=1e-2, rho_factor=10.0, rho_steps=2)
    rules = [Rule("body", Unstructured(), 0.125), Rule("hidden", parse_structure("nm:2:4"), 0.5)]
    method = ADMM(net, rules, settings)
    assert [settings.rho_at(e) for e in range(6)] == pytest.approx([1e-2, 1e-1] * 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    kept, total = [], net.body.weight.numel()
    for epoch in range(6):
        train_epoch(method, optimizer, epoch)
        kept.append(int((net.body.weight.detach() != 0).sum()) / total)
    assert kept == pytest.approx([1, 0.5, 0.5, 0.25, 0.25, 0.25], abs=1e-3)
    assert (net.hidden.weight.detach() != 0).all()
    masks = run_finish(method)
    assert masks["body"].density == pytest.approx(0.125, abs=1e-3)
    with pytest.raises(SparseflowError, match="at most one step an epoch"):
        AdmmSettings(epochs=2, steps=3)


def run_finish(method: ADMM) -> dict[str, Any]:
    """The masks, applied."""
    masks = method.finish()
    MaskedWeights(method.model, masks)
    return masks


def test_every_one_shot_leaves_what_it_promises_on_a_whole_network() -> None:
    net = model()
    masks = run(make("second_order", net, [Rule("*", parse_structure("nm:2:4"), 0.5)], layers_per_pass=1))
    assert {name: mask.density for name, mask in masks.items()} == {"body": 0.5, "hidden": 0.5}
