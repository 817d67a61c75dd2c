"""The layers with weights of a model of any kind, in the order in which they run, with their role in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseflow.core.formats import FORMATS
from sparseflow.core.roles import roles_of
from sparseflow.engine.runtime.memory import weight_tensor
from sparseflow.errors import ImportModelError
from sparseflow.kernels.template import TEMPLATES

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class WeightedLayer:
    """One convolution or linear layer of a model.

    Attributes
    ----------
    name : str
        The weight's name in the model.
    op : str
        ``conv2d`` or ``linear``.
    weight : ndarray
        (filters, channels per group, height, width) or (out, in); a view or a copy, not to be written.
    groups : int
        1 for a linear layer.
    write : callable
        Puts an array of the weight's shape in its place, in the model.
    role : str
        As `sparseflow.core.roles.roles_of` says.
    """

    name: str
    op: str
    weight: Array
    groups: int
    write: Callable[[Array], None]
    role: str = ""


def formats_read() -> dict[str, tuple[str, ...]]:
    """Each index format, ``dense`` too, with the templates that read it; if none, it serves accounting and export."""
    return {f: tuple(n for n, t in TEMPLATES.items() if t.format == f) for f in ("dense", *FORMATS)}


def weighted_layers(model: Any) -> tuple[WeightedLayer, ...]:
    """The layers of an `nn.Module`, a `torch.export.ExportedProgram` or an `onnx.ModelProto`.

    A module's layers are taken in the order of their definition. A weight that several layers share is
    listed once.

    Raises
    ------
    ImportModelError
        If the model is of another kind, or a weight's values cannot be read.
    """
    torch, onnx = sys.modules.get("torch"), sys.modules.get("onnx")
    if torch is not None and isinstance(model, torch.nn.Module):
        return _with_roles(_of_module(model))
    if torch is not None and isinstance(model, torch.export.ExportedProgram):
        return _with_roles(_of_program(model))
    if onnx is not None and isinstance(model, onnx.ModelProto):
        return _with_roles(_of_onnx(model))
    raise ImportModelError(
        f"model: cannot list the layers of a {type(model).__name__}; allowed: torch.nn.Module, "
        "torch.export.ExportedProgram, onnx.ModelProto"
    )


def _with_roles(layers: Iterable[WeightedLayer]) -> tuple[WeightedLayer, ...]:
    unique = list({layer.name: layer for layer in layers}.values())
    roles = roles_of([(layer.weight.shape, layer.groups) for layer in unique])
    return tuple(replace(layer, role=role) for layer, role in zip(unique, roles, strict=True))


def _torch_layer(name: str, op: str, tensor: Any, groups: int) -> WeightedLayer:
    import torch

    def write(array: Array) -> None:
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    return WeightedLayer(name, op, weight_tensor(tensor, name).numpy(), groups, write)


def _of_module(module: Any) -> list[WeightedLayer]:
    from torch import nn

    layers, seen = [], set()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            op = "conv2d" if isinstance(layer, nn.Conv2d) else "linear"
            key = f"{name}.weight" if name else "weight"
            layers.append(_torch_layer(key, op, layer.weight, getattr(layer, "groups", 1)))
    return layers


def _of_program(program: Any) -> list[WeightedLayer]:
    import torch

    aten = torch.ops.aten
    signature = program.graph_signature
    owners = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    layers = []
    for node in program.graph.nodes:
        if node.target in (aten.conv2d.default, aten.convolution.default):
            op, at = "conv2d", 6 if node.target == aten.conv2d.default else 8
            groups = node.args[at] if len(node.args) > at else 1
        elif node.target == aten.linear.default:
            op, groups = "linear", 1
        else:
            continue
        name = owners.get(getattr(node.args[1], "name", ""))
        tensor = program.state_dict.get(name)
        if tensor is not None and tensor.ndim == (4 if op == "conv2d" else 2):
            layers.append(_torch_layer(str(name), op, tensor, int(groups)))
    return layers


def _of_onnx(model: Any) -> list[WeightedLayer]:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in tensors:
            continue
        tensor = tensors[node.input[1]]
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type == "Conv" and len(tensor.dims) == 4:
            layers.append(_onnx_layer(tensor, "conv2d", attributes.get("group", 1), False))
        elif node.op_type != "Conv" and len(tensor.dims) == 2:
            turned = node.op_type == "MatMul" or not attributes.get("transB", 0)
            layers.append(_onnx_layer(tensor, "linear", 1, turned))
    return layers


def _onnx_layer(tensor: Any, op: str, groups: int, turned: bool) -> WeightedLayer:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)

    def write(new: Array) -> None:
        stored = np.ascontiguousarray(new.T if turned else new).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(stored, tensor.name))

    return WeightedLayer(tensor.name, op, array.T if turned else array, groups, write)
