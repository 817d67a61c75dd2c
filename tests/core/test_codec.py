"""What the codec writes it reads back, for every record that goes through it; what does not fit is named."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseflow.core.codec import decode, dumps, encode, loads
from sparseflow.core.element_type import ELEMENT_TYPES, ElementType
from sparseflow.core.formats import PixelBitmap
from sparseflow.core.latency_table import LayerTimes
from sparseflow.core.map_profile import MapProfile
from sparseflow.core.plan import Cut, Plan
from sparseflow.engine.runtime.manifest import Manifest
from sparseflow.engine.runtime.threads import MOST_THREADS
from sparseflow.errors import FormatError
from sparseflow.kernels.lane.attention import Attention
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.ops.pool import Pooling
from sparseflow.passes.map_ops import MapUse
from sparseflow.studies.kernel_results import (
    BreakEvenResults,
    FeatureMapResults,
    KernelResults,
    PublishedResults,
)
from sparseflow.studies.map_results import MapResults
from sparseflow.studies.results import QuickstartResult, read
from sparseflow.studies.stream_results import StreamResults
from sparseflow.studies.sweep_results import SweepResult

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


class Colour(Enum):
    RED = "red"
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5

    def __post_init__(self) -> None:
        if self.x < -1000:
            raise ValueError(f"x={self.x}: allowed: from -1000 on")


@dataclass(frozen=True)
class Everything:
    """One field of each kind."""

    colour: Colour
    mode: Literal["fast", 3]
    whole: int
    part: float
    sure: bool
    text: str
    nothing: None
    maybe: Point | None
    either: int | str | Point
    pair: tuple[int, str]
    points: tuple[Point, ...]
    rows: list[list[float]]
    by_name: dict[str, Point]
    by_number: Mapping[int, bool]
    plain: Any = None
    more: tuple[int, ...] = field(default=())


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type hint, all fields of dataclasses drawn."""
    origin, arguments = get_origin(hint), get_args(hint)
    plain = {
        int: st.integers(-1000, 10**12), float: st.floats(allow_nan=False), bool: st.booleans(),
        str: st.text(max_size=5), types.NoneType: st.none(),
        Any: st.one_of(st.none(), st.integers(), st.lists(st.text(max_size=2), max_size=2)),
    }  # fmt: skip
    if hint in plain:
        return plain[hint]
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list or (origin is tuple and arguments[1:] == (Ellipsis,)):
        return st.lists(values(arguments[0]), max_size=2).map(origin)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if origin in (dict, Mapping):
        return st.dictionaries(*map(values, arguments), max_size=2)
    if issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if hint is ElementType:
        return st.sampled_from(list(ELEMENT_TYPES.values()))
    fields = {
        name: values(inner)
        for name, inner in get_type_hints(hint).items()
        if name in {f.name for f in dataclasses.fields(hint)}
    }
    if hint is Manifest:
        fields["threads"] = st.integers(1, MOST_THREADS)
    if hint is PixelLayout:
        fields["format"] = st.just(PixelBitmap.name)
    return st.builds(hint, **fields)


RECORDS = [
    Everything, Plan, Cut, MapProfile, LayerTimes, Manifest, Attention, PixelLayout, LaneLayout, Pooling, MapUse,
    KernelResults, BreakEvenResults, PublishedResults, FeatureMapResults, MapResults, QuickstartResult, StreamResults,
    SweepResult,
]  # fmt: skip


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_what_is_written_is_read_back(cls: Any) -> None:
    @given(values(cls))
    @settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def holds(record: Any) -> None:
        assert decode(cls, encode(record)) == record
        assert loads(cls, dumps(record)) == record

    holds()


def everything(**changes: Any) -> dict[str, Any]:
    """The JSON data of a whole record."""
    record = Everything(
        Colour.RED, "fast", 1, 0.5, True, "a", None, None, 1, (1, "a"), (Point(1),), [[1.0]], {"k": Point(2)}, {3: True}
    )  # fmt: skip
    return {**encode(record), **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "green"}, "colour: found 'green', expected 'red' or 2"),
        ({"mode": "slow"}, "mode: found 'slow', expected 'fast' or 3"),
        ({"whole": 1.5}, "whole: found 1.5, expected int"),
        ({"whole": True}, "whole: found True, expected int"),
        ({"part": "0.5"}, "part: found '0.5', expected float"),
        ({"sure": 1}, "sure: found 1, expected bool"),
        ({"text": None}, "text: found None, expected str"),
        ({"nothing": 0}, "nothing: found 0, expected None"),
        ({"maybe": []}, "maybe: found [], expected an object (Point)"),
        ({"maybe": {"z": 1}}, "maybe.z: unknown key; allowed: x, y"),
        ({"maybe": {}}, "maybe.x: missing; found: no keys"),
        ({"maybe": {"x": -2000}}, "maybe: x=-2000: allowed: from -1000 on"),
        ({"either": 1.5}, "either: found 1.5, expected int; or either: found 1.5, expected str"),
        ({"pair": [1]}, "pair: found [1], expected a list of 2"),
        ({"points": "ab"}, "points: found 'ab', expected a list"),
        ({"points": [{"x": 1}, {"x": "1"}]}, "points[1].x: found '1', expected int"),
        ({"rows": [[1.0], [None]]}, "rows[1][0]: found None, expected float"),
        ({"by_name": {"k": {"x": 1, "y": []}}}, "by_name['k'].y: found [], expected float"),
        ({"by_name": []}, "by_name: found [], expected an object"),
        ({"by_number": {"a": True}}, "by_number['a']: found 'a', expected a whole number as key"),
        ({"extra": 1}, "extra: unknown key; allowed: colour, mode,"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError) as caught:
        decode(Everything, everything(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_keys_have_their_default_or_are_named() -> None:
    data = everything()
    del data["more"], data["points"][0]["y"]
    assert decode(Everything, data).points == (Point(1, 0.5),)
    del data["whole"]
    with pytest.raises(FormatError, match="whole: missing; found: colour, mode, part"):
        decode(Everything, data)
    with pytest.raises(FormatError, match=r"the whole: found \[\], expected|found \[\], expected an object"):
        decode(Everything, [])


def test_a_part_of_a_file_can_be_read() -> None:
    data = everything(extra=1, maybe={"x": 1, "other": 2})
    assert decode(Everything, data, partial=True).maybe == Point(1)


def test_numpy_scalars_become_numbers() -> None:
    point = Point(np.int64(3), np.float32(0.25))  # type: ignore[arg-type]
    assert json.dumps(encode(point)) == '{"x": 3, "y": 0.25}'
    assert encode({np.int32(1): np.bool_(True)}) == {"1": True}


@pytest.mark.parametrize("value", [object(), {1, 2}, np.zeros(2), {(1, 2): 3}, b"a", Point])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(FormatError, match="cannot be written as JSON; allowed"):
        encode(value)


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(FormatError, match="not JSON"):
        loads(Point, "{")


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("kernels", KernelResults),
        ("break_even", BreakEvenResults),
        ("published", PublishedResults),
        ("feature_maps", FeatureMapResults),
        ("streams", StreamResults),
        ("training", SweepResult),
    ],
)
def test_the_records_in_the_repository_are_read(name: str, cls: Any) -> None:
    data = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    found = read(cls, data, name)
    assert decode(cls, encode(found)) == found
