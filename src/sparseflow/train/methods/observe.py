"""Looking at a model's inputs: the samples of a loader, and what each layer sees of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseflow.errors import DataError
from sparseflow.train.trainer import evaluating


def take(batches: Iterable[Any], samples: int) -> Iterator[tuple[Tensor, Any]]:
    """The first batches (x, labels or None) with ``samples`` samples together, fewer if there are no more.

    Raises
    ------
    DataError
        If there is none at all.
    """
    left = samples
    for batch in batches:
        x, labels = (batch[0], batch[1]) if isinstance(batch, tuple | list) else (batch, None)
        x = x[:left]
        yield x, None if labels is None else labels[: len(x)]
        left -= len(x)
        if left <= 0:
            return
    if left == samples:
        raise DataError("calibration: found no sample; give batches of x or (x, labels)")


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies its weight with.

    Parameters
    ----------
    layer : nn.Linear or convolution
    x : Tensor
        The layer's input.

    Returns
    -------
    Tensor, shape (groups, rows, in)
        A row for each output position of each sample; ``in`` is in the order of ``weight[0].flatten()``.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    axes = len(layer.kernel_size)
    x = x if x.ndim == axes + 2 else x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    count, channels = x.shape[:2]
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    out = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, layer.stride, strict=True)]
    step = x.stride()
    windows = x.as_strided(
        (count, *out, channels, *layer.kernel_size),
        (
            step[0],
            *(a * s for a, s in zip(step[2:], layer.stride, strict=True)),
            step[1],
            *(a * d for a, d in zip(step[2:], layer.dilation, strict=True)),
        ),
    )
    rows = windows.reshape(-1, layer.groups, windows[(0,) * (axes + 1)].numel() // layer.groups)
    return rows.transpose(0, 1)


class _SeenAll(Exception):
    """Ends a forward pass after which nothing would be looked at."""


def observing(
    model: nn.Module,
    names: Iterable[str],
    tell: Callable[[str, nn.Module, Tensor], None],
    inputs: Iterable[Tensor],
) -> Iterator[None]:
    """Run ``model`` in evaluation mode; ``tell(name, layer, x)`` gets the input of each named layer.

    A step for each of ``inputs``, so that several models can be run side by side.

    The first forward pass is whole and counts the calls of each layer; later ones end with the last of them.
    """
    calls: Counter[str] = Counter()
    left: Counter[str] | None = None

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            tell(name, layer, args[0])
            if left is None:
                calls[name] += 1
                return
            left[name] -= 1
            if all(count <= 0 for count in left.values()):
                raise _SeenAll

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        with evaluating(model) as device:
            for x in inputs:
                with torch.no_grad(), suppress(_SeenAll):
                    model(x.to(device))
                yield
                left = Counter(calls)
    finally:
        for handle in handles:
            handle.remove()
