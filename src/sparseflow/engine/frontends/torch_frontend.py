"""PyTorch modules and exported programs → Relax.

The layers that the compiler knows whole (linear, matmul, attention, activations, pools, norms) are kept
whole: they are taken out of torch's decomposition table; everything else is decomposed to core operators.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.engine.frontends import torch_levels, torch_resample
from sparseflow.engine.frontends.common import address, check_dtype, close_blocks, elu
from sparseflow.engine.runtime.memory import weight_tensor
from sparseflow.errors import ImportModelError, first_line
from sparseflow.passes.ops import constant

Converter = Callable[[Any], Any]
"""torch.fx node → Relax expression."""

KEPT_WHOLE = (
    "linear", "matmul", "conv1d", "conv2d", "max_pool1d", "max_pool2d", "layer_norm", "group_norm",
    "scaled_dot_product_attention",
)  # fmt: skip
"""Overloads ``aten.NAME.default`` that stay one operator, as do activations that say so (`Activation.whole`)."""


def export_module(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> Any:
    """The `torch.export.ExportedProgram` of a module in eval mode, with the shapes of ``example_inputs``.

    Raises
    ------
    ImportModelError
        If the module is in training mode, an input is not a tensor or empty, or torch cannot trace it.
    """
    if module.training:
        raise ImportModelError(
            f"{type(module).__name__}: the module is in training mode; call .eval() before compiling it"
        )
    for i, value in enumerate(example_inputs):
        if not isinstance(value, torch.Tensor):
            raise ImportModelError(
                f"{type(module).__name__}: example input {i} is a {type(value).__name__}; "
                "allowed: torch tensors, in a tuple"
            )
        if not value.numel():
            raise ImportModelError(
                f"{type(module).__name__}: example input {i} of shape {list(value.shape)} "
                "has no elements; give 1 or more"
            )
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, tuple(example_inputs))
    except Exception as error:
        raise ImportModelError(
            f"{type(module).__name__}: torch.export cannot trace it: {first_line(error)}"
        ) from error


def load_exported(path: Path) -> Any:
    """The program in a ``.pt2`` file.

    Raises
    ------
    ImportModelError
        If the file is truncated or holds something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(str(path))
    except Exception as error:
        raise ImportModelError(
            f"{path}: not a readable torch.export program ({first_line(error)}); "
            "write one with torch.export.save(torch.export.export(model, inputs), path)"
        ) from error


