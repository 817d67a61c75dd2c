"""Cold weights: how much is read between two calls, and that the selector's times depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflow.kernels.cold import FAR, NEAR, rounded
from sparseflow.kernels.select import Selector, trials
from sparseflow.kernels.workload import Candidate, Workload, dense_covers

WORKLOAD = Workload("linear", 1, 1024, 1, 1, 1024, covers=dense_covers())
WEIGHT = np.ones((1024, 1024), np.float32)


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(0, 0), (NEAR - 1, 0), (NEAR, NEAR), (NEAR + 1, 2 * NEAR), (FAR, FAR), (10 * FAR, FAR)],
)
def test_networks_of_about_one_size_share_measurements(nbytes: int, expected: int) -> None:
    assert rounded(nbytes) == expected


def test_a_kernel_that_reads_its_weights_once_is_slower_when_they_are_cold(host: Any) -> None:
    candidate = Candidate("few-rows", {"B": 4})
    (warm,) = trials(host, WORKLOAD, [candidate], WEIGHT)
    (cold,) = trials(host, WORKLOAD, [candidate], WEIGHT, between=FAR)
    assert min(cold.seconds(3) for _ in range(3)) > 1.1 * min(warm.seconds(3) for _ in range(3))


def test_choices_for_warm_and_cold_weights_are_kept_apart(tmp_path: Path, host: Any) -> None:
    keys = {Selector(host, "machine", folder=tmp_path, between=n)._key(WORKLOAD) for n in (0, NEAR, FAR)}
    assert len(keys) == 3
