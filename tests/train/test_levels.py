"""Levels of weights and maps: what they are, their learned steps, and ADMM's way to them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from sparseflow.core.structures import STRUCTURES, parse_structure
from sparseflow.errors import ElementTypeError, RegistryError, SparseflowError, StructureError
from sparseflow.train import ADMM, AdmmSettings, MaskedWeights, Rule
from sparseflow.train.levels import LEVELS, Levels, TwoPowers, Uniform, fitted_steps, on_levels
from sparseflow.train.quantise import RANGES, LearnedSteps, MapLevels, sample_range
from sparseflow.train.quantise.weights import mean_steps
from tests.train.method_cases import density_for, layer_for, model, train_epoch

SETS = [made(bits) for made in LEVELS.values() for bits in made.allowed]
some_levels = st.sampled_from(SETS)
seeds = st.integers(0, 2**31 - 1)


def weights(seed: int, density: float = 0.5) -> torch.Tensor:
    """(5, 6, 3, 3), filters of different scale, the last one empty."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(5, 6, 3, 3, generator=generator) * (torch.rand(5, 1, 1, 1, generator=generator) + 0.1)
    w[torch.rand(w.shape, generator=generator) > density] = 0.0
    w[-1] = 0.0
    return w


def assert_on_levels(weight: torch.Tensor, steps: torch.Tensor, levels: Levels) -> None:
    codes = weight.double() / steps.double().reshape(-1, *(1,) * (weight.ndim - 1))
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
    assert set(codes.round().abs().int().flatten().tolist()) <= set(levels.magnitudes)


@pytest.mark.parametrize("levels", SETS, ids=str)
def test_levels_fit_their_codes_and_int8(levels: Levels) -> None:
    magnitudes = levels.magnitudes
    assert magnitudes[0] == 0
    assert list(magnitudes) == sorted(set(magnitudes))
    assert magnitudes[1] == 1
    assert magnitudes[-1] <= 127
    assert 2 * len(magnitudes) - 1 <= 2**levels.bits
    if isinstance(levels, TwoPowers):
        assert all(m.bit_count() <= 2 for m in magnitudes)


def test_four_bits_are_the_papers_set_and_six_all_pairs() -> None:
    paper = {a + b for a in (0, 2**-1, 2**-2, 2**-4) for b in (0, 2**-3)}
    assert [m / 16 for m in TwoPowers(4).magnitudes] == sorted(paper)
    assert TwoPowers(6).magnitudes == tuple(n for n in range(128) if n.bit_count() <= 2 and n <= 96)


@pytest.mark.parametrize(("name", "bits"), [("uniform", 9), ("uniform", 1), ("two-powers", 5)])
def test_other_bits_are_refused(name: str, bits: int) -> None:
    with pytest.raises(ElementTypeError, match=rf"found {bits} bits; .* are allowed"):
        LEVELS[name](bits)


@given(some_levels, st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_nearest_is_nearest(levels: Levels, numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    table = torch.tensor([sign * m for m in levels.magnitudes for sign in (-1.0, 1.0)])
    best = (x[:, None] - table).abs().amin(1)
    found = levels.nearest(x)
    assert torch.equal((x - found).abs(), best)
    assert set(found.tolist()) <= set(table.tolist())


@given(some_levels, seeds)
@settings(deadline=None, max_examples=40)
def test_fitted_steps_are_found_again_and_no_worse_than_the_whole_range(levels: Levels, seed: int) -> None:
    w = weights(seed)
    steps = fitted_steps(w, levels)
    rounded = on_levels(w, steps, levels)
    assert_on_levels(rounded, steps, levels)
    assert not rounded[w == 0].any()
    torch.testing.assert_close(fitted_steps(rounded, levels), steps, rtol=1e-6, atol=0)
    whole = torch.where(steps == 1, 1.0, w.abs().flatten(1).amax(1) / levels.largest)

    def error(chosen: torch.Tensor) -> torch.Tensor:
        return (on_levels(w, chosen, levels) - w).square().flatten(1).sum(1)

    assert (error(steps) <= error(whole) + 1e-9).all()


def test_a_clipped_outlier_buys_finer_steps() -> None:
    w = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([3.0])])[None]
    steps, whole = fitted_steps(w, Uniform(4)), 3.0 / 7
    assert float(steps) < 0.6 * whole


