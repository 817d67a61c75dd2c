"""What all callbacks share: a method for some epochs, then its masks held to the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from sparseflow.core.mask import Mask
from sparseflow.errors import SparseflowError, first_line
from sparseflow.train import parallel
from sparseflow.train.checkpoint import masks_of, masks_state
from sparseflow.train.methods import InTraining, MaskedWeights, Method

MakeMethod = Callable[[nn.Module], Method]
"""``make(model) -> method``, such as ``lambda model: ADMM(model, rules, AdmmSettings(epochs=4))``."""


class Phases:
    """A method's epochs, then retraining with removed weights at zero; driven by a framework's events.

    Parameters
    ----------
    model : nn.Module
    make : callable
        Makes the method for ``model``; one that does not train is finished at once.

    Attributes
    ----------
    masks : dict of Mask
        By layer name; empty until the method has ended.
    """

    def __init__(self, model: nn.Module, make: MakeMethod) -> None:
        self.model = model
        self.masks: dict[str, Mask] = {}
        method = make(model)
        if isinstance(method, InTraining):
            self.hook: InTraining | MaskedWeights = method
            self._epochs = int(method.settings.epochs)
        else:
            self._epochs = 0
            self._mask(method.finish())

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Call with the number of completed epochs and of the batches to come."""
        self.hook.begin_epoch(epoch, steps)

    def before_step(self) -> None:
        """Call between backward pass and optimiser: adds the penalty's gradient, lets the method change it.

        The penalty is the same in all processes, so it is added to gradients that were averaged already.
        """
        penalty = self.hook.penalty()
        if penalty is not None and penalty.requires_grad:
            owners = [p for p in self.model.parameters() if p.requires_grad]
            found = torch.autograd.grad(penalty, owners, allow_unused=True)
            for parameter, gradient in zip(owners, found, strict=True):
                if gradient is not None:
                    old = parameter.grad
                    parameter.grad = gradient if old is None else old + gradient
        self.hook.before_step()

    def after_step(self) -> None:
        """Call after each step of the optimiser."""
        self.hook.after_step()

    def after_epoch(self, epoch: int) -> str:
        """Call with the number of completed epochs; after the method's last one the weights are masked."""
        parallel.synchronise(self.model)
        detail = self.hook.after_epoch(epoch)
        if isinstance(self.hook, InTraining) and epoch >= self._epochs:
            self._mask(self.hook.finish())
        return detail

    def finish(self) -> dict[str, Mask]:
        """The masks; those of a method that was cut short are made and applied now."""
        if isinstance(self.hook, InTraining):
            self._mask(self.hook.finish())
        return self.masks

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs, as tensors and plain containers."""
        return {"masks": masks_state(self.masks), "hook": self.hook.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises
        ------
        SparseflowError
            If it is of other layers.
        """
        try:
            if state["masks"]:
                self._mask(masks_of(state["masks"]))
            self.hook.load_state_dict(state["hook"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            reason = first_line(error)
            raise SparseflowError(
                f"sparsity callback: the checkpoint does not fit the method ({reason}); resume with the same rules"
            ) from error

    def _mask(self, masks: dict[str, Mask]) -> None:
        self.masks = masks
        self.hook = MaskedWeights(self.model, masks)


class PhasesCallback:
    """What the callbacks of all frameworks have in common.

    Attributes
    ----------
    start : str
        The framework's call that begins the training.
    """

    start: ClassVar[str]

    def __init__(self, make: MakeMethod) -> None:
        self._make = make
        self._phases: Phases | None = None

    @property
    def masks(self) -> dict[str, Mask]:
        """The masks by layer name; empty until the method has ended.

        Raises
        ------
        SparseflowError
            Before the training has begun.
        """
        return self._running().masks

    def _running(self) -> Phases:
        if self._phases is None:
            raise SparseflowError(f"sparsity callback: the training has not begun; call {self.start} first")
        return self._phases
