"""A callback for the Hugging Face Trainer: ``Trainer(callbacks=[SparsityCallback(make)])``. Needs
``sparseflow[transformers]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sparseflow.train import parallel
from sparseflow.train.checkpoint import load_checkpoint, save_checkpoint
from sparseflow.train.integrations.phases import MakeMethod, Phases, PhasesCallback

FILE = "sparsity.ckpt"
"""The callback's file in each of the Trainer's checkpoint folders."""


class SparsityCallback(PhasesCallback, TrainerCallback):
    """Sparsity training with the Hugging Face `Trainer`: the method's epochs, then retraining with its masks.

    It keeps a file of its own in the Trainer's checkpoints, so ``resume_from_checkpoint=True`` goes on with it.

    Parameters
    ----------
    make : callable
        ``make(model) -> method``.
    """

    start = "trainer.train"

    def __init__(self, make: MakeMethod) -> None:
        super().__init__(make)
        self._steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the method, or restore it from the checkpoint that the Trainer resumes from."""
        self._phases = Phases(kwargs["model"], self._make)
        self._steps = max(state.max_steps // max(int(state.num_train_epochs), 1), 1)
        if state.global_step > 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._phases.load_state_dict(load_checkpoint(folder / FILE)["phases"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the method how many steps the epoch has."""
        self._running().begin_epoch(round(state.epoch or 0), self._steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the penalty's gradient; the Trainer has clipped the loss's by now."""
        self._running().before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold the masks."""
        self._running().after_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the method update itself; after its last epoch, mask the weights."""
        self._running().after_epoch(round(state.epoch))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the method's state into the checkpoint."""
        if parallel.rank() == 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_checkpoint(folder / FILE, {"phases": self._running().state_dict()})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model in its structure."""
        self._running().finish()
