"""What helps a trained network before its numbers are rounded: folding, equal ranges, corrected biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.map_ranges import MapRanges
from sparseflow.train.quantise.chains import Chain
from sparseflow.train.quantise.maps import rounded_maps
from sparseflow.train.rules import weight_of
from sparseflow.train.trainer import evaluating

_TURNS = 20  # passes over the pairs of layers; changes are below a hundredth long before


def fold_batch_norms(model: nn.Module, chains: Mapping[str, Chain]) -> tuple[str, ...]:
    """Multiply batch norms into the layers before them, in place; the function of the model in evaluation stays.

    A folded batch norm has scale 1, mean 0 and variance 1 - ε, so that it only adds its shift: the model keeps its
    modules and the keys of its state.

    Returns
    -------
    tuple of str
        The folded batch norms. Those behind a pooling are left as they are.

    References
    ----------
    B. Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    CVPR 2018, arXiv 1712.05877, section 3.2.
    """
    folded = []
    with torch.no_grad():
        for name, chain in chains.items():
            if chain.norm is None or chain.pooled:
                continue
            layer, norm = model.get_submodule(name), model.get_submodule(chain.norm)
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            _scale_rows(weight_of(model, name), scale)
            norm.bias.sub_(norm.running_mean * scale)
            if layer.bias is not None:
                norm.bias.add_(layer.bias * scale)
                layer.bias.zero_()
            norm.weight.fill_(1.0)
            norm.running_mean.zero_()
            norm.running_var.fill_(1.0 - norm.eps)
            folded.append(chain.norm)
    return tuple(folded)


def equalise(model: nn.Module, chains: Mapping[str, Chain]) -> int:
    """Even out the ranges of the channels between two layers, in place; the function of the model stays.

    With r₁ the largest weight that makes a channel, its batch norm multiplied in, and r₂ the largest that reads it,
    the channel is divided by ``s = √(r₁/r₂)`` where it is made and multiplied where it is read. This is exact for what
    lies between: ReLU, max and mean pooling. A channel that is zero on one side is left alone.

    Returns
    -------
    int
        The pairs of layers found.

    References
    ----------
    M. Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019,
    arXiv 1906.04721, section 4.1 (equations 9 to 11).
    """
    pairs = [(name, chain.norm, chain.reader) for name, chain in chains.items() if chain.reader is not None]
    with torch.no_grad():
        for _ in range(_TURNS):
            most = 0.0
            for first, norm, second in pairs:
                most = max(most, _equalise_pair(model, first, norm, second))
            if most < 1e-3:
                break
    return len(pairs)


def _equalise_pair(model: nn.Module, first: str, norm: str | None, second: str) -> float:
    """One pair; the largest change as a logarithm."""
    maker, reader = model.get_submodule(first), model.get_submodule(second)
    makes, reads = weight_of(model, first), weight_of(model, second)
    r1 = makes.abs().flatten(1).amax(1)
    groups, channels = getattr(reader, "groups", 1), reads.shape[1]
    largest = reads.abs().flatten(2).amax(2) if reads.ndim > 2 else reads.abs()
    r2 = (
        largest.view(groups, -1, channels).amax(1).reshape(len(r1), -1).amax(1)
    )  # flattened: several in a row
    if norm is not None:
        module = model.get_submodule(norm)
        r1 = r1 * (module.weight * (module.running_var + module.eps).rsqrt()).abs()
    s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2).sqrt(), 1.0)
    if norm is not None:
        module.weight.div_(s)
        module.bias.div_(s)
    else:
        _scale_rows(makes, 1 / s)
        if maker.bias is not None:
            maker.bias.div_(s)
    columns = s.repeat_interleave(groups * channels // len(s)).view(groups, 1, channels)
    columns = columns.expand(-1, len(reads) // groups, -1).reshape(len(reads), channels)
    reads.mul_(columns.view(*columns.shape, *(1,) * (reads.ndim - 2)))
    return float(s.log().abs().max())


def correct_biases(
    model: nn.Module,
    rounded: Mapping[str, Tensor],
    ranges: MapRanges,
    chains: Mapping[str, Chain],
    batches: Iterable[Tensor],
) -> tuple[str, ...]:
    """Put rounded weights into a model and take the mean error that they make out of the biases, in place.

    Layer after layer, those of ``chains`` first and in their order, each behind the rounded and corrected ones before
    it. What its output has too much of, on the mean of each channel and against the float network, its bias loses;
    where it has none, the mean of its batch norm gains it. Layers with neither are left alone.

    Parameters
    ----------
    model : nn.Module
        With its float weights.
    rounded : mapping of str to Tensor
        The new weights by layer.
    ranges : MapRanges
        Maps are rounded too.
    chains : mapping of str to Chain
        In the order in which the layers run.
    batches : iterable of Tensor
        Calibration inputs; each layer has a pass over them.

    Returns
    -------
    tuple of str
        The corrected layers.

    References
    ----------
    M. Nagel et al., arXiv 1906.04721, section 4.2 and appendix D (the empirical form).
    """
    inputs = list(batches)
    rounded = {name: rounded[name] for name in (*filter(rounded.__contains__, chains), *rounded)}
    wanted = _mean_outputs(model, tuple(rounded), inputs)
    corrected = []
    with torch.no_grad():
        for name, weight in rounded.items():
            weight_of(model, name).copy_(weight)
        with rounded_maps(model, ranges):
            for name in rounded:
                layer, norm = model.get_submodule(name), chains.get(name, Chain()).norm
                if layer.bias is None and norm is None:
                    continue
                error = _mean_outputs(model, (name,), inputs)[name] - wanted[name]
                if layer.bias is not None:
                    layer.bias.sub_(error)
                elif norm is not None:
                    model.get_submodule(norm).running_mean.add_(error)
                corrected.append(name)
    return tuple(corrected)


def _mean_outputs(model: nn.Module, names: tuple[str, ...], inputs: list[Tensor]) -> dict[str, Tensor]:
    """The mean of what each layer makes, (filters,), over all other axes and inputs."""
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    counts: dict[str, int] = dict.fromkeys(names, 0)

    def see(name: str) -> Any:
        def after(layer: nn.Module, _args: Any, y: Tensor) -> None:
            rows = (
                y.reshape(-1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.transpose(0, 1).flatten(1).T
            )
            sums[name] = sums[name] + rows.double().sum(0)
            counts[name] += len(rows)

        return after

    handles = [model.get_submodule(name).register_forward_hook(see(name)) for name in names]
    try:
        with torch.no_grad(), evaluating(model) as device:
            for x in inputs:
                model(x.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: (sums[name] / max(counts[name], 1)).float() for name in names}


def _scale_rows(weight: Tensor, factors: Tensor) -> None:
    weight.mul_(factors.reshape(-1, *(1,) * (weight.ndim - 1)))
