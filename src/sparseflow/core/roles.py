"""Which layers of a network have a role that keeps them dense unless it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from sparseflow.core.arrays import Shape

ROLES = ("stem", "depthwise", "classifier")
STEM_CHANNELS = 4
"""A convolution that reads at most this many channels reads an image."""


def roles_of(layers: Sequence[tuple[Shape, int]]) -> tuple[str, ...]:
    """The role of each layer, ``""`` for most; a network of one layer has none to spare.

    ``stem`` is the first convolution, and any that reads at most four channels; ``depthwise`` a convolution whose
    groups have one input channel each; ``classifier`` the last layer if it is linear. Other grouped convolutions have
    no role: their groups are pruned like any layer.

    Parameters
    ----------
    layers : sequence of (shape, groups)
        Of each weight, (out, in / groups, *kernel), in the network's order; two axes are a linear layer.
    """
    first = next((i for i, (shape, _) in enumerate(layers) if len(shape) > 2), None)

    def role(i: int, shape: Shape, groups: int) -> str:
        if len(layers) == 1:
            return ""
        if len(shape) == 2:
            return "classifier" if i == len(layers) - 1 else ""
        if i == first or shape[1] * groups <= STEM_CHANNELS:
            return "stem"
        return "depthwise" if groups > 1 and shape[1] == 1 else ""

    return tuple(role(i, shape, groups) for i, (shape, groups) in enumerate(layers))