def program_to_relax(program: Any) -> tuple[Any, list[str], list[str]]:
    """One Relax module of an exported program, the names of its inputs and of its outputs.

    Raises
    ------
    ImportModelError
        If an operator has no Relax translation, by operator and node, or a weight's values cannot be read.
    """
    for name, tensor in program.named_parameters():
        check_dtype(name, str(tensor.dtype).removeprefix("torch."))
    table = torch.export.default_decompositions()
    for name in (*KEPT_WHOLE, *(op for a in ACTIVATIONS.values() if a.whole for op in a.torch)):
        table.pop(getattr(torch.ops.aten, name).default, None)
    for operator in torch_resample.named(table):
        table.pop(operator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = program.run_decompositions(table)
        except Exception as error:
            raise ImportModelError(f"torch.export program: cannot decompose: {first_line(error)}") from error
        tensors = {**dict(program.constants), **dict(program.state_dict)}
        importer = Importer(tensors, {s.arg.name: s.target for s in program.graph_signature.input_specs})
        known = converters(importer)
        _check_operators(program, known)
        guarded = {name: _guard(convert) for name, convert in known.items()}
        try:
            mod = importer.from_exported_program(program, False, True, False, guarded)
        except ImportModelError:
            close_blocks(getattr(importer, "block_builder", None))
            raise
    inputs = [str(name) for name in program.graph_signature.user_inputs]
    outputs = [str(spec.arg.name) for spec in program.graph_signature.output_specs if _is_user_output(spec)]
    return _name_constants(mod, importer.names), inputs, outputs


def converters(importer: Any) -> dict[str, Converter]:
    """The translation of each operator (``aten`` name and overload) that can be imported, by TVM or by this project."""
    return {
        **importer.create_convert_map(),
        "scaled_dot_product_attention.default": lambda node: _attention(importer, node),
        "group_norm.default": lambda node: _group_norm(importer, node),
        "layer_norm.default": lambda node: _layer_norm(importer, node),
        "elu.default": lambda node: _elu(importer, node),
        "amax.default": lambda node: _extremum(importer, relax.op.max, node),
        "amin.default": lambda node: _extremum(importer, relax.op.min, node),
        **torch_levels.converters(importer),
        **torch_resample.converters(importer),
    }


def _is_user_output(spec: Any) -> bool:
    kind = torch.export.graph_signature.OutputKind
    return spec.kind in (kind.USER_OUTPUT, kind.LOSS_OUTPUT)


def _place(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    inside = next((str(v[0]) for v in reversed(list(stack.values())) if v[0]), "the model")
    return f"operator {node.target} at node {node.name!r} (in {inside})"


def _check_operators(program: Any, known: Mapping[str, Converter]) -> None:
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ not in known:
            raise ImportModelError(
                f"unsupported {_place(node)}: "
                "replace it by supported operators or keep it outside of the compiled part"
            )


def _guard(convert: Converter) -> Callable[[Any, Any], Any]:
    """``convert`` with its failures reported by operator and node."""

    def guarded(node: Any, _importer: Any) -> Any:
        try:
            return convert(node)
        except ImportModelError:
            raise
        except Exception as error:
            raise ImportModelError(
                f"unsupported use of {_place(node)}: TVM cannot translate it ({first_line(error)})"
            ) from error

    return guarded


class Importer(ExportedProgramImporter):
    """TVM's importer, which reads memory as it stands: it gets each tensor's values in plain memory.

    Attributes
    ----------
    names : dict of int to str
        Address of that memory → name of the parameter, buffer or constant.
    known : dict of str to (str, Tensor)
        Node → name and value, for those nodes that are parameters, buffers or constants.
    """

    def __init__(self, tensors: Mapping[str, Any], nodes: Mapping[str, str]) -> None:
        super().__init__()
        given = {name: t for name, t in tensors.items() if isinstance(t, torch.Tensor)}
        dense = {name: t if t.layout == torch.strided else t.to_dense() for name, t in given.items()}
        plain = {name: weight_tensor(t, name) for name, t in dense.items()}
        self._plain = {id(t): plain[name] for name, t in given.items()}
        self.names = {t.data_ptr(): name for name, t in plain.items() if t.numel()}
        self.known = {node: (name, plain[name]) for node, name in nodes.items() if name in plain}

    def _convert_pytorch_tensor_to_tvm(self, tensor_value: Any) -> Any:
        return super()._convert_pytorch_tensor_to_tvm(self._plain[id(tensor_value)])


def _name_constants(mod: Any, names: Mapping[int, str]) -> Any:
    """The module with every parameter, buffer and constant copied out of torch's memory and named."""

    @relax.expr_functor.mutator
    class Namer(relax.PyExprMutator):
        def visit_generic_const_(self, op: Any) -> Any:
            array = op.value.numpy()
            return constant(array, names[place]) if (place := address(op)) in names else op

    mod = tvm.IRModule(mod.functions)
    mod["main"] = Namer(mod).visit_expr(mod["main"])
    return mod


def _attention(importer: Any, node: Any) -> Any:
    """softmax(Q Kᵀ · scale + mask) V with (…, tokens, size) operands, as plain matrix products."""
    emit = importer.block_builder.emit
    args = torch_resample.arguments(node)
    if args.get("enable_gqa"):
        raise ImportModelError(f"unsupported {_place(node)}: enable_gqa=True; repeat key and value instead")
    query, key, value = (importer.env[args[k]] for k in ("query", "key", "value"))
    shape = [int(d) for d in query.ty.shape]
    rank, tokens = len(shape), int(key.ty.shape[-2])
    scale = args.get("scale") or 1.0 / math.sqrt(shape[-1])
    turned = emit(relax.op.permute_dims(key, [*range(rank - 2), rank - 1, rank - 2]))
    scores = emit(relax.op.multiply(emit(relax.op.matmul(query, turned)), relax.const(scale, "float32")))
    mask = importer.env[args["attn_mask"]] if args.get("attn_mask") is not None else None
    if args.get("is_causal"):
        mask = relax.const(np.tril(np.ones((shape[-2], tokens), "bool")))
    if mask is not None and str(mask.ty.dtype.dtype) == "bool":
        mask = emit(relax.op.where(mask, relax.const(0.0, "float32"), relax.const(-1e30, "float32")))
    if mask is not None:
        scores = emit(relax.op.add(scores, mask))
    return emit(relax.op.matmul(emit(relax.op.nn.softmax(scores, axis=-1)), value))


def _scale_and_shift(importer: Any, args: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A norm's weight and bias; 1 and 0 where the layer has none."""
    weight = importer.env[args["weight"]] if "weight" in args else relax.const(np.ones(shape, "float32"))
    bias = importer.env[args["bias"]] if "bias" in args else relax.const(np.zeros(shape, "float32"))
    return weight, bias


def _group_norm(importer: Any, node: Any) -> Any:
    args = torch_resample.arguments(node)
    x = importer.env[args["input"]]
    weight, bias = _scale_and_shift(importer, args, (int(x.ty.shape[1]),))
    axes, eps = list(range(2, len(x.ty.shape))), args.get("eps", 1e-5)
    norm = relax.op.nn.group_norm(x, weight, bias, args["num_groups"], channel_axis=1, axes=axes, epsilon=eps)
    return importer.block_builder.emit(norm)


def _layer_norm(importer: Any, node: Any) -> Any:
    args = torch_resample.arguments(node)
    weight, bias = _scale_and_shift(importer, args, tuple(args["normalized_shape"]))
    axes = list(range(-len(args["normalized_shape"]), 0))
    x = importer.env[args["input"]]
    norm = relax.op.nn.layer_norm(x, weight, bias, axes=axes, epsilon=args.get("eps", 1e-5))
    return importer.block_builder.emit(norm)


def _elu(importer: Any, node: Any) -> Any:
    """ELU, and what torch writes as one: SELU (with a scale) and CELU (with a scale of the exponent)."""
    emit, x = importer.block_builder.emit, importer.env[node.args[0]]
    args = torch_resample.arguments(node)
    scales = (float(args.get(name, 1.0)) for name in ("alpha", "scale", "input_scale"))
    return elu(emit, x, *scales)


def _extremum(importer: Any, reduce: Callable[..., Any], node: Any) -> Any:
    """The largest or smallest element over some axes, over all if none are named."""
    args = torch_resample.arguments(node)
    axes = args.get("dim") or None
    x = importer.env[node.args[0]]
    return importer.block_builder.emit(reduce(x, axis=axes, keepdims=bool(args.get("keepdim", False))))
