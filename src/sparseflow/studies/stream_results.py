"""The file of the stream benchmark, and reading it back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter

from sparseflow.core.stream_speed import StreamRun
from sparseflow.studies.results import read


@dataclass(frozen=True)
class StreamResults:
    """The file of ``benchmarks/streams.py``."""

    machine: str
    model: str = ""
    cases: dict[str, StreamRun] = field(default_factory=dict)
    command: str = ""
    kind: Literal["streams"] = "streams"


def from_json(data: object, where: str) -> StreamResults:
    """The inverse of `studies.kernel_results.to_json`.

    Raises
    ------
    SparseflowError
        With the path of the first wrong entry.
    """
    found: StreamResults = read(TypeAdapter(StreamResults), data, where)
    return found
