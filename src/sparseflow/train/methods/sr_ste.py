"""SR-STE: dense latent weights trained through their mask, with a pull on those that the mask removes."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from sparseflow.core.mask import Mask
from sparseflow.train.methods.base import METHODS, TrainingSettings
from sparseflow.train.methods.scored import TrainedCriterion
from sparseflow.train.methods.straight_through import StraightThrough


class SrSteSettings(TrainingSettings):
    """The pull on removed weights, and what they are judged by.

    Parameters
    ----------
    decay : float
        λ_W of the paper; 0 gives the plain straight-through estimator.
    update_every : int
        Steps between two masks; the paper makes them anew at each step.
    criterion : str
        The paper takes magnitudes.
    """

    decay: float = Field(default=2e-4, ge=0)
    update_every: int = Field(default=1, ge=1)
    criterion: TrainedCriterion = "magnitude"


@METHODS.register("sr_ste")
class SrSte(StraightThrough):
    """Sparse-refined straight-through estimator: ``W ← W − γ(∇L(W̃) + λ (1 − M) ⊙ W)``, where ``W̃ = M ⊙ W``.

    M keeps the latent weights of the highest scores in the structure's form, anew at every step, so that weights can
    come back. The pull λ shrinks the removed ones, which keeps the masks from flipping back and forth. The
    paper does it for N:M; nothing in it depends on that.

    References
    ----------
    A. Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR 2021,
    section 4.2, equation 9.
    """

    Settings = SrSteSettings
    settings: SrSteSettings
    when = "N:M, from scratch or from a dense network; any other structure too"

    def masks_now(self) -> dict[str, Mask] | None:
        """The masks of the highest scores, every ``update_every`` steps."""
        return self.final_masks() if self.step % self.settings.update_every == 0 else None

    def final_masks(self) -> dict[str, Mask]:
        """The masks of the highest scores."""
        return self.masks_by(self.scores)

    def shape_gradient(self, weight: nn.Parameter, latent: Tensor, keep: Tensor, name: str) -> None:
        """Add ``λ (1 − M) ⊙ W`` to the gradient."""
        weight.grad.add_(latent * ~keep, alpha=self.settings.decay)
