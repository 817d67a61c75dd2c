"""What a sparsity method is, and the registry of methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.mask import Mask
from sparseflow.registry import Registry
from sparseflow.train.rules import Rule, select_targets


class Method(ABC):
    """Leads a model to a structure; used in a training loop of one's own or given to `Trainer` as its hook.

    Parameters
    ----------
    model : nn.Module
    rules : sequence of Rule
        Which layers, which structure, which density; the first match counts.

    Raises
    ------
    StructureError
        If a structure does not fit a layer, or a rule matches nothing.
    """

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule]) -> None:
        self.model = model
        self.targets = select_targets(model, tuple(rules))

    def penalty(self) -> Tensor | None:
        """What to add to the loss of a batch; None for nothing."""
        return None

    def after_step(self) -> None:  # noqa: B027  (a hook that a method may leave empty)
        """Call after each step of the optimiser."""

    def after_epoch(self, epoch: int) -> str:
        """Call with the number of completed epochs; returns a word on the method's state."""
        return ""

    @abstractmethod
    def finish(self) -> dict[str, Mask]:
        """The masks by layer name, from the weights as they are now; the weights are left alone."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs, as tensors and plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue from what `state_dict` returned."""


METHODS: Registry[type[Method]] = Registry("method")


class MaskedWeights:
    """Keeps removed weights at exactly zero while a model is retrained.

    The weights are masked when it is made; `after_step` masks them again, whatever momentum and weight decay
    did.

    Parameters
    ----------
    model : nn.Module
    masks : dict of Mask
        By layer name, as `Method.finish` returns them.
    """

    def __init__(self, model: nn.Module, masks: dict[str, Mask]) -> None:
        self.model = model
        self.masks = masks
        self._removed: dict[str, Tensor] = {}
        self._set({name: torch.from_numpy(~mask.keep) for name, mask in masks.items()})
        self.after_step()

    def penalty(self) -> None:
        """Nothing is added to the loss."""

    def after_step(self) -> None:
        """Set all removed weights to zero."""
        with torch.no_grad():
            for name, removed in self._removed.items():
                self.model.get_submodule(name).weight.masked_fill_(removed, 0.0)

    def after_epoch(self, epoch: int) -> str:
        """The sparsity of the masked layers together."""
        removed = sum(int(r.sum()) for r in self._removed.values())
        total = sum(r.numel() for r in self._removed.values())
        return f"sparsity {removed / max(total, 1):.4f}"

    def state_dict(self) -> dict[str, Any]:
        """The removed positions by layer name."""
        return {name: removed.cpu() for name, removed in self._removed.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the positions of `state_dict`."""
        if {n: tuple(r.shape) for n, r in state.items()} != {n: m.shape for n, m in self.masks.items()}:
            raise ValueError("its masks are of other layers")
        self._set(state)
        self.after_step()

    def _set(self, removed: dict[str, Tensor]) -> None:
        self._removed = {n: r.to(self.model.get_submodule(n).weight.device) for n, r in removed.items()}
