"""Small modules for what torch.nn writes as functions, so that a network is a list of module calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Interpolate(nn.Module):
    """`torch.nn.functional.interpolate` with fixed arguments."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Any) -> Any:
        return F.interpolate(x, **self.options)


class Pad(nn.Module):
    """`torch.nn.functional.pad` with fixed widths."""

    def __init__(self, widths: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.widths, self.mode = widths, mode

    def forward(self, x: Any) -> Any:
        return F.pad(x, self.widths, mode=self.mode)


class Call(nn.Module):
    """A method of the tensor, such as ``mean`` or ``transpose``."""

    def __init__(self, method: str, *args: Any, **options: Any) -> None:
        super().__init__()
        self.method, self.args, self.options = method, args, options

    def forward(self, x: Any) -> Any:
        return getattr(x, self.method)(*self.args, **self.options)


class Slice(nn.Module):
    """Every ``step``-th element along an axis, from ``start`` on."""

    def __init__(self, axis: int, start: int, step: int) -> None:
        super().__init__()
        self.axis, self.range = axis, slice(start, None, step)

    def forward(self, x: Any) -> Any:
        return x[(slice(None),) * self.axis + (self.range,)]


class Chunk(nn.Module):
    """One of the parts into which an axis is cut."""

    def __init__(self, parts: int, which: int, axis: int) -> None:
        super().__init__()
        self.parts, self.which, self.axis = parts, which, axis

    def forward(self, x: Any) -> Any:
        return x.chunk(self.parts, self.axis)[self.which]


class Tokens(nn.Module):
    """(N, C, H, W) → (N, HW, C)."""

    def forward(self, x: Any) -> Any:
        return x.flatten(2).transpose(1, 2)


class Shuffle(nn.Module):
    """Channels of a map, interleaved over groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Any) -> Any:
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Any) -> Any:
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Attention(nn.Module):
    """Self-attention with heads, (N, tokens, features)."""

    def __init__(self, features: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.inside, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: Any) -> Any:
        n, t, f = x.shape
        q, k, v = self.inside(x).reshape(n, t, 3, self.heads, f // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, t, f))


class Join(nn.Module):
    """Two tensors of one shape: ``add``, ``sub``, ``mul``, ``maximum`` or ``minimum``."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, a: Any, b: Any) -> Any:
        return getattr(torch, self.how)(a, b)


class Concat(nn.Module):
    """Two tensors behind each other along axis 1."""

    def forward(self, a: Any, b: Any) -> Any:
        return torch.cat([a, b], 1)
