"""BERT-base: twelve post-norm encoder layers of width 768 over token ids, and the pooler.

References
----------
Devlin et al., "BERT" (2018), section 3. Vaswani et al., "Attention Is All You Need" (2017), section 3.2.1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from sparseflow.zoo.registry import ZOO, Built, ZooModel, materialise

WIDTH, HEADS, HIDDEN, VOCABULARY, POSITIONS = 768, 12, 3072, 30522, 512


class Attention(nn.Module):
    """Multi-head self-attention: (N, T, width) → (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        size = width // self.heads

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(batch, tokens, self.heads, size).permute(0, 2, 1, 3)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = torch.matmul(query, key.permute(0, 1, 3, 2)) * (1.0 / math.sqrt(size))
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        return self.output(mixed.permute(0, 2, 1, 3).reshape(batch, tokens, width))


class EncoderLayer(nn.Module):
    """Attention and a GELU feed-forward block, a layer norm after each sum: (N, T, width) → (N, T, width)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.intermediate = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """Token ids (N, T) int64 → hidden states (N, T, width) and pooled first token (N, width)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.word = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        self.segment = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(EncoderLayer(WIDTH, HEADS, HIDDEN) for _ in range(layers))
        self.pooler = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place = self.position.weight[: tokens.shape[1]] + self.segment.weight[0]
        x = self.norm(self.word(tokens) + place)
        for layer in self.layers:
            x = layer(x)
        return x, torch.tanh(self.pooler(x[:, 0]))


def _init(module: nn.Module, generator: torch.Generator) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.normal_(0.0, 1.0 / math.sqrt(layer.in_features), generator=generator)
            layer.bias.normal_(0.0, 0.05, generator=generator)
        elif isinstance(layer, nn.Embedding):
            layer.weight.normal_(0.0, 0.5, generator=generator)
        elif isinstance(layer, nn.LayerNorm):
            layer.weight.uniform_(0.8, 1.2, generator=generator)
            layer.bias.normal_(0.0, 0.1, generator=generator)


def _make(batch: int, generator: torch.Generator, tokens: int = 128, layers: int = 12) -> Built:
    module = materialise(lambda: Bert(layers), lambda m: _init(m, generator))
    return module, (torch.randint(VOCABULARY, (batch, min(tokens, POSITIONS)), generator=generator),)


ZOO.register("bert_base")(
    ZooModel("BERT-base encoder, 128 tokens, 109 M weights", _make, ("tokens", "layers"))
)
