"""Checkpoints, weights and exported models as files that are whole or not there; the random generators' state."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseflow.core.files import BROKEN_FILE, complete_file
from sparseflow.core.mask import Mask
from sparseflow.core.structures import parse_structure
from sparseflow.errors import CheckpointError, first_line

_MAGIC = "sparseflow checkpoint 1"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain containers) so that ``path`` always holds a complete file."""
    with complete_file(path) as partial:
        torch.save({"magic": _MAGIC, **state}, partial)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; only tensors and plain containers are admitted.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated or no checkpoint of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; start the training first") from None
    except BROKEN_FILE as e:
        raise CheckpointError(
            f"{path}: truncated or not a checkpoint ({first_line(e)}); delete it to start again"
        ) from e
    if not isinstance(state, dict) or state.get("magic") != _MAGIC:
        raise CheckpointError(f"{path}: not a sparseflow checkpoint; delete it or choose another folder")
    return state


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state dictionary (contiguous, on the CPU), complete or not at all."""
    with complete_file(path) as partial:
        torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, partial)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a plain state dictionary; nothing but tensors is admitted.

    Raises
    ------
    CheckpointError
        If the file is missing or truncated, or does not fit the model.
    """
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except BROKEN_FILE as error:
        raise CheckpointError(
            f"{path}: no weights for this model ({first_line(error)}); give another file"
        ) from error


def masks_state(masks: Mapping[str, Mask]) -> dict[str, list[Any]]:
    """Masks as tensors and plain containers."""
    return {name: [str(m.structure), torch.from_numpy(m.keep.copy())] for name, m in masks.items()}


def masks_of(state: Mapping[str, Any]) -> dict[str, Mask]:
    """What `masks_state` was given."""
    return {name: Mask(keep.numpy(), parse_structure(text)) for name, (text, keep) in state.items()}


def export_model(model: nn.Module, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    """Export with `torch.export`, in evaluation mode, for the example's shape; complete or not at all."""
    program = torch.export.export(model.eval(), example_inputs)
    with complete_file(path) as partial:
        torch.export.save(program, partial)


def random_state() -> dict[str, Any]:
    """The state of torch's, Python's and NumPy's global generators, as tensors and plain containers."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
