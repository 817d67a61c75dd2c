"""Arrays and tensors of any library → the memory that kernels read, or one line that says why there is none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tvm

from sparseflow.errors import ImportModelError, InputError, first_line

Array = npt.NDArray[Any]
ALIGNMENT = 64


class Described(Protocol):
    """What an input has to be: its name, static shape and dtype."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


def is_torch(x: Any) -> bool:
    """Whether ``x`` is a torch tensor; torch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def dense_tensor(tensor: Any) -> Any:
    """A torch tensor with the values of ``tensor`` in ordinary memory, on its device; the same memory if it can be.

    A view that is conjugated or negated when it is read has other values in its memory, so it is carried out here.

    Raises
    ------
    ValueError
        Why there are no such values: the rest of a sentence that starts with the tensor.
    """
    import torch

    try:
        if tensor.is_nested:
            raise ValueError("is nested; give a tensor of one shape")
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.").lstrip("_")
            raise ValueError(f"has layout {layout}; give a dense one (.to_dense())")
        if tensor.is_quantized:
            raise ValueError("is quantized; give its numbers (.dequantize())")
        if tensor.is_meta:
            raise ValueError("is on the device meta, which keeps no values")
        dense = tensor.detach()
        if dense.is_conj() or dense.is_neg():
            dense = dense.resolve_conj().resolve_neg()
        address = dense.data_ptr()
    except ValueError:
        raise
    except Exception as error:  # a subclass of Tensor runs its own code
        raise ValueError(f"has no memory that can be read ({first_line(error)})") from error
    if not address and dense.numel():
        raise ValueError("has no memory that can be read")
    return dense


def weight_tensor(tensor: Any, name: str) -> Any:
    """A weight's values as a dense torch tensor on the CPU; the same memory if it can be.

    Raises
    ------
    ImportModelError
        If there are no values that can be read; ``name`` is named.
    """
    try:
        return dense_tensor(tensor).cpu()
    except ValueError as error:
        raise ImportModelError(f"tensor {name!r}: it {error}; load the model's weights first") from error


def host_arrays(inputs: Sequence[Any], wanted: Sequence[Described]) -> list[Array]:
    """The inputs as NumPy arrays in the machine's byte order; the same memory if it can be.

    Parameters
    ----------
    inputs : sequence of ndarray, torch.Tensor or object with ``__dlpack__`` or ``__array__``
    wanted : sequence of Described

    Raises
    ------
    InputError
        If there are more or fewer, one is something else, its values are not in the CPU's memory, or its shape or dtype
        is another.
    """
    return [x.numpy() if is_torch(x) else x for x in _readable(inputs, wanted)]


def device_tensors(inputs: Sequence[Any], wanted: Sequence[Described]) -> list[Any]:
    """The inputs as TVM tensors: the caller's own memory where order and alignment allow, else a copy.

    Raises
    ------
    InputError
        As `host_arrays`.
    """
    return [_device_tensor(x) for x in _readable(inputs, wanted)]


def _readable(inputs: Sequence[Any], wanted: Sequence[Described]) -> list[Any]:
    """Each input as a dense torch tensor or as a NumPy array, of the shape and dtype wanted."""
    if len(inputs) != len(wanted):
        names = ", ".join(w.name for w in wanted)
        raise InputError(f"{len(inputs)} inputs given, {len(wanted)} expected: {names}")
    found = []
    for x, w in zip(inputs, wanted, strict=True):
        try:
            values = _on_cpu(x) if is_torch(x) else _array(x)
        except ValueError as error:
            expected = f"{w.dtype}{list(w.shape)} expected"
            raise InputError(f"input {w.name!r}: the {type(x).__name__} {error}; {expected}") from error
        if tuple(values.shape) != w.shape or not _has_dtype(values, w.dtype):
            dtype = str(values.dtype).removeprefix("torch.")
            given, expected = f"{dtype}{list(values.shape)}", f"{w.dtype}{list(w.shape)}"
            raise InputError(f"input {w.name!r}: {given} given, {expected} expected")
        found.append(values)
    return found


def _has_dtype(values: Any, name: str) -> bool:
    if isinstance(values, np.ndarray):
        return bool(values.dtype == name)  # faster than making its name
    return str(values.dtype) == f"torch.{name}"


def _on_cpu(x: Any) -> Any:
    dense = dense_tensor(x)
    if not dense.is_cpu:
        raise ValueError(f"is on the device {dense.device}; move it to the CPU first (.cpu())")
    return dense


def _array(x: Any) -> Array:
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError("has a mask, which a network cannot read; give its numbers (.filled(value))")
    try:
        if isinstance(x, np.ndarray | np.generic):
            array = np.asarray(x)
        elif hasattr(x, "__dlpack__"):
            array = np.from_dlpack(x)
        elif hasattr(x, "__array__"):
            array = np.asarray(x)
        else:
            raise ValueError("is no array; allowed: NumPy arrays, torch tensors, objects with __dlpack__")
    except ValueError:
        raise
    except Exception as error:  # the other library's code
        raise ValueError(f"has no memory that can be read ({first_line(error)})") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _device_tensor(x: Any) -> Any:
    if is_torch(x):
        if x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0:
            return tvm.runtime.from_dlpack(x)
        return device_copy(x.numpy())
    flags = x.flags
    if not (flags.writeable and flags.c_contiguous) or x.ctypes.data % ALIGNMENT:
        return device_copy(x)
    return tvm.runtime.from_dlpack(x)


def device_copy(array: Array) -> Any:
    """A TVM tensor with a copy of ``array``."""
    out = tvm.runtime.empty(array.shape, str(array.dtype))
    out.copyfrom(np.asarray(array, order="C"))
    return out
