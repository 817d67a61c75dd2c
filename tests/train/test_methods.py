"""ADMM, masked weights, and the rules that choose layers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparseflow.core.structures import PatternConnectivity, Unstructured
from sparseflow.errors import RegistryError, SparseflowError, StructureError
from sparseflow.train import ADMM, METHODS, AdmmSettings, ByScores, MaskedWeights, Rule
from sparseflow.train.rules import role_of, select_targets
from tests.train.method_cases import TinyNet, batch, model


def loss_on(net: TinyNet, seed: int) -> float:
    x, y = batch(seed)
    with torch.no_grad():
        return F.cross_entropy(net(x), y).item()


def test_admm_drives_the_weights_into_the_structure() -> None:
    net = model()
    rules = [Rule("body", PatternConnectivity(), 0.12)]
    settings = AdmmSettings(epochs=8, rho=1e-2, rho_factor=5, rho_steps=4)
    admm = ADMM(net, rules, settings)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    first = admm.residual()
    for epoch in range(8):
        for step in range(25):
            x, y = batch(epoch * 25 + step)
            loss = F.cross_entropy(net(x), y) + admm.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        admm.after_epoch(epoch + 1)
    assert first > 0.5
    assert admm.residual() < 0.1 * first
    before = loss_on(net, 999)
    MaskedWeights(net, admm.finish())
    assert loss_on(net, 999) < before + 0.1  # the hard mask takes away little that is still used


def test_duals_move_and_accumulate() -> None:
    net = model()
    admm = ADMM(net, [Rule("body", Unstructured(), 0.2)], AdmmSettings(epochs=4))
    weight = net.body.weight.detach()
    assert not admm.u["body"].any()
    admm.update()
    first = admm.u["body"].clone()
    assert torch.equal(first, weight - admm.z["body"])
    assert first.any()
    admm.update()
    expected = first + weight - admm.z["body"]
    assert torch.equal(admm.u["body"], expected)
    assert not torch.equal(admm.u["body"], first)
    # and the penalty sees them: its gradient is rho (W - Z + U)
    penalty = admm.penalty()
    penalty.backward()
    torch.testing.assert_close(net.body.weight.grad, admm.rho * (weight - admm.z["body"] + admm.u["body"]))


def test_projection_is_of_w_plus_u() -> None:
    net = model()
    admm = ADMM(net, [Rule("body", Unstructured(), 0.1)], AdmmSettings(epochs=4))
    with torch.no_grad():
        admm.u["body"].normal_()
        moved = net.body.weight + admm.u["body"]
    admm.update()
    kept = admm.z["body"] != 0
    assert torch.equal(admm.z["body"][kept], moved[kept])
    assert moved[kept].abs().min() >= moved[~kept].abs().max()


def test_rho_ramp_keeps_the_unscaled_dual() -> None:
    admm = ADMM(model(), [Rule("body", Unstructured(), 0.2)], AdmmSettings(epochs=8))
    values = []
    for epoch in range(8):
        values.append(admm.rho)
        admm.after_epoch(epoch + 1)
    assert values == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2, 1e-1, 1e-1])
    dual = admm.rho * admm.u["body"]
    admm.set_rho(0.5)
    torch.testing.assert_close(admm.rho * admm.u["body"], dual)


def test_update_every_counts_epochs() -> None:
    admm = ADMM(model(), [Rule("body", Unstructured(), 0.2)], AdmmSettings(epochs=6, update_every=3))
    for epoch in range(6):
        admm.after_epoch(epoch + 1)
    assert admm.updates == 2


def test_state_goes_through_a_dictionary() -> None:
    net = model()
    rules = [Rule("body", PatternConnectivity(), 0.2)]
    admm = ADMM(net, rules, AdmmSettings(epochs=4))
    admm.update()
    admm.set_rho(0.3)
    state = {k: v.copy() if isinstance(v, dict) else v for k, v in admm.state_dict().items()}
    with torch.no_grad():
        net.body.weight.mul_(torch.rand_like(net.body.weight))
    other = ADMM(net, rules, AdmmSettings(epochs=4))
    other.load_state_dict(state)
    assert (other.rho, other.updates, other.targets) == (0.3, 1, admm.targets)
    assert torch.equal(other.u["body"], admm.u["body"])
    assert other.u["body"] is not admm.u["body"]
    wrong = ADMM(net, [Rule("hidden", Unstructured(), 0.2)], AdmmSettings(epochs=4))
    with pytest.raises(ValueError, match="other layers"):
        wrong.load_state_dict(state)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_masks_stay_exact_through_retraining(optimizer_class: type[torch.optim.Optimizer]) -> None:
    net = model()
    for step in range(5):  # momentum from before the mask points out of it
        x, y = batch(step)
        F.cross_entropy(net(x), y).backward()
    momentum = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
    optimizer = optimizer_class(net.parameters(), lr=0.1, weight_decay=0.1, **momentum)
    optimizer.step()
    masks = ByScores(net, [Rule("*", Unstructured(), 0.1, include=("stem", "classifier"))]).finish()
    assert set(masks) == {"stem", "body", "hidden", "head"}  # depthwise was not asked for
    masked = MaskedWeights(net, masks)
    for step in range(10):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        masked.after_step()
        for name, mask in masks.items():
            weight = net.get_submodule(name).weight.detach().numpy()
            assert not weight[~mask.keep].any()
            assert weight[mask.keep].any()


def test_wildcards_leave_stem_depthwise_and_classifier_dense() -> None:
    net = model()
    assert [role_of(net, n) for n in ("stem", "body", "deep", "hidden", "head")] == [
        "stem",
        "",
        "depthwise",
        "",
        "classifier",
    ]
    names = [t.name for t in select_targets(net, (Rule("*", Unstructured(), 0.5),))]
    assert names == ["body", "hidden"]
    names = [t.name for t in select_targets(net, (Rule("deep", Unstructured(), 0.5),))]
    assert names == ["deep"]
    first_counts = (Rule("hidden", None), Rule("*", Unstructured(), 0.5))
    assert [t.name for t in select_targets(net, first_counts)] == ["body"]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: ByScores(model(), [Rule("nothing*", Unstructured(), 0.5)]),
            StructureError,
            "nothing.*stem, body",
        ),
        (
            lambda: ByScores(model(), [Rule("hidden", PatternConnectivity(), 0.1)]),
            StructureError,
            "layer 'hidden'",
        ),
        (lambda: Rule("body", Unstructured(), 1.5), StructureError, "1.5"),
        (lambda: Rule("body", Unstructured(), 0.5, include=("neck",)), StructureError, "neck"),
        (lambda: AdmmSettings(epochs=0), SparseflowError, "epochs"),
        (lambda: METHODS["lottery"], RegistryError, "lottery.*admm"),
    ],
)
def test_errors_are_one_line(make: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
