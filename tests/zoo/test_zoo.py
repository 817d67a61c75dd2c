"""Every registered network: standard shape, reproducible, activations that neither vanish nor explode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseflow.errors import ImportModelError, RegistryError
from sparseflow.zoo import ZOO, build

WEIGHTS = {  # published numbers of parameters, ImageNet heads included
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "bert_base": 109_482_240,
}
SMALL = {"bert_base": {"layers": 2, "tokens": 9}}


def _small(name: str, **kw: int) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return build(name, **{**SMALL.get(name, {"image_size": 64}), **kw})


@pytest.mark.parametrize("name", [n for n in ZOO if n not in ("vgg16", "bert_base")])
def test_number_of_weights_is_the_published_one(name: str) -> None:
    module, _ = build(name)
    assert sum(p.numel() for p in module.parameters()) == WEIGHTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "bert_base"])
def test_number_of_weights_of_the_large_ones(name: str) -> None:
    module, _ = build(name)
    assert sum(p.numel() for p in module.parameters()) == WEIGHTS[name]


@pytest.mark.parametrize("name", [n for n in ZOO if n != "vgg16"])
def test_output_is_well_scaled_and_depends_on_the_input(name: str) -> None:
    module, inputs = _small(name, batch=2)
    assert not module.training
    with torch.inference_mode():
        outputs = module(*inputs)
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        assert output.shape[0] == 2
        assert 0.1 < output.std() < 10
        assert (output[0] - output[1]).abs().max() > 0.01 * output.abs().max()


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first, second, third = (build("mobilenet_v2", seed=s) for s in (3, 3, 4))
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name])
    assert torch.equal(first[1][0], second[1][0])
    assert not torch.equal(first[0].classifier[1].weight, third[0].classifier[1].weight)


def test_batch_norm_is_not_the_identity() -> None:
    module, _ = build("resnet18")
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean.abs().max() > 0.01
            assert (layer.running_var - 1).abs().max() > 0.01


def test_bottleneck_strides_in_the_3x3() -> None:
    module, _ = build("resnet50", image_size=32)
    assert module.layer2[0].conv1.stride == (1, 1)
    assert module.layer2[0].conv2.stride == (2, 2)


def test_unknown_names_and_sizes_are_one_line() -> None:
    with pytest.raises(RegistryError, match=r"unknown zoo model 'alexnet'; known: bert_base"):
        build("alexnet")
    with pytest.raises(
        ImportModelError, match="no size is called 'tokens'; allowed: batch, seed, image_size"
    ):
        build("resnet18", tokens=4)
    with pytest.raises(ImportModelError, match="batch is 0; it must be at least 1"):
        build("resnet18", batch=0)
