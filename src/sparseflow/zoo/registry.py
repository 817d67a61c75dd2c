"""The registry of model definitions and `build`, which makes one by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparseflow.errors import ImportModelError
from sparseflow.registry import Registry

Built = tuple[nn.Module, tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class ZooModel:
    """A network of standard shape with seeded weights.

    Attributes
    ----------
    summary : str
        One line: what it is, its input, its number of weights.
    make : callable
        ``make(batch, generator, **sizes) -> (module, example_inputs)``.
    sizes : tuple of str
        The keyword arguments that ``make`` takes beside batch and generator.
    """

    summary: str
    make: Callable[..., Built]
    sizes: tuple[str, ...]


ZOO: Registry[ZooModel] = Registry("zoo model")


def build(name: str, batch: int = 1, seed: int = 0, **sizes: int) -> Built:
    """The named network in eval mode and example inputs for it, the same for the same seed.

    The weights are random (labelled so wherever a time is reported), scaled so that activations keep their
    magnitude through the depth, with batch-norm statistics that are not the identity.

    Parameters
    ----------
    name : str
        A name in `ZOO`.
    batch : int
        First dimension of the inputs, at least 1.
    seed : int
        Seed of weights and inputs.
    **sizes : int
        What the model lets vary, e.g. ``image_size=64`` or ``layers=2`` (`ZooModel.sizes`).

    Returns
    -------
    module : torch.nn.Module
    example_inputs : tuple of torch.Tensor
        (batch, 3, 224, 224) float32 for the image networks, (batch, 128) int64 token ids for ``bert_base``.

    Raises
    ------
    RegistryError
        If the name is unknown; the message lists the known ones.
    ImportModelError
        If a size is unknown or not positive.
    """
    model = ZOO[name]
    for key, value in {"batch": batch, **sizes}.items():
        if key != "batch" and key not in model.sizes:
            allowed = ", ".join(model.sizes)
            raise ImportModelError(f"zoo:{name}: no size is called {key!r}; allowed: batch, seed, {allowed}")
        if value < 1:
            raise ImportModelError(f"zoo:{name}: {key} is {value}; it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    module, inputs = model.make(batch, generator, **sizes)
    return module.eval(), inputs


def materialise(make: Callable[[], Any], init: Callable[[nn.Module], None]) -> nn.Module:
    """The module that ``make`` builds, its weights written once, by ``init`` alone."""
    with torch.device("meta"):
        module = make()
    module = module.to_empty(device="cpu")
    with torch.no_grad():
        init(module)
    return module
