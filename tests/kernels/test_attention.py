"""Attention on lanes against torch: lengths that fill no vector, masks of every form, threads, narrow vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core.codec import dumps, loads
from sparseflow.core.element_type import BFLOAT16, FLOAT32, ElementType
from sparseflow.kernels.lane.attention import Attention, attention, pairs, walks
from sparseflow.kernels.layouts.lane import LaneLayout, canonical
from tests.kernels.conftest import NEEDS_PAIRS

RNG = np.random.default_rng(5)


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


class Case:
    """One attention whose operands may lie inside wider tensors."""

    def __init__(
        self, shape: Attention, lanes: int = 16, threads: int = 1, element: ElementType = FLOAT32
    ) -> None:
        self.shape, self.lanes, self.threads = shape, lanes, threads
        width = shape.heads * shape.size
        self.inputs = [
            _random(shape.batch, tokens, first + width + (3 if first else 0))
            for first, tokens in zip(shape.first, (shape.queries, shape.keys, shape.keys), strict=True)
        ]
        self.mask = 3 * _random(*shape.mask) if shape.mask else None
        sizes = [(x.shape[2], x.shape[1]) for x in self.inputs]
        q, k, v = (canonical(features, 1, tokens, lanes, element) for features, tokens in sizes)
        self.layouts = (q, k, v, canonical(width, 1, shape.queries, lanes, element))
        self.inputs = [element.rounded(x) for x in self.inputs]

    def function(self, name: str) -> Any:
        return attention(self.shape, self.layouts, self.threads, name, 24 if self.lanes == 16 else 12)

    def check(self, kernels: Any, name: str) -> None:
        packed = [
            layout.pack(x.transpose(0, 2, 1)[:, :, None])
            for x, layout in zip(self.inputs, self.layouts[:3], strict=True)
        ]
        masks = [] if self.mask is None else [self.mask.reshape(-1)]
        out = self.layouts[3]
        y = kernels(name, [*packed, *masks], (self.shape.batch, out.size), out.element.slot)
        expected = self.expected().transpose(0, 2, 1)[:, :, None]
        got = out.unpack(y)
        q, k, v = (float(np.abs(x).max()) for x in self.inputs)
        scores = (
            q * k * self.inputs[0].shape[-1] * self.shape.scale
        )  # a score's rounding is relative in exp's result
        atol = 1e-5 + float(np.finfo(np.float32).eps) * scores * v
        if out.element != FLOAT32:  # the weights of the mean are rounded, and so is the result
            atol = 2.0 * out.element.step * v
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol)
        outside = y.reshape(len(y), out.slots, out.plane, out.lanes)[:, :, : out.block[1]]
        beyond = out.coordinates()[1][: out.block[1]] < 0
        assert not outside[:, :, beyond].any()  # who reads on may rely on zeros

    def expected(self) -> np.ndarray:
        s = self.shape

        def heads(x: np.ndarray, first: int) -> Any:
            part = torch.from_numpy(x[:, :, first : first + s.heads * s.size]).double()
            return part.reshape(s.batch, -1, s.heads, s.size).permute(0, 2, 1, 3)

        q, k, v = (heads(x, f) for x, f in zip(self.inputs, s.first, strict=True))
        scores = q @ k.transpose(2, 3) * s.scale
        if self.mask is not None:
            scores = scores + torch.from_numpy(self.mask).double()
        mixed = torch.softmax(scores, -1) @ v
        return np.asarray(mixed.permute(0, 2, 1, 3).reshape(s.batch, s.queries, -1).numpy())


CASES = {
    "one head of bert": Case(Attention(1, 1, 64, 128, 128, 0.125)),
    "heads of 32": Case(Attention(1, 3, 32, 48, 48, 0.2)),
    "ragged": Case(Attention(1, 2, 64, 100, 100, 0.125)),
    "fewer tokens than lanes": Case(Attention(2, 2, 8, 9, 9, 0.4)),
    "one token": Case(Attention(1, 2, 8, 1, 1, 0.4)),
    "queries apart from keys": Case(Attention(2, 2, 5, 17, 37, 0.4)),
    "whole planes that would alias": Case(Attention(1, 1, 8, 1024, 1024, 0.4)),
    "parts of wider tensors": Case(Attention(1, 2, 6, 20, 20, 0.4, (0, 12, 25))),
    "key mask": Case(Attention(2, 2, 8, 21, 33, 0.4, mask=(2, 1, 1, 33))),
    "full mask": Case(Attention(2, 3, 8, 21, 33, 0.4, mask=(2, 3, 21, 33))),
    "mask for all": Case(Attention(2, 3, 8, 32, 33, 0.4, mask=(1, 1, 32, 33))),
    "two threads": Case(Attention(2, 3, 8, 40, 40, 0.4, mask=(1, 3, 40, 40)), threads=2),
    "eight lanes": Case(Attention(1, 3, 12, 37, 37, 0.4), lanes=8),
    "four lanes": Case(Attention(1, 2, 7, 18, 5, 0.4, mask=(1, 1, 18, 5)), lanes=4),
}


def test_every_form_against_torch(compile_kernels: Any) -> None:
    named = {f"k{i}": case for i, case in enumerate(CASES.values())}
    kernels = compile_kernels({n: c.function(n) for n, c in named.items()})
    for name, case in named.items():
        case.check(kernels, name)


IN_PAIRS = {
    "one head of bert": Case(Attention(1, 1, 64, 128, 128, 0.125), element=BFLOAT16),
    "an odd number of vectors": Case(Attention(1, 2, 64, 100, 70, 0.125), element=BFLOAT16),
    "fewer tokens than lanes": Case(Attention(2, 2, 8, 9, 9, 0.4), element=BFLOAT16),
    "one token": Case(Attention(1, 2, 8, 1, 1, 0.4), element=BFLOAT16),
    "two vectors": Case(Attention(1, 2, 6, 20, 20, 0.4, (0, 12, 24)), element=BFLOAT16),
    "whole planes that would alias": Case(Attention(1, 1, 8, 1024, 1024, 0.4), element=BFLOAT16),
    "full mask, threads": Case(
        Attention(2, 3, 8, 21, 45, 0.4, mask=(2, 3, 21, 45)), threads=2, element=BFLOAT16
    ),
}


@NEEDS_PAIRS
def test_every_form_in_pairs_against_torch(compile_kernels: Any) -> None:
    named = {f"k{i}": case for i, case in enumerate(IN_PAIRS.values())}
    kernels = compile_kernels({n: c.function(n) for n, c in named.items()})
    for name, case in named.items():
        case.check(kernels, name)


@given(tokens=st.integers(1, 400))
def test_pairs_meet_every_token_once(tokens: int) -> None:
    layout: LaneLayout = canonical(3, 1, tokens, 16)
    elements = [
        ((p.first + m) * 2 + j) * 16 + r
        for p in pairs(layout)
        for m in range(p.count)
        for j, held in enumerate((p.low, p.high))
        for r in range(held)
    ]
    coordinates = layout.coordinates()[1].reshape(-1)
    assert sorted(coordinates[elements]) == list(range(tokens))


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_random_sizes(data: Any, compile_kernels: Any) -> None:
    def number(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    cases = {}
    for i in range(3):
        batch, heads, size = number(1, 2), number(1, 3), number(1, 19)
        queries, keys = number(1, 70), number(1, 70)
        full = (batch, heads, queries, keys)
        mask = (*(f if data.draw(st.booleans()) else 1 for f in full[:3]), keys)
        mask = mask if data.draw(st.booleans()) else ()
        shape = Attention(batch, heads, size, queries, keys, 1.0 / np.sqrt(size), mask=mask)
        cases[f"k{i}"] = Case(shape, data.draw(st.sampled_from([4, 8, 16])), number(1, 2))
    kernels = compile_kernels({n: c.function(n) for n, c in cases.items()})
    for name, case in cases.items():
        case.check(kernels, name)


@given(tokens=st.integers(1, 400), lanes=st.sampled_from([4, 8, 16]))
def test_a_walk_meets_every_token_once(tokens: int, lanes: int) -> None:
    layout: LaneLayout = canonical(3, 1, tokens, lanes)
    elements = [
        (w.vector + j) * lanes + r for w in walks(layout) for j in range(w.count) for r in range(w.inner)
    ]
    coordinates = layout.coordinates()[1].reshape(-1)
    assert sorted(coordinates[elements]) == list(range(tokens))


def test_large_scores_do_not_overflow(compile_kernels: Any) -> None:
    case = Case(Attention(1, 1, 4, 20, 20, 0.5, mask=(1, 1, 1, 20)))
    case.inputs = [30 * x for x in case.inputs]
    case.mask[..., 7:] = -1e30  # type: ignore[index]
    case.check(compile_kernels({"k": case.function("k")}), "k")


def test_the_attributes_survive_the_ir() -> None:
    shape = Attention(2, 3, 8, 21, 33, 0.4, (0, 24, 48), (2, 1, 1, 33))
    assert loads(Attention, dumps(shape)) == shape
