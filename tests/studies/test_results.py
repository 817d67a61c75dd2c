import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow.core.codec import encode
from sparseflow.core.plan import Measurement, Plan
from sparseflow.errors import SparseflowError
from sparseflow.studies.results import (
    Environment,
    FormatBytes,
    MaskPicture,
    QuickstartResult,
    Timing,
    Variant,
    read,
)


def result(times: dict[tuple[str, str], float]) -> QuickstartResult:
    def variant(name: str, kept: int, accuracy: float) -> Variant:
        storage = (FormatBytes("csr", 4 * kept, 4 * kept),)
        plan = Plan((), "llvm", 1, True)
        return Variant(name, name, 1000, kept, accuracy, accuracy, 1e-7, storage, plan)

    timings = tuple(
        Timing(engine, name, Measurement(s, s, s, s, 9, 1, "cpu")) for (engine, name), s in times.items()
    )
    mask = MaskPicture.of("conv", "dense", np.ones((2, 3), dtype=np.bool_))
    environment = Environment("cpu", {"torch": "2"}, "run", "2026-01-01", 1, 0)
    variants = (variant("dense", 1000, 0.99), variant("block", 125, 0.985))
    return QuickstartResult(variants, timings, (mask,), environment, "data", 10, 5, {"train": 1.0})


TIMES = {
    ("sparseflow", "dense"): 4e-3,
    ("sparseflow", "block"): 1e-3,
    ("a", "dense"): 5e-3,
    ("b", "dense"): 3e-3,
}


def test_json_round_trip_is_exact() -> None:
    one = result(TIMES)
    assert read(QuickstartResult, json.loads(json.dumps(encode(one))), "here") == one


def test_ratios_come_from_the_records() -> None:
    one = result(TIMES)
    assert one.speedup_vs_dense("block") == pytest.approx(4.0)
    assert one.best_peer is not None
    assert one.best_peer.engine == "b"
    assert one.speedup_vs_best_peer("block") == pytest.approx(3.0)
    assert one.points_lost("block") == pytest.approx(0.5)
    assert one.variant("block").sparsity == pytest.approx(0.875)
    assert one.variant("block").compression == pytest.approx(8.0)


def test_no_peer_means_no_ratio() -> None:
    one = result({("sparseflow", "dense"): 4e-3})
    assert one.best_peer is None
    assert one.speedup_vs_best_peer("dense") is None
    assert one.speedup_vs_dense("block") is None


def test_an_unknown_variant_lists_the_known() -> None:
    with pytest.raises(SparseflowError, match="no variant 'filter'; it has dense, block"):
        result(TIMES).variant("filter")


def test_damage_names_the_entry() -> None:
    data = encode(result(TIMES))
    data["timings"][1]["measurement"]["median_s"] = "soon"
    with pytest.raises(
        SparseflowError, match=r"here: timings\[1\]\.measurement\.median_s: .*run again"
    ) as caught:
        read(QuickstartResult, data, "here")
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**31))
def test_masks_survive_packing(shape: list[int], seed: int) -> None:
    keep = np.random.default_rng(seed).random(shape) < 0.4
    np.testing.assert_array_equal(MaskPicture.of("l", "v", keep).keep(), keep)


@pytest.mark.parametrize("bits", ["!!", "AAAA"])
def test_masks_of_the_wrong_size_are_refused(bits: str) -> None:
    mask = dataclasses.replace(MaskPicture.of("l", "v", np.ones((4, 2), dtype=np.bool_)), bits=bits)
    with pytest.raises(SparseflowError, match="mask of 'l'"):
        mask.keep()
