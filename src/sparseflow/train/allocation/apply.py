"""An allocation carried out: rules that leave a choice become rules for single layers, with a record beside the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sparseflow.core.files import write_json
from sparseflow.train.allocation.base import Assigned, Problem, Strategy, slots_of
from sparseflow.train.rules import Rule
from sparseflow.train.trainer import Loader


def allocate(
    strategy: Strategy, model: nn.Module, rules: Sequence[Rule], loader: Loader
) -> tuple[Assigned, ...]:
    """What ``strategy`` decides for the layers whose rule leaves a choice.

    Raises
    ------
    StructureError
        If there is no such layer, or the strategy cannot keep its budget.
    """
    return strategy.allocate(Problem(model, slots_of(model, rules), loader))


def resolved(rules: Sequence[Rule], assigned: Sequence[Assigned]) -> tuple[Rule, ...]:
    """The rules with the decisions before them, so that those count first."""
    return (*(a.rule() for a in assigned), *rules)


def recorded(path: Path, fingerprint: str) -> tuple[Assigned, ...] | None:
    """The decisions that `record` wrote for the same run; None if there are none."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["fingerprint"] != fingerprint:
            return None
        return tuple(Assigned.from_json(layer) for layer in data["layers"])
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: it is decided again
        return None


def record(path: Path, fingerprint: str, strategy: str, assigned: Sequence[Assigned]) -> None:
    """Write the decisions beside the run that follows them."""
    layers = [a.to_json() for a in assigned]
    write_json(
        path, {"kind": "allocation", "strategy": strategy, "fingerprint": fingerprint, "layers": layers}
    )
