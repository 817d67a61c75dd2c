"""What all frontends share: the check of tensors' types, and blocks closed after a failure."""

from __future__ import annotations

import contextlib
from typing import Any

from sparseflow.errors import ImportModelError


def check_dtype(name: str, dtype: str) -> None:
    """Nothing for float32 and for integers and truth values.

    Raises
    ------
    ImportModelError
        For any other floating-point type.
    """
    if "float" in dtype and dtype != "float32":
        raise ImportModelError(
            f"tensor {name!r}: its type is {dtype}; only float32 models compile: convert the model first (.float())"
        )


def close_blocks(builder: Any) -> None:
    """Ends the block that a failed translation leaves open, of which TVM would warn on standard error."""
    with contextlib.suppress(RuntimeError, AttributeError):
        builder._end_block()