# ---------------------------------------------------------------------- learned steps of weights
@pytest.mark.parametrize("levels", [Uniform(8), Uniform(3), TwoPowers(4)], ids=str)
def test_gradients_of_the_step_are_the_papers(levels: Levels) -> None:
    w = weights(1, density=1.0).requires_grad_()
    learned = LearnedSteps(w.detach(), levels)
    with torch.no_grad():
        learned.step.mul_(0.5)  # some are clipped then
    towards = torch.randn(w.shape, generator=torch.Generator().manual_seed(2))
    (learned(w) * towards).sum().backward()
    step = learned.step.detach()[:, None, None, None]
    v, largest = w.detach() / step, levels.largest
    inside = v.abs() < largest
    assert 0 < int((~inside).sum()) < 0.5 * v.numel()
    by_step = torch.where(inside, levels.nearest(v) - v, v.sign() * largest)
    kept = torch.tensor([54, 54, 54, 54, 1])  # an empty filter counts as one weight
    expected = (towards * by_step).flatten(1).sum(1) / (kept * largest).sqrt()
    torch.testing.assert_close(learned.step.grad, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w.grad, torch.where(inside, towards, 0.0), rtol=1e-5, atol=1e-6)


def test_the_gradient_scale_counts_what_a_filter_keeps() -> None:
    w = torch.ones(2, 16)
    w[1, 4:] = 0.0
    learned = LearnedSteps(w, Uniform(8))
    torch.testing.assert_close(learned.factor, torch.tensor([16.0, 4.0]).mul(127).rsqrt())
    torch.testing.assert_close(mean_steps(w, Uniform(8)), torch.full((2,), 2 / 127**0.5))


@given(some_levels, seeds, st.floats(0.05, 20.0))
@settings(deadline=None, max_examples=40)
def test_a_pruned_weight_stays_zero_whatever_the_step(levels: Levels, seed: int, factor: float) -> None:
    w = weights(seed)
    learned = LearnedSteps(w, levels)
    with torch.no_grad():
        learned.step.mul_(-factor)  # the sign does not count
    made = learned(w).detach()
    assert not made[w == 0].any()
    assert_on_levels(made, learned.step.detach().abs(), levels)


def test_levels_with_the_batch_norm_multiplied_in() -> None:
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0, 3.0]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0, 1.0, 0.1, 2.0]))
    w = weights(3)
    learned = LearnedSteps(w, Uniform(4), norm=norm)
    assert not list(learned.buffers())[1:]
    assert [name for name, _ in learned.named_parameters()] == ["step"]
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    scale[2] = 1.0  # a channel that the batch norm removes keeps its weight
    made = learned(w).detach() * scale[:, None, None, None]
    assert_on_levels(made, learned.step.detach(), Uniform(4))


# ---------------------------------------------------------------------- maps
@given(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32), st.integers(2, 8))
@settings(deadline=None, max_examples=80)
def test_maps_have_zero_as_a_level(low: float, high: float, bits: int) -> None:
    quantiser = MapLevels(min(low, high), max(low, high), bits)
    x = torch.cat([torch.linspace(-8, 8, 501), torch.zeros(1)])
    made = quantiser(x).detach()
    assert float(made[-1]) == 0.0
    assert len(made.unique()) <= 2**bits
    first, last = quantiser.ends()
    step = (last - first) / (2**bits - 1)
    torch.testing.assert_close(made, made.div(step).round() * step, rtol=1e-5, atol=1e-5)
    assert float(made.min()) >= first - 1e-5
    assert float(made.max()) <= last + 1e-5
    inside = (x > first) & (x < last)
    assert float((made - x)[inside].abs().sort().values[-1:].sum()) <= (step * 0.5001 + 1e-6)


