"""The selector: measured once and kept, safe against damage and company, or ranked by the cost model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflow.errors import CompileError
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.template import TEMPLATES
from sparseflow.kernels.tuning import selector as select
from sparseflow.kernels.tuning.selector import Choice, Selector, cache_folder, code_fingerprint
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Workload, covers_of, dense_covers

VALUES = np.random.default_rng(0).standard_normal((20, 16)).astype(np.float32)
WORKLOAD = Workload("linear", 1, 16, 1, 2, 20, bias=True, covers=covers_of(VALUES), target=AVX512)
WEIGHT = LayerWeight(VALUES, WORKLOAD.weight_shape)


class Told(list[str]):
    """Collects what was measured; called by the selector."""

    def __call__(self, label: str) -> None:
        self.append(label)


def _selector(folder: Path, host: Any, told: Told, **changes: Any) -> Selector:
    fields = {"target": host, "machine": "test machine", "measure": True, **changes}
    return Selector(progress=told, folder=folder, **fields)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_was_measured_is_not_measured_again(tmp_path: Path, host: Any) -> None:
    told = Told()
    first = _selector(tmp_path, host, told)
    choice = first.choose(WORKLOAD, WEIGHT, "fc")
    assert told == ["fc"]
    assert all(t.measured and t.time_s > 0 for t in choice.times)
    assert [t.time_s for t in choice.times] == sorted(t.time_s for t in choice.times)
    assert choice.best.template == choice.times[0].template
    assert {r.template for r in choice.rejected} | {t.template for t in choice.times} == set(TEMPLATES)
    assert first.choose(WORKLOAD, WEIGHT, "again") is choice
    assert _selector(tmp_path, host, told).choose(WORKLOAD, WEIGHT, "from disk") == choice
    assert told == ["fc"]


def test_the_cache_holds_one_whole_file_for_each_workload(tmp_path: Path, host: Any) -> None:
    _selector(tmp_path, host, Told()).choose(WORKLOAD, WEIGHT)
    (path,) = _files(tmp_path)
    assert path.suffix == ".json"
    data = json.loads(path.read_text())
    assert json.loads(data["key"])["machine"] == "test machine"
    assert data["times"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"key": 1}', "\udcff", '{"times": []}', "KEYED", "KEYED_TIMES", "KEYED_UNKNOWN"],
)
def test_a_damaged_cache_file_is_measured_anew(text: str, tmp_path: Path, host: Any) -> None:
    told = Told()
    _selector(tmp_path, host, told).choose(WORKLOAD, WEIGHT, "first")
    (path,) = _files(tmp_path)
    whole = json.loads(path.read_text())
    if text == "KEYED":
        text = json.dumps({"key": whole["key"]})
    elif text == "KEYED_TIMES":
        text = json.dumps({"key": whole["key"], "times": [], "rejected": []})
    elif text == "KEYED_UNKNOWN":
        times = [{"template": "gone", "parameters": {}, "time_s": 1.0, "measured": True}]
        text = json.dumps({"key": whole["key"], "times": times, "rejected": []})
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    choice = _selector(tmp_path, host, told).choose(WORKLOAD, WEIGHT, "second")
    assert told == ["first", "second"]
    assert choice.times
    assert json.loads(path.read_text())["times"]


def test_the_key_changes_with_all_that_decides_the_time(tmp_path: Path, host: Any) -> None:
    def key(workload: Workload = WORKLOAD, **changes: Any) -> str:
        return _selector(tmp_path, host, Told(), **changes)._key(workload)

    keys = {
        key(),
        key(machine="another machine"),
        key(target="llvm -mcpu=other"),
        *(
            key(replace(WORKLOAD, **change))
            for change in (
                {"threads": 2},
                {"width": 3},
                {"filters": 21},
                {"bias": False},
                {"residual": True},
                {"activation": "relu"},
                {"covers": dense_covers()[:1]},
                {"stride": (2, 2)},
            )
        ),
    }
    assert len(keys) == 11
    assert json.loads(key())["code"] == code_fingerprint()


@pytest.mark.parametrize("density", [0.5, 0.994, 0.995, 0.9999])
def test_each_candidate_and_each_reason_is_listed_once(density: float, tmp_path: Path, host: Any) -> None:
    """A density just below 1 once had the key of 1, and everything came twice."""
    w = replace(WORKLOAD, map_density=density)
    choice = _selector(tmp_path, host, Told(), measure=False).choose(w, WEIGHT)
    names = [t.label for t in choice.times]
    assert len(set(names)) == len(names)
    reasons = [r.template for r in choice.rejected]
    assert len(set(reasons)) == len(reasons)
    assert w.key() != WORKLOAD.key()


def test_densities_that_differ_little_share_a_choice(tmp_path: Path, host: Any) -> None:
    selector = _selector(tmp_path, host, Told())
    a, b = (replace(WORKLOAD, covers=((1, d),)) for d in (0.1001, 0.1049))
    assert selector._key(a) == selector._key(b)
    assert selector._key(a) != selector._key(replace(WORKLOAD, covers=((1, 0.2),)))


def test_without_measuring_the_model_ranks_and_nothing_is_written(tmp_path: Path, host: Any) -> None:
    told = Told()
    w = Workload(
        "conv2d", 1, 64, 14, 14, 64, (3, 3), padding=(1, 1, 1, 1), covers=dense_covers(), target=AVX512
    )
    choice = _selector(tmp_path / "none", host, told, measure=False).choose(
        w, LayerWeight(np.ones(w.weight_shape), w.weight_shape)
    )
    times = [t.time_s for t in choice.times]
    assert times == sorted(times)
    assert not any(t.measured for t in choice.times)
    assert told == []
    assert not (tmp_path / "none").exists()
    for t in choice.times:
        candidate = select.Candidate(t.template, t.parameters)
        assert t.time_s * host.clock_hz == pytest.approx(TEMPLATES[t.template].predict_cycles(w, candidate))


def test_a_sparse_weight_chooses_a_sparse_kernel_by_model(tmp_path: Path, host: Any) -> None:
    weight = np.zeros((64, 64, 3, 3), np.float32)
    weight[:, ::16] = 1.0
    w = Workload(
        "conv2d", 1, 64, 14, 14, 64, (3, 3), padding=(1, 1, 1, 1), covers=covers_of(weight), target=AVX512
    )
    choice = _selector(tmp_path, host, Told(), measure=False).choose(w, LayerWeight(weight, w.weight_shape))
    assert TEMPLATES[choice.best.template].format == "tap-list"


def test_a_workload_that_nothing_takes_is_an_error(tmp_path: Path, host: Any, monkeypatch: Any) -> None:
    for template in TEMPLATES.values():
        monkeypatch.setattr(type(template), "rejects", lambda _self, _w: "not today")
    with pytest.raises(CompileError, match=r"no kernel for linear .*not today") as caught:
        _selector(tmp_path, host, Told(), measure=False).choose(WORKLOAD, WEIGHT)
    assert "\n" not in str(caught.value)


def test_an_unwritable_cache_does_not_stop_the_compilation(tmp_path: Path, host: Any) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    choice = _selector(blocked / "choices", host, Told()).choose(WORKLOAD, WEIGHT)
    assert choice.times[0].measured


def test_the_folder_follows_the_environment(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "choices"
    monkeypatch.delenv("SPARSEFLOW_CACHE")
    assert cache_folder().name == "choices"


WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from sparseflow.core.plan import CandidateTime
from sparseflow.kernels.tuning.selector import Choice, Selector
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.workload import Workload
selector = Selector(AVX512, "machine", True, folder=Path(sys.argv[1]))
key = selector._key(Workload("linear", 1, 4, 1, 1, 4, target=AVX512))
for i in range(100):
    times = tuple(CandidateTime("few-rows", {"B": b}, 1.0, True) for b in range(int(sys.argv[2])))
    selector._store(key, Choice(times, ()))
    found = selector._load(key)
    assert found is not None and len(found.times) in (3, 400), found
print("whole")
"""


