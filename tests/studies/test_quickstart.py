import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparseflow.core.codec import decode
from sparseflow.core.structures import parse_structure
from sparseflow.engine.measure.peers import float_peers
from sparseflow.errors import CheckpointError, InputError, RecipeError, SparseflowError
from sparseflow.report import render_run
from sparseflow.studies.quickstart import QuickstartSettings, run, stored_bytes, variant_name
from sparseflow.studies.results import DENSE, OURS, QuickstartResult
from sparseflow.studies.stages import StageEvent
from sparseflow.train.progress import TrainEvent

TINY = QuickstartSettings(("block:4x1",), against=(), max_epochs=1, measure=False, rounds=1)


def test_variant_names_are_file_names() -> None:
    names = [variant_name(s) for s in ("unstructured", "block:4x1", "pattern:4+connectivity")]
    assert names == ["unstructured", "block-4x1", "pattern-4-connectivity"]


def test_stored_bytes_sums_the_layers_and_keeps_common_formats() -> None:
    rng = np.random.default_rng(0)
    sparse = rng.standard_normal((8, 4, 3, 3)).astype(np.float32) * (rng.random((8, 4, 3, 3)) < 0.1)
    once, twice = stored_bytes([sparse]), stored_bytes([sparse, sparse])
    assert once[0].format == DENSE
    assert once[0].total_bytes == sparse.nbytes
    assert [e.total_bytes for e in once[1:]] == sorted(e.total_bytes for e in once[1:])
    assert {e.format: 2 * e.total_bytes for e in once} == {e.format: e.total_bytes for e in twice}
    rows_apart = stored_bytes([sparse, np.ones((6, 4), np.float32)])
    assert {e.format for e in rows_apart} <= {e.format for e in once}


@pytest.mark.parametrize(
    ("settings", "threads", "error", "message"),
    [
        (QuickstartSettings(structures=()), 1, InputError, "no structures given"),
        (QuickstartSettings(structures=("blob:4",)), 1, RecipeError, "blob"),
        (TINY, 0, InputError, "threads=0: allowed"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(
    settings: QuickstartSettings, threads: int, error: type[SparseflowError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        run(tmp_path / "out", threads=threads, settings=settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class Events:
    """What a run did: the stages that it worked on, those it kept, and whether it trained."""

    def __init__(self) -> None:
        self.worked: list[str] = []
        self.kept: list[str] = []
        self.trained = False

    def __call__(self, event: StageEvent | TrainEvent) -> None:
        if isinstance(event, TrainEvent):
            self.trained = True
        elif event.status != "running":
            (self.worked if event.status == "done" else self.kept).append(event.name)


@pytest.mark.slow
def test_a_second_run_only_does_what_is_missing(tmp_path: Path) -> None:
    first = Events()
    one = run(tmp_path, settings=TINY, progress=first)
    assert first.trained
    assert first.kept == []
    stages = first.worked
    assert stages == [f"{s}-{n}" for s in ("train", "store", "compile") for n in (DENSE, "block-4x1")] + [
        "measure"
    ]

    second = Events()
    assert run(tmp_path, settings=TINY, progress=second) == one
    assert (second.worked, second.kept, second.trained) == ([], stages, False)

    shutil.rmtree(tmp_path / "engines" / "block-4x1")
    third = Events()
    again = run(tmp_path, settings=TINY, progress=third)
    assert third.worked == ["compile-block-4x1"]
    assert again.variants == one.variants
    assert again.timings == one.timings

    (tmp_path / "stages" / "measure.json").unlink()
    fourth = Events()
    run(tmp_path, settings=TINY, progress=fourth)
    assert fourth.worked == ["measure"]

    with pytest.raises(CheckpointError, match="choose another"):
        run(tmp_path, seed=5, settings=TINY)


@pytest.mark.slow
def test_the_whole_study_with_short_training(tmp_path: Path) -> None:
    settings = QuickstartSettings(max_epochs=1, rounds=3)
    result = run(tmp_path, settings=settings)
    saved = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert decode(QuickstartResult, saved) == result
    assert [v.structure for v in result.variants] == [DENSE, *settings.structures]
    dense, *pruned = result.variants
    assert dense.accuracy_engine > 0.85
    for variant in result.variants:
        assert variant.max_relative_error <= 1e-4
        assert variant.accuracy_engine == pytest.approx(variant.accuracy_torch, abs=0.0021)
        assert len(variant.plan.layers) == 5
    for variant, mask in zip(pruned, result.masks[1:], strict=True):
        assert variant.compression >= 8
        assert variant.weights_total == dense.weights_total
        assert parse_structure(variant.structure).admits(mask.keep())
        assert variant.index_bytes > 0
        assert variant.macs_computed < 0.5 * dense.macs_computed
        assert variant.tiles_computed < variant.tiles_total
        found = [layer for layer in variant.plan.layers if layer.density < 0.2]
        assert len(found) == 3
    skipped = {note.split()[0] for note in result.notes if "not timed" in note}
    timed = {(t.engine, t.variant) for t in result.timings}
    assert {v.name for v in result.variants} == {name for engine, name in timed if engine == OURS}
    assert {engine for engine, _ in timed} | skipped == {OURS, *float_peers()}
    assert "torch" not in skipped
    fastest = max(result.speedup_vs_dense(v.name) or 0.0 for v in pruned)
    assert fastest > 1.2  # three of four layers lost 88 % of their work
    assert render_run(tmp_path).stat().st_size > 20_000