def test_gradients_of_a_maps_range_are_the_papers() -> None:
    quantiser = MapLevels(-1.0, 2.0, 4)
    x = torch.linspace(-3, 4, 211)[None].requires_grad_()
    towards = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    (quantiser(x) * towards).sum().backward()
    step, most = quantiser.step.detach(), 15
    v, zero = x.detach() / step, 5
    below, above = v < -zero, v > most - zero
    by_step = torch.where(below, 0.0, torch.where(above, float(most), v.round() - v))
    scale = (211 * most) ** -0.5
    torch.testing.assert_close(quantiser.step.grad, (by_step * towards).sum() * scale, rtol=1e-3, atol=1e-4)
    by_low = torch.where(below | above, 1.0, 0.0)
    torch.testing.assert_close(quantiser.low.grad, (by_low * towards).sum() * scale, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(x.grad, torch.where(below | above, 0.0, towards))


def test_a_map_without_negative_values_has_no_lower_end_to_learn() -> None:
    quantiser = MapLevels(0.5, 2.0)
    assert quantiser.ends() == pytest.approx((0.0, 2.0))
    assert not quantiser.low.requires_grad
    assert MapLevels(-0.5, 2.0).low.requires_grad


def test_ranges_of_a_sample_with_an_outlier() -> None:
    sample = torch.cat(
        [torch.randn(20_000, generator=torch.Generator().manual_seed(5)), torch.tensor([40.0])]
    )
    found = {name: sample_range(name, sample, 4) for name in RANGES}
    assert found["min-max"] == (float(sample.min()), 40.0)
    low, high = found["percentile"]
    assert -3.4 < low < -2.8
    assert 2.8 < high < 3.4
    errors = {}
    for name, ends in found.items():
        errors[name] = float((MapLevels(*ends, 4)(sample).detach() - sample).square().mean())
    assert errors["mse"] < errors["min-max"]
    with pytest.raises(RegistryError, match="unknown map range 'entropy'"):
        RANGES["entropy"]


# ---------------------------------------------------------------------- ADMM on structure and levels
@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize(("levels", "bits"), [("uniform", 8), ("uniform", 3), ("two-powers", 4)])
def test_projecting_twice_is_projecting_once(structure: str, levels: str, bits: int) -> None:
    wanted, layer = layer_for(structure)
    net = model()
    rules = [Rule(layer, wanted, density_for(wanted))]
    admm = ADMM(net, rules, AdmmSettings(epochs=2, bits=bits, levels=levels))
    (target,) = admm.targets
    once = admm._project(target, net.get_submodule(layer).weight.detach())
    torch.testing.assert_close(admm._project(target, once), once, rtol=1e-6, atol=0)
    plain = ADMM(net, rules, AdmmSettings(epochs=2)).z[layer]
    assert not once[plain == 0].any()
    assert_on_levels(once, fitted_steps(plain, LEVELS[levels](bits)), LEVELS[levels](bits))
    assert 0 < int(once.count_nonzero()) <= int(plain.count_nonzero())


def test_duals_move_towards_levels_and_the_weights_end_on_them() -> None:
    net, levels = model(), Uniform(3)
    rules = [Rule("body", parse_structure("block:4x1"), 0.5)]
    settings_ = AdmmSettings(epochs=8, bits=3, rho=0.3, rho_factor=2, rho_steps=3)
    admm = ADMM(net, rules, settings_)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    first = admm.residual()
    duals = []
    for epoch in range(settings_.epochs):
        train_epoch(admm, optimizer, epoch)
        duals.append(admm.rho * admm.u["body"].clone())
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(duals))
    assert admm.residual() < 0.7 * first
    masks = admm.finish()
    weight = net.body.weight.detach().clone()
    assert_on_levels(weight, fitted_steps(weight, levels), levels)
    MaskedWeights(net, masks)
    assert torch.equal(net.body.weight, weight)


def test_admm_refuses_levels_that_are_not_there() -> None:
    for changes, message in (
        ({"bits": 5, "levels": "two-powers"}, "found 5 bits; 4, 6 are allowed"),
        ({"bits": 4, "levels": "cubes"}, "unknown levels 'cubes'"),
    ):
        with pytest.raises(SparseflowError, match=message) as caught:
            AdmmSettings(epochs=2, **changes)
        assert "\n" not in str(caught.value)


def test_other_parametrizations_are_still_refused() -> None:
    net = model()
    nn.utils.parametrizations.weight_norm(net.hidden)
    with pytest.raises(StructureError, match="remove its parametrization"):
        MaskedWeights(net, {"hidden": _mask(net)})
    other = model()
    steps = LearnedSteps(other.hidden.weight, Uniform(8))
    parametrize.register_parametrization(other.hidden, "weight", steps)
    MaskedWeights(other, {"hidden": _mask(other)})
    assert not other.hidden.weight[0].any()


def _mask(net: nn.Module) -> object:
    scores = np.arange(16 * 16, dtype=np.float32).reshape(16, 16)
    return parse_structure("unstructured").mask(scores, 0.5)