def test_processes_at_once_never_see_half_a_file(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), n],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in ("3", "400")
    ]
    results = [(*w.communicate(timeout=500), w.returncode) for w in workers]
    assert [(out.strip(), code) for out, _, code in results] == [("whole", 0)] * 2, results
    assert [p.suffix for p in _files(tmp_path)] == [".json"]


class Slow:
    """A trial that takes a known time."""

    def __init__(self, seconds: float) -> None:
        self.each, self.calls = seconds, 0

    def seconds(self, number: int) -> float:
        self.calls += number
        time.sleep(self.each * min(number, 2) / 100)
        return self.each


def test_trials_are_timed_in_turn() -> None:
    trials: list[Any] = [Slow(0.002), Slow(0.0001)]
    assert select.time_interleaved(trials, rounds=3) == [0.002, 0.0001]
    assert trials[0].calls == 2 + 3
    assert trials[1].calls == 2 + 3 * 10


def test_the_best_is_the_first() -> None:
    times = tuple(select.CandidateTime("direct", {"R": r}, t, True) for r, t in ((4, 1.0), (8, 2.0)))
    assert Choice(times, ()).best.parameters["R"] == 4


def test_a_trial_of_an_indexed_map_is_as_dense_as_calibrated(host: Any) -> None:
    w = Workload(
        "conv2d",
        1,
        40,
        12,
        12,
        32,
        (3, 3),
        padding=(1, 1, 1, 1),
        covers=dense_covers(),
        map_density=0.25,
        target=AVX512,
    )
    found = TEMPLATES["pixel-dense"].candidates(w)[:1]
    (trial,) = select.trials(host, w, found, LayerWeight(np.ones(w.weight_shape, np.float32), w.weight_shape))
    assert trial.seconds(1) > 0
    values, bits = (a.numpy() for a in trial.arguments[:2])
    assert np.mean(values.reshape(-1, 48)[:, :40] != 0) == pytest.approx(0.25, abs=0.02)
    assert sum(int(b).bit_count() for b in bits.reshape(-1)) == np.count_nonzero(values)
