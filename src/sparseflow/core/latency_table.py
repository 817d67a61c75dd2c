"""How long each layer of a network takes at each structure and density: what an allocation chooses from.

The engine's room measures it, training reads it; between them is one JSON file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sparseflow.core.arrays import Shape
from sparseflow.core.codec import decode
from sparseflow.errors import FormatError

KIND = "latency-table"
DENSE = "dense"


@dataclass(frozen=True)
class LayerOption:
    """One way to prune a layer, and what its fastest kernel then costs.

    Attributes
    ----------
    structure : str
        As `parse_structure` reads it, or ``dense``.
    density : float
        Kept fraction of the weights that was asked for.
    time_s : float
        Of one call.
    nbytes : int
        Packed weights and index.
    kernel : str
        Template and parameters.
    """

    structure: str
    density: float
    time_s: float
    nbytes: int
    kernel: str


@dataclass(frozen=True)
class LayerTimes:
    """The options of one layer, timed in turn in one run.

    Attributes
    ----------
    shape : tuple of int
        Of the weight: OIHW or (out, in).
    """

    shape: Shape
    dense: LayerOption
    options: tuple[LayerOption, ...]


@dataclass(frozen=True)
class LatencyTable:
    """All layers of a network on one machine.

    Attributes
    ----------
    model, machine, target : str
        What was measured, and on what.
    threads : int
    network_s : float
        The whole dense network in one call, measured end to end.
    network_nbytes : int
        Weights of the dense network.
    layers : dict of LayerTimes
        By module name; layers that were not tuned are missing.
    """

    model: str
    machine: str
    target: str
    threads: int
    network_s: float
    network_nbytes: int
    layers: dict[str, LayerTimes]

    @property
    def rest_s(self) -> float:
        """What the network takes beside the layers of the table; a pruning leaves that as it is."""
        return max(0.0, self.network_s - sum(layer.dense.time_s for layer in self.layers.values()))

    @property
    def rest_nbytes(self) -> int:
        """Bytes of the weights that are not in the table."""
        return max(0, self.network_nbytes - sum(layer.dense.nbytes for layer in self.layers.values()))

    @classmethod
    def read(cls, path: str | Path) -> LatencyTable:
        """The table in a file.

        Raises
        ------
        FormatError
            If the file is missing or holds anything else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: cannot be read ({error}); write it with sparseflow tune") from error
        try:
            kind = data.get("kind") if isinstance(data, dict) else None
            if kind != KIND:
                raise FormatError(f"a {kind} was found where a {KIND} is needed")
            # the layers are the cases of its `Records`; beside them stands what was asked for
            return decode(cls, {**data, "layers": data.get("cases")}, partial=True)
        except FormatError as error:
            raise FormatError(f"{path}: {error}; write it with sparseflow tune") from error
