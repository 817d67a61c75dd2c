"""The files of the kernel benchmarks, and reading them back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from sparseflow.core.kernel_speed import KernelRun, Limits, PublishedPoint, SpeedPoint
from sparseflow.core.map_speed import MapRun
from sparseflow.studies.results import read


@dataclass(frozen=True)
class KernelResults:
    """The file of ``benchmarks/kernels.py``."""

    machine: str
    limits: Limits
    cases: dict[str, KernelRun] = field(default_factory=dict)
    command: str = ""
    kind: Literal["kernels"] = "kernels"


@dataclass(frozen=True)
class BreakEvenResults:
    """The file of ``benchmarks/break_even.py``."""

    machine: str
    cases: dict[str, SpeedPoint] = field(default_factory=dict)
    command: str = ""
    kind: Literal["break-even"] = "break-even"


@dataclass(frozen=True)
class PublishedResults:
    """The file of ``benchmarks/published.py``."""

    machine: str
    cases: dict[str, PublishedPoint] = field(default_factory=dict)
    command: str = ""
    kind: Literal["published"] = "published"


@dataclass(frozen=True)
class FeatureMapResults:
    """The file of ``benchmarks/feature_maps.py``."""

    machine: str
    cases: dict[str, MapRun] = field(default_factory=dict)
    command: str = ""
    kind: Literal["feature-maps"] = "feature-maps"


Results = KernelResults | BreakEvenResults | PublishedResults | FeatureMapResults
_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "kernels": TypeAdapter(KernelResults),
    "break-even": TypeAdapter(BreakEvenResults),
    "published": TypeAdapter(PublishedResults),
    "feature-maps": TypeAdapter(FeatureMapResults),
}


def to_json(results: Any) -> dict[str, Any]:
    """Results, or one record of them, as a JSON object."""
    data: dict[str, Any] = TypeAdapter(type(results)).dump_python(results, mode="json")
    return data


def from_json(kind: str, data: object, where: str) -> Any:
    """The inverse of `to_json` for a whole file.

    Raises
    ------
    SparseflowError
        With the path of the first wrong entry.
    """
    return read(_ADAPTERS[kind], data, where)
