"""Writes docs/operators.md, the table of operators that can be imported, from the importers' own tables.

    python -m tools.operators

A test holds the page equal to what this makes.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
HEAD = """# Supported operators

What a model may consist of. Another operator is refused by name, with the module or node that it stands in.
The table says that there is a translation; shapes must be static, and an importer may still refuse a use of an
operator (the error says which).

*sparseflow* marks the operators that this project translates itself, because TVM has no translation, another meaning
at the edges, or inlines loops; TVM's importer translates the others. This page is made by `make operators`.
"""
TORCH = """
## torch

Operators of `torch.export`, `aten` left out, with their overloads. Any other operator is first decomposed by torch,
so most of what is not in the table is imported all the same.
"""
ONNX = """
## ONNX

Operators by name, from opset 1 on where TVM or this project reads their older forms. Functions of a model are inlined.
"""


def torch_rows() -> Iterable[tuple[str, str, bool]]:
    """Name, its overloads as text, and whether this project translates any of them."""
    from sparseflow.engine.frontends.torch_frontend import Importer, converters

    overloads, own = defaultdict(list), set()
    for key, convert in sorted(converters(Importer({})).items()):
        name, _, overload = key.partition(".")
        overloads[name].append(f"`{overload}`" if overload else "–")
        if str(getattr(convert, "__module__", "")).startswith("sparseflow."):
            own.add(name)
    return [(name, ", ".join(found), name in own) for name, found in overloads.items()]


def onnx_rows() -> Iterable[tuple[str, bool]]:
    """Name, and whether this project translates it."""
    from sparseflow.engine.frontends.onnx_frontend import HIGH_LEVEL, operators

    return [(name, name in HIGH_LEVEL) for name in sorted(operators())]


def page() -> str:
    """The whole page."""
    translated = {True: "sparseflow", False: "TVM"}
    lines = [HEAD, TORCH, "| operator | overloads | translated by |", "|---|---|---|"]
    lines += [f"| `{name}` | {found} | {translated[own]} |" for name, found, own in torch_rows()]
    lines += [ONNX, "| operator | translated by |", "|---|---|"]
    lines += [f"| `{name}` | {translated[own]} |" for name, own in onnx_rows()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PAGE.write_text(page(), encoding="utf-8")
