"""Cold weights: how much is read between two calls, and that each timed call comes after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.template import Candidate
from sparseflow.kernels.tuning.cold_weights import ColdWeights, bounds, rounded
from sparseflow.kernels.tuning.selector import Selector, trials
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Workload, dense_covers

NEAR, FAR = bounds(AVX512.caches)
WORKLOAD = Workload("linear", 1, 1024, 1, 1, 1024, covers=dense_covers(), target=AVX512)
WEIGHT = LayerWeight(np.ones((1024, 1024), np.float32), WORKLOAD.weight_shape)


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(0, 0), (NEAR - 1, 0), (NEAR, NEAR), (NEAR + 1, 2 * NEAR), (FAR, FAR), (10 * FAR, FAR)],
)
def test_networks_of_about_one_size_share_measurements(nbytes: int, expected: int) -> None:
    assert rounded(nbytes, AVX512.caches) == expected


def test_every_timed_call_comes_after_all_other_weights_were_read(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(
        ColdWeights, "__call__", lambda self, *_: read.append(sum(a.nbytes for a in self._read))
    )
    candidate = Candidate("few-rows", {"B": 4, "ahead": 0})
    (warm,) = trials(host, WORKLOAD, [candidate], WEIGHT)
    assert warm.seconds(3) > 0
    assert not read
    (cold,) = trials(host, WORKLOAD, [candidate], WEIGHT, between=NEAR)
    assert cold.seconds(3) > 0
    maps = (1024 + 1024) * 4
    assert len(read) >= 3
    assert set(read) == {NEAR + maps}


def test_choices_for_warm_and_cold_weights_are_kept_apart(tmp_path: Path, host: Any) -> None:
    keys = {Selector(host, "machine", folder=tmp_path, between=n)._key(WORKLOAD) for n in (0, NEAR, FAR)}
    assert len(keys) == 3
