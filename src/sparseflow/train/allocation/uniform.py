"""The same density everywhere."""

from __future__ import annotations

from typing import Literal

from sparseflow.train.allocation.base import STRATEGIES, Proportional, Slot


@STRATEGIES.register("uniform")
class Uniform(Proportional):
    """Every layer gets the same density; what a structure cannot keep is shared out among the others."""

    strategy: Literal["uniform"] = "uniform"

    def share(self, slot: Slot) -> float:
        """See `Proportional`."""
        return 1.0
