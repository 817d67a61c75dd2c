"""Models of any supported kind → one Relax function of high-level operators with named weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow.engine.frontends.shapes import Shapes, check_shapes, fit_shape
from sparseflow.engine.runtime.manifest import Signature
from sparseflow.errors import ImportModelError, needs

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True)
class Imported:
    """A model as the compiler takes it.

    Attributes
    ----------
    mod : tvm.IRModule
        ``mod["main"]`` takes the inputs in order and returns one tensor, or a tuple of them. Weights are
        constants whose span's source name is the parameter's name. A linear layer is
        ``matmul(x, permute_dims(W))`` with ``W`` (out, in).
    inputs, outputs : tuple of Signature
    """

    mod: tvm.IRModule
    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]


def import_model(
    model: Any, example_inputs: Sequence[Any] | None = None, shapes: Shapes | None = None
) -> Imported:
    """One Relax function of a model: high-level operators, static shapes, named weights.

    Parameters
    ----------
    model : torch.nn.Module, torch.export.ExportedProgram, onnx.ModelProto, str or path
        A module needs ``example_inputs``; a path ends in ``.pt2`` or ``.onnx``. An `Imported` is returned
        as it is.
    example_inputs : tuple or list of torch.Tensor
        Fixes the shapes of an ``nn.Module``.
    shapes : dict of str to sequence of int
        Input name → shape; binds free dimensions of a program or an ONNX model.

    Raises
    ------
    ImportModelError
        If the file is missing or unreadable, an operator is unsupported, a dimension stays free or an input has no
        elements.
    """
    if isinstance(model, Imported):
        return model
    if example_inputs is not None and not isinstance(example_inputs, tuple | list):
        raise ImportModelError(
            f"example_inputs: found {type(example_inputs).__name__}; allowed: a tuple of tensors, as (x,)"
        )
    if isinstance(model, str | os.PathLike):
        model = read_model(Path(model))
    kind = _kind(model)
    if kind == "module":
        from sparseflow.engine.frontends.torch_frontend import export_module

        if example_inputs is None:
            raise ImportModelError(
                f"{type(model).__name__}: an nn.Module needs example_inputs=(tensor, …) to fix its shapes"
            )
        model, kind = export_module(model, tuple(example_inputs)), "program"
    if kind == "program":
        from sparseflow.engine.frontends.torch_frontend import program_to_relax

        mod, inputs, outputs = program_to_relax(model)
        mod = _bind_shapes(mod, inputs, shapes or {})
    else:
        from sparseflow.engine.frontends.onnx_frontend import onnx_to_relax

        mod, inputs, outputs = onnx_to_relax(model, shapes or {})
    from sparseflow.engine.frontends.clean import clean

    mod = clean(mod)
    main = mod["main"]
    specs = _specs(inputs, [p.ty for p in main.params])
    for spec in specs:
        if 0 in spec.shape:
            raise ImportModelError(
                f"input {spec.name!r}: its shape {list(spec.shape)} has no elements; give 1 or more"
            )
    return Imported(mod, specs, _specs(outputs, list(getattr(main.ret_ty, "fields", [main.ret_ty]))))


def _kind(model: Any) -> str:
    torch, onnx = sys.modules.get("torch"), sys.modules.get("onnx")
    if torch is not None and isinstance(model, torch.nn.Module):
        return "module"
    if torch is not None and isinstance(model, torch.export.ExportedProgram):
        return "program"
    if onnx is not None and isinstance(model, onnx.ModelProto):
        return "onnx"
    raise ImportModelError(
        f"model: cannot import a {type(model).__name__}; allowed: torch.nn.Module with example inputs, "
        "torch.export.ExportedProgram, onnx.ModelProto, a path to a .pt2 or .onnx file"
    )


def read_model(path: Path) -> Any:
    """The `torch.export.ExportedProgram` in a ``.pt2`` file or the `onnx.ModelProto` in an ``.onnx`` file.

    Raises
    ------
    ImportModelError
        If the file is missing, of another kind or unreadable, or its package is not installed.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise ImportModelError(
            f"{path}: the file's ending is {path.suffix or 'missing'}; "
            "allowed: .pt2 (written by torch.export.save), .onnx"
        )
    if not path.is_file():
        raise ImportModelError(f"{path}: no such file; give the path of a .pt2 or .onnx model")
    if path.suffix == ".pt2":
        with needs("train", f"{path}: a .pt2 model", ImportModelError):
            import torch  # noqa: F401
        from sparseflow.engine.frontends.torch_frontend import load_exported

        return load_exported(path)
    with needs("onnx", f"{path}: an ONNX model", ImportModelError):
        import onnx  # noqa: F401
    from sparseflow.engine.frontends.onnx_frontend import load_onnx

    return load_onnx(path)


def _bind_shapes(mod: Any, inputs: Sequence[str], shapes: Shapes) -> Any:
    """The module with its parameters' free dimensions bound from ``shapes``."""
    from tvm.relax.transform import BindSymbolicVars

    check_shapes(inputs, shapes)
    binding: dict[Any, int] = {}
    for name, param in zip(inputs, mod["main"].params, strict=True):
        declared = [getattr(d, "value", d) for d in param.ty.shape]
        wanted = shapes.get(name)
        for dim, size in fit_shape(name, [d if isinstance(d, int) else str(d) for d in declared], wanted):
            free = declared[dim]
            if binding.setdefault(free, size) != size:
                raise ImportModelError(
                    f"input {name!r}: dimension {free} is {size} here and {binding[free]} elsewhere; give equal sizes"
                )
    return BindSymbolicVars(binding, "main")(mod) if binding else mod


def _specs(names: Sequence[str], types: Sequence[Any]) -> tuple[Signature, ...]:
    specs = []
    for name, ty in zip(names, types, strict=True):
        shape = getattr(ty, "shape", None)
        dims = [getattr(d, "value", d) for d in shape] if shape is not None else []
        sizes = [int(d) for d in dims if isinstance(d, int)]
        if shape is None or len(sizes) != len(dims):
            raise ImportModelError(
                f"tensor {name!r}: shape {shape} depends on the data or on a free dimension; "
                "only static shapes compile"
            )
        specs.append(Signature(name, tuple(sizes), str(ty.dtype.dtype)))
    return tuple(specs)
