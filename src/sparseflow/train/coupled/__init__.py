"""Channels that belong together across layers: found, chosen together, held silent, removed."""

from sparseflow.train.coupled.channels import CoupledChannels, coupled_rules
from sparseflow.train.coupled.wiring import wiring_of

__all__ = ["CoupledChannels", "coupled_rules", "wiring_of"]
