"""The report of feature maps: figures from the results and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparseflow.core.codec import encode
from sparseflow.core.map_profile import MapDensity
from sparseflow.errors import SparseflowError
from sparseflow.report import build_document, render_run
from sparseflow.report.document import Bars, Pictures, Table
from sparseflow.studies.map_results import MapLayer, MapResults
from sparseflow.studies.results import read


def density(name: str, shape: tuple[int, ...], mean: float) -> MapDensity:
    spatial = tuple(tuple(mean for _ in range(4)) for _ in range(4))
    return MapDensity(name, shape, 16, mean, 0.05, mean - 0.05, mean + 0.05, 0.9, 0.95, 1.0, 0.8, spatial)


def results() -> MapResults:
    times = {"dense": 4e-5, "weights": 2e-5, "maps": 2.5e-5, "both": 1e-5}
    layers = (
        MapLayer("stem", (8, 3, 3, 3), 1.0, 1000, density("stem", (1, 3, 8, 8), 0.9)),
        MapLayer("body", (16, 8, 3, 3), 0.25, 4000, density("body", (1, 8, 8, 8), 0.2), times),
        MapLayer("head", (5, 16), 1.0, 80, density("head", (1, 16), 0.5)),
    )
    return MapResults("small.pt2", "photos.npy", 16, layers, 1, "a machine")


def test_what_is_left_follows_from_the_densities() -> None:
    found = results()
    body = found.layers[1]
    assert [body.macs(v) for v in ("dense", "weights", "maps", "both")] == [4000, 1000, 800, 200]
    assert (body.map_bytes, body.index_bytes) == (4 * 8 * 64, 64)
    assert (found.layers[2].map_bytes, found.layers[2].index_bytes) == (64, 2)
    assert found.mean_density == pytest.approx((512 * 0.2 + 16 * 0.5) / 528)
    assert found.macs("both") == 1000 + 200 + 40  # the data count as dense


def test_results_survive_json() -> None:
    data = json.loads(json.dumps(encode(results())))
    assert read(MapResults, data, "maps.json") == results()
    del data["layers"][1]["map"]["mean"]
    with pytest.raises(SparseflowError, match=r"maps.json.*layers"):
        read(MapResults, data, "maps.json")


def test_the_report_shows_density_place_work_and_time(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(encode(results())), encoding="utf-8")
    page = render_run(tmp_path).read_text(encoding="utf-8")
    assert "79.1" in page  # percent of zeros: 1 - (512 * 0.2 + 16 * 0.5) / 528
    for text in ("Where they are dense", "Time of each kind of kernel", "10.0", "a machine"):
        assert text in page
    assert (tmp_path / "figures" / "map-density.png").stat().st_size > 1000
    assert (tmp_path / "figures" / "map-places.png").stat().st_size > 1000


def test_figures_and_tables_hold_every_layer() -> None:
    document = build_document(encode(results()))
    (bars,) = [f for f in document.figures() if isinstance(f, Bars)]
    assert [bar.label for bar in bars.bars] == ["stem", "body", "head"]
    assert (bars.bars[1].low, bars.bars[1].high) == (pytest.approx(15.0), pytest.approx(25.0))
    (places,) = [f for f in document.figures() if isinstance(f, Pictures)]
    assert [p.title for p in places.pictures] == ["stem", "body"]
    assert [float(p.values.max()) for p in places.pictures] == pytest.approx([0.9, 0.2])
    tables = [b for s in document.sections for b in s.blocks if isinstance(b, Table)]
    assert [len(t.rows) for t in tables] == [3, 4, 3]


def test_without_times_there_is_no_table_of_times() -> None:
    found = results()
    plain = replace(found, layers=tuple(replace(layer, times_s={}) for layer in found.layers))
    assert "Time of each kind of kernel" not in [s.title for s in build_document(encode(plain)).sections]
