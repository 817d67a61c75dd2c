"""Channels that belong together across layers: found, chosen together, held silent, removed."""

from sparseflow.train.coupled.channels import CoupledChannels
from sparseflow.train.coupled.wiring import Ports, Wiring, wiring_of

__all__ = ["CoupledChannels", "Ports", "Wiring", "wiring_of"]
