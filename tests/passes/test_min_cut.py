"""The choice of indexed maps is the best of all choices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sparseflow.passes.min_cut import Edge, Step, choose_indexed, cost_of


def test_a_chain_is_indexed_when_it_pays_for_its_ends() -> None:
    steps = {name: Step((read,), 10.0, 6.0) for name, read in (("a", "x"), ("b", "a"), ("c", "b"))}
    edges = {"x": Edge(5.0, 5.0), "a": Edge(5.0, 5.0), "b": Edge(5.0, 5.0), "c": Edge(5.0, 5.0)}
    assert choose_indexed(steps, edges, ["c"]) == {"a", "b", "c"}
    dear = {**edges, "x": Edge(8.0, 5.0)}
    assert choose_indexed(steps, dear, ["c"]) == frozenset()


def test_one_index_serves_several_readers() -> None:
    steps = {"a": Step(("x",), 10.0, 8.0), "b": Step(("x",), 10.0, 8.0), "c": Step(("x",), 10.0, 8.0)}
    edges = {"x": Edge(5.0, 0.0), "a": Edge(0.0, 0.0), "b": Edge(0.0, 0.0), "c": Edge(0.0, 0.0)}
    assert choose_indexed(steps, edges, ["a", "b", "c"]) == {"a", "b", "c"}


def test_what_cannot_be_indexed_is_not() -> None:
    steps = {"a": Step(("x",), 1.0), "b": Step(("a",), 10.0, 1.0)}
    edges = {"x": Edge(0.0, 0.0), "a": Edge(1.0, 1.0), "b": Edge(1.0, 1.0)}
    assert choose_indexed(steps, edges, ["b"]) == {"b"}


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_is_cheaper(seed: int) -> None:
    random = np.random.default_rng(seed)
    names = list("abcdef")
    steps: dict[str, Step] = {}
    for i, name in enumerate(names):
        before = ["x", *names[:i]]
        reads = tuple(random.choice(before, size=min(len(before), int(random.integers(1, 3))), replace=False))
        indexed = math.inf if random.random() < 0.2 else float(random.random())
        steps[name] = Step(reads, float(random.random()), indexed)
    edges = {name: Edge(*random.random(2).tolist()) for name in ["x", *names]}
    outside = ["f", *(n for n in names[:-1] if random.random() < 0.3)]
    found = choose_indexed(steps, edges, outside)
    each = [frozenset(chosen) for n in range(len(names) + 1) for chosen in itertools.combinations(names, n)]
    best = min(cost_of(chosen, steps, edges, outside) for chosen in each)
    assert cost_of(found, steps, edges, outside) == pytest.approx(best, abs=1e-9)
