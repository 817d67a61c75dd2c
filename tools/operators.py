"""Writes docs/operators.md, the table of operators, from the importers' own tables and the registries.

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

KERNELS = """
## Kernels

What has a kernel in which form of a feature map; what has none in a form is changed to another by a conversion, or runs
on plain tensors with vector code of its own. *Lanes* is the layout of dense maps, *index* a map with the bits of its
non-zeros, *stream* a map of which only what changed is computed.
"""
ACTIVATIONS = """
Activations run at the end of the layer before them where nothing else reads that layer's result; those that leave zeros
zeros have kernels on maps too.
"""


def kernel_rows() -> Iterable[tuple[str, str, bool, bool]]:
    """Name, first line, and whether there is a kernel on indexed maps and on a stream's."""
    from sparseflow.ops.operator import OPERATORS, Operator

    for name, operator in sorted(OPERATORS.items()):
        meaning = (operator.__doc__ or "").splitlines()[0]
        yield name, meaning, operator.on_pixels is not Operator.on_pixels, operator.in_streams()


def activation_rows() -> Iterable[tuple[str, bool, bool]]:
    """Name, whether layers compute it at their end, and whether it leaves zeros zeros."""
    from sparseflow.core.activations import ACTIVATIONS

    return [(name, a.fused, a.keeps_zero()) for name, a in sorted(ACTIVATIONS.items())]


def torch_rows() -> Iterable[tuple[str, str, bool]]:
    """Name, its overloads as text, and whether this project translates any of them."""
    from sparseflow.engine.frontends.torch_frontend import Importer, converters

    overloads, own = defaultdict(list), set()
    for key, convert in sorted(converters(Importer({}, {})).items()):
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
    mark = {True: "yes", False: "–"}
    lines += [KERNELS, "| operator | meaning | lanes | index | stream |", "|---|---|---|---|---|"]
    lines += [f"| `{n}` | {text} | yes | {mark[i]} | {mark[s]} |" for n, text, i, s in kernel_rows()]
    lines += [ACTIVATIONS, "| activation | at the end of a layer | leaves zeros |", "|---|---|---|"]
    lines += [f"| `{n}` | {mark[fused]} | {mark[zeros]} |" for n, fused, zeros in activation_rows()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PAGE.write_text(page(), encoding="utf-8")
