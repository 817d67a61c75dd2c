"""Activations in the forms in which importers write them: one operator, or several that read the same tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseflow.passes.graph import Graph, is_constant, op_name

Expr = Any


@dataclass(frozen=True)
class Activation:
    """An activation of `sparseflow.kernels.workload.ACTIVATIONS`.

    Attributes
    ----------
    kind : str
    threshold : float
        Of ``fatrelu``; not negative.
    """

    kind: str = "none"
    threshold: float = 0.0


IDENTITY = Activation()


@dataclass(frozen=True)
class Spread:
    """An activation written with several operators.

    Attributes
    ----------
    result : Var
        What the last of them is bound to.
    inside : list of Var
        The activation's operand, and what the other operators are bound to.
    """

    activation: Activation
    result: Expr
    inside: list[Expr]


def single_activation(step: Expr) -> Activation | None:
    """The activation that one operator is; None if it is none."""
    name = op_name(step)
    if name == "relax.clip":
        low, high = (float(getattr(a, "value", np.nan)) for a in step.args[1:3])
        return Activation("relu6") if (low, high) == (0.0, 6.0) else None
    kind = {"relax.nn.relu": "relu", "relax.nn.silu": "silu", "relax.nn.gelu": "gelu"}.get(name)
    return Activation(kind) if kind is not None else None


def spread_activation(graph: Graph, x: Expr) -> Spread | None:
    """The activation of ``x`` that several operators make together, if nothing else reads ``x``."""
    users = graph.consumers.get(x, [])
    if graph.uses[x] != 2 or len(set(users)) != 2:
        return None
    return _hardswish(graph, x, users) or _fatrelu(graph, x, users)


def _hardswish(graph: Graph, x: Expr, users: list[Expr]) -> Spread | None:
    """``x * (clip(x + 3, 0, 6) / 6)``."""
    add, multiply = users if op_name(graph.definition[users[0]]) == "relax.add" else users[::-1]
    clip = _only_user(graph, add)
    scaled = _only_user(graph, clip)
    if scaled is None or _only_user(graph, scaled) != multiply:
        return None
    shifted = op_name(graph.definition[add]) == "relax.add" and _has_scalar(graph, add, 3.0)
    clipped = single_activation(graph.definition[clip]) == Activation("relu6")
    kind = op_name(graph.definition[scaled])
    sixth = (kind == "relax.divide" and _has_scalar(graph, scaled, 6.0, first=1)) or (
        kind == "relax.multiply" and _has_scalar(graph, scaled, 1 / 6)
    )
    if not (shifted and clipped and sixth) or op_name(graph.definition[multiply]) != "relax.multiply":
        return None
    return Spread(Activation("hardswish"), multiply, [x, add, clip, scaled])


def _fatrelu(graph: Graph, x: Expr, users: list[Expr]) -> Spread | None:
    """``where(x > t, x, 0)``, ``where(x <= t, 0, x)`` or ``x * (x > t)``, with a constant t that is not negative."""
    compare, result = users if _comparison(graph, x, users[0]) else users[::-1]
    found = _comparison(graph, x, compare)
    if found is None or found[1] < 0.0 or _only_user(graph, compare) is None:
        return None
    above, threshold = found
    inside = [x, compare]
    step = graph.definition[result]
    if op_name(step) == "relax.where":
        condition, *values = step.args
        kept, zero = values if above else values[::-1]
        fits = condition == compare and kept == x and _is_scalar(graph, zero, 0.0)
    else:
        cast = _only_user(graph, compare)
        fits = above and op_name(graph.value(cast)) == "relax.astype" and _only_user(graph, cast) == result
        fits = fits and op_name(step) == "relax.multiply"
        inside.append(cast)
    if not fits:
        return None
    activation = Activation("fatrelu", threshold) if threshold > 0.0 else Activation("relu")
    return Spread(activation, result, inside)


_ABOVE = {"relax.greater": True, "relax.less_equal": False}
_ABOVE_MIRRORED = {"relax.less": True, "relax.greater_equal": False}


def _comparison(graph: Graph, x: Expr, var: Expr) -> tuple[bool, float] | None:
    """Whether ``var`` is true above a constant scalar or up to it, and the scalar; None if it compares nothing so."""
    step = graph.definition[var]
    for names, mine in ((_ABOVE, 0), (_ABOVE_MIRRORED, 1)):
        if op_name(step) in names and step.args[mine] == x:
            number = graph.value(step.args[1 - mine])
            if is_constant(number) and number.value.numpy().size == 1:
                return names[op_name(step)], float(number.value.numpy().reshape(()))
    return None


def _only_user(graph: Graph, var: Expr | None) -> Expr | None:
    """The one binding that reads ``var``, once; None if there are more, or if it is a result."""
    users = graph.consumers.get(var, [])
    return users[0] if var is not None and len(users) == 1 and graph.uses[var] == 1 else None


def _is_scalar(graph: Graph, expr: Expr, value: float) -> bool:
    """Whether ``expr`` is a constant whose one element is ``value``."""
    number = graph.value(expr)
    if not is_constant(number) or number.value.numpy().size != 1:
        return False
    return bool(np.isclose(number.value.numpy(), value).all())


def _has_scalar(graph: Graph, var: Expr, value: float, first: int = 0) -> bool:
    """Whether an operand of ``var``'s call, from number ``first`` on, is a constant with the one element ``value``."""
    return any(_is_scalar(graph, a, value) for a in graph.definition[var].args[first:])
