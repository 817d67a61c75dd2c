"""Hooks of the trainer that work on activations, alone or several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sparseflow.train.methods import MaskedWeights
from sparseflow.train.trainer import Hook


class MapHook(Hook):
    """A `Hook` that hangs on modules until it is closed."""

    handles: Sequence[RemovableHandle] = ()

    def close(self) -> None:
        """Take it off the model, which stays as it is."""
        for handle in self.handles:
            handle.remove()


class MapHooks(Hook):
    """Several hooks as one: their penalties are added, all else is done in turn.

    Parameters
    ----------
    hooks : sequence of MapHook
    masked : MaskedWeights, optional
        Holds removed weights at zero meanwhile.
    """

    def __init__(self, hooks: Sequence[MapHook], masked: MaskedWeights | None = None) -> None:
        self.hooks = tuple(hooks)
        self._all: tuple[Hook, ...] = (*self.hooks, *([masked] if masked is not None else []))

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """See `Hook`."""
        for hook in self._all:
            hook.begin_epoch(epoch, steps)

    def penalty(self) -> Tensor | None:
        """The sum of the penalties; None if there is none."""
        found = [p for hook in self._all if (p := hook.penalty()) is not None]
        return torch.stack(found).sum() if found else None

    def before_step(self) -> None:
        """See `Hook`."""
        for hook in self._all:
            hook.before_step()

    def after_step(self) -> None:
        """See `Hook`."""
        for hook in self._all:
            hook.after_step()

    def after_epoch(self, epoch: int) -> str:
        """What each has to say."""
        return " ".join(text for hook in self._all if (text := hook.after_epoch(epoch)))

    def state_dict(self) -> dict[str, Any]:
        """The states by position."""
        return {str(i): hook.state_dict() for i, hook in enumerate(self._all)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for i, hook in enumerate(self._all):
            hook.load_state_dict(state[str(i)])

    def close(self) -> None:
        """Take all off the model."""
        for hook in self.hooks:
            hook.close()
