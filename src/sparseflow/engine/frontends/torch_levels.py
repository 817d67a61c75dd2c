"""torch's decomposed quantise and dequantise operators (PT2E, torchao) → numbers on levels, and markers on maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401  registers the operators
from torch.fx import Node
from torch.fx.node import map_arg

from sparseflow.engine.frontends.levels import dequantise, quantise
from sparseflow.engine.frontends.torch_resample import arguments
from sparseflow.errors import ImportModelError
from sparseflow.passes.ops import constant

_OVERLOADS = ("per_tensor.default", "per_tensor.tensor", "per_tensor.tensor2", "per_channel.default")
_LEAST = 127
"""Steps between the first and the last level of maps, those of seven bits included."""


def converters(importer: Any) -> dict[str, Callable[[Any], Any]]:
    """Operator and overload → torch.fx node → Relax expression."""
    return {
        **{f"quantize_{name}": lambda node: _quantise(importer, node) for name in _OVERLOADS},
        **{f"dequantize_{name}": lambda node: _dequantise(importer, node) for name in _OVERLOADS},
    }


def _quantise(importer: Any, node: Any) -> Any:
    folded = _folded(importer, node)
    if folded is not None:
        return folded
    place, (scale, zero) = _place(node), _levels_of(importer, node)
    dtype = str(arguments(node)["dtype"]).removeprefix("torch.")
    return importer.block_builder.emit(quantise(place, importer.env[node.args[0]], scale, zero, dtype))


def _dequantise(importer: Any, node: Any) -> Any:
    folded = _folded(importer, node)
    if folded is not None:
        return folded
    builder, (scale, zero) = importer.block_builder, _levels_of(importer, node)
    return builder.emit(dequantise(_place(node), builder, importer.env[node.args[0]], scale, zero))


def _folded(importer: Any, node: Any) -> Any:
    """The node's value if it is made of parameters and buffers alone, under the first one's name; else None."""
    if any(operand.name not in importer.known for operand in node.all_input_nodes):
        return None
    name = importer.known[node.args[0].name][0]
    value = node.target(*map_arg(node.args, lambda n: importer.known[n.name][1]), **node.kwargs).detach()
    importer.known[node.name] = name, value
    return constant(value.numpy(), name)


def _levels_of(importer: Any, node: Any) -> tuple[Any, Any]:
    """Scale and zero point, None where it is computed.

    Raises
    ------
    ImportModelError
        If there are too few levels.
    """
    args = arguments(node)

    def number(name: str) -> Any:
        value = args.get(name, args.get(f"{name}s"))
        return importer.known.get(value.name, (None, None))[1] if isinstance(value, Node) else value

    lowest, highest = (number(f"quant_{end}") for end in ("min", "max"))
    if lowest is not None and highest is not None and int(highest) - int(lowest) < _LEAST:
        raise ImportModelError(
            f"{_place(node)}: quantised map of {int(highest) - int(lowest) + 1} levels; allowed: {_LEAST + 1} or more"
        )
    return number("scale"), number("zero_point")


def _place(node: Any) -> str:
    return f"operator {node.target} at node {node.name!r}"
