"""Attention as users write it, from torch to the engine: what becomes one kernel, what stays matrix products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparseflow

Tensor = Any


class Block(nn.Module):
    """A pre-norm encoder layer; ``mix(q, k, v, mask)`` of (N, T, width) is what a test varies."""

    def __init__(self, heads: int, size: int, mix: Any, packed: bool = False) -> None:
        super().__init__()
        self.heads, self.size, self.mix = heads, size, mix
        width = heads * size
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.packed = nn.Linear(width, 3 * width) if packed else None
        self.first, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(x)
        y = self.norm(x)
        q, k, v = self.packed(y).chunk(3, -1) if self.packed is not None else (f(y) for f in self.inputs)
        x = x + self.output(self.mix(self, q, k, v, mask))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _split(block: Block, y: Tensor) -> Tensor:
    return y.reshape(y.shape[0], y.shape[1], block.heads, block.size).permute(0, 2, 1, 3)


def _join(y: Tensor) -> Tensor:
    return y.permute(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)


def _plain(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = _split(block, q) @ _split(block, k).transpose(2, 3) / math.sqrt(block.size)
    return _join(torch.softmax(scores if mask is None else scores + mask, -1) @ _split(block, v))


def _scaled_query(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    keys = k.reshape(*k.shape[:2], block.heads, block.size).permute(0, 2, 3, 1)
    scores = (_split(block, q) * block.size**-0.25) @ (keys * block.size**-0.25)
    return _join(torch.softmax(scores if mask is None else mask + scores, -1) @ _split(block, v))


def _three_dimensions(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    flat = (-1, q.shape[1], block.size)
    a, b, c = (_split(block, y).reshape(flat) for y in (q, k, v))
    mixed = torch.bmm(torch.softmax(torch.bmm(a * 0.3, b.transpose(1, 2)), -1), c)
    return _join(mixed.reshape(q.shape[0], block.heads, q.shape[1], block.size))


def _torch(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    parts = (_split(block, y) for y in (q, k, v))
    return _join(F.scaled_dot_product_attention(*parts, attn_mask=mask))


def _causal(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return _join(F.scaled_dot_product_attention(*(_split(block, y) for y in (q, k, v)), is_causal=True))


def _over_heads(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Not attention between tokens: heads meet heads."""
    q, k, v = (_split(block, y).permute(0, 2, 1, 3) for y in (q, k, v))
    return (torch.softmax(q @ k.transpose(2, 3), -1) @ v).reshape(q.shape[0], q.shape[1], -1)


def _queries_softmax(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.softmax(_split(block, q) @ _split(block, k).transpose(2, 3), -2)
    return _join(scores @ _split(block, v))


def _twice(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The weights are read a second time."""
    weights = torch.softmax(_split(block, q) @ _split(block, k).transpose(2, 3), -1)
    return _join(weights @ _split(block, v)) + weights.sum(-1).mean(1)[..., None]


FUSED = [  # mix, batch, tokens, heads, size, mask's shape, threads, packed
    (_plain, 1, 32, 2, 64, None, 1, False),
    (_plain, 2, 17, 3, 32, (2, 1, 1, 17), 1, False),
    (_scaled_query, 1, 37, 2, 32, (1, 1, 37, 37), 2, False),
    (_three_dimensions, 1, 36, 3, 8, None, 1, False),
    (_three_dimensions, 2, 20, 3, 8, None, 1, False),
    (_torch, 2, 19, 2, 32, (2, 2, 19, 19), 2, False),
    (_torch, 1, 100, 2, 16, None, 1, True),
    (_causal, 1, 33, 2, 16, None, 1, False),
]
KEPT = [(m, 1, 36, 4, 8, None, 1, False) for m in (_over_heads, _queries_softmax, _twice)]


def _engine_and_error(case: Any) -> tuple[Any, float]:
    mix, batch, tokens, heads, size, mask, threads, packed = case
    torch.manual_seed(0)
    block = Block(heads, size, mix, packed).eval()
    inputs = [torch.randn(batch, tokens, heads * size)] + ([] if mask is None else [2 * torch.randn(mask)])
    engine = sparseflow.compile(block, tuple(inputs), threads=threads, measure=False)
    with torch.inference_mode():
        expected = block.double()(*(x.double() for x in inputs)).numpy()
    found = engine(*(x.numpy() for x in inputs))
    found = found[0] if isinstance(found, tuple | list) else found
    return engine, float(np.abs(found - expected).max() / np.abs(expected).max())


def _kernels(engine: Any) -> list[str]:
    return [kernel.rpartition("_")[0] or kernel for kernel, _ in engine.manifest.calls]


@pytest.mark.parametrize("case", FUSED, ids=lambda c: f"{c[0].__name__[1:]}-{c[1]}x{c[2]}")
def test_attention_becomes_one_kernel(case: Any) -> None:
    engine, error = _engine_and_error(case)
    kernels = _kernels(engine)
    assert error < 1e-4
    assert kernels.count("attention") == 1
    assert not any(k in ("dense_matmul", "softmax", "dense") for k in kernels)
    if case[1] == 1:  # one image: lanes from the first layer to the last
        assert (kernels.count("to_lanes"), kernels.count("from_lanes")) == (1, 1)


@pytest.mark.parametrize("case", KEPT, ids=lambda c: c[0].__name__[1:])
def test_what_is_not_attention_keeps_its_products(case: Any) -> None:
    engine, error = _engine_and_error(case)
    assert error < 1e-4
    assert "attention" not in _kernels(engine)


def test_one_token_stays_in_rows() -> None:
    engine, error = _engine_and_error((_plain, 1, 1, 2, 16, None, 1, False))
    assert error < 1e-4
    assert not any("lanes" in k or k == "attention" for k in _kernels(engine))
