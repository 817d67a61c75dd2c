"""Seeded weights under which a deep network in eval mode keeps its activations near unit scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from sparseflow.zoo.registry import ZOO, Built, ZooModel, materialise


def init_convnet(module: nn.Module, generator: torch.Generator) -> None:
    """Write every parameter and statistic of a convolutional network, in place.

    Weights are normal with variance ``gain / fan_in``; ``gain`` is 2 behind a ReLU (He et al.) and 1 where
    the layer's input is linear, which a network states by setting ``conv.gain``. Batch-norm scales and
    variances are drawn around 1, means and shifts around 0, so that folding them wrongly shows; a network
    sets ``bn.scale`` below 1 on the last norm of a residual branch, so that the sum grows slowly with depth.

    References
    ----------
    He et al., "Delving Deep into Rectifiers" (2015), section 2.2, equation 10.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            layer.weight.normal_(0.0, math.sqrt(getattr(layer, "gain", 2.0) / fan_in), generator=generator)
            if layer.bias is not None:
                layer.bias.normal_(0.0, 0.05, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            scale = getattr(layer, "scale", 1.0)
            layer.weight.uniform_(0.8 * scale, 1.2 * scale, generator=generator)
            layer.bias.normal_(0.0, 0.1, generator=generator)
            layer.running_mean.normal_(0.0, 0.1, generator=generator)
            layer.running_var.uniform_(0.8, 1.25, generator=generator)
            layer.num_batches_tracked.fill_(1)


def register_convnet(name: str, summary: str, make: Callable[[int], nn.Module]) -> None:
    """Put ``make(classes)`` into `ZOO`, with seeded weights and one normal image, as a normalised photo would be."""

    def built(batch: int, generator: torch.Generator, image_size: int = 224, classes: int = 1000) -> Built:
        module = materialise(lambda: make(classes), lambda m: init_convnet(m, generator))
        return module, (torch.randn(batch, 3, image_size, image_size, generator=generator),)

    ZOO.register(name)(ZooModel(summary, built, ("image_size", "classes")))
