"""Erdős–Rényi kernels: small layers stay denser."""

from __future__ import annotations

from typing import Literal

from sparseflow.train.allocation.base import STRATEGIES, Proportional, Slot


@STRATEGIES.register("erk")
class ErdosRenyiKernel(Proportional):
    """Densities in proportion to ``(out + in + kh + kw) / (out · in · kh · kw)``, at most what the structure keeps.

    References
    ----------
    U. Evci et al., "Rigging the lottery: making all tickets winners", ICML 2020, section 3, paragraph (1).
    """

    strategy: Literal["erk"] = "erk"

    def share(self, slot: Slot) -> float:
        """See `Proportional`."""
        return sum(slot.shape) / slot.size
