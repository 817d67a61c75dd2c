"""A callback for Lightning: ``Trainer(callbacks=[SparsityCallback(make)])``. Needs ``sparseflow[lightning]``."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning

from sparseflow.train.integrations.phases import MakeMethod, Phases, PhasesCallback


class SparsityCallback(PhasesCallback, lightning.Callback):
    """Sparsity training of a `LightningModule`: the method's epochs, then retraining with its masks.

    Its state is part of Lightning's checkpoints, so ``trainer.fit(..., ckpt_path=...)`` goes on with it.

    Parameters
    ----------
    make : callable
        ``make(module) -> method``; rules see the names of the `LightningModule`'s submodules.
    """

    start = "trainer.fit"

    def __init__(self, make: MakeMethod) -> None:
        super().__init__(make)
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the method, or restore it from a checkpoint."""
        self._phases = Phases(pl_module, self._make)
        if self._saved is not None:
            self._phases.load_state_dict(self._saved)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the method how many steps the epoch has."""
        self._running().begin_epoch(trainer.current_epoch, int(trainer.num_training_batches))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add the penalty's gradient."""
        self._running().before_step()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hold the masks, after the batches that ended in a step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch:
            self._running().after_step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the method update itself; after its last epoch, mask the weights."""
        self._running().after_epoch(trainer.current_epoch + 1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the model in its structure."""
        self._running().finish()

    def state_dict(self) -> dict[str, Any]:
        """Part of Lightning's checkpoint."""
        return {} if self._phases is None else self._phases.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the training starts."""
        self._saved = state_dict or None
