"""One-shot magnitude pruning."""

from __future__ import annotations

from sparseflow.core.mask import Mask
from sparseflow.train.methods.base import METHODS, OneShot
from sparseflow.train.rules import scores_of


@METHODS.register("magnitude")
class Magnitude(OneShot):
    """Keeps the units with the largest mean magnitude; nothing is trained.

    References
    ----------
    S. Han et al., "Learning both weights and connections for efficient neural networks", NIPS 2015,
    section 3.
    """

    when = "a first look at speed, or moderate sparsity before a long retraining"

    def finish(self) -> dict[str, Mask]:
        """The masks of the weights as they are now."""
        return {t.name: t.structure.mask(scores_of(self.weight(t)), t.density) for t in self.targets}
