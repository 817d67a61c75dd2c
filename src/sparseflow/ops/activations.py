"""Activations in the forms in which importers write them: one operator, or several that read the same tensor.

Expressions are brought to one form before they are compared: products of a number and factors, sums of a number and
terms, with quotients and differences as products and sums. So it does not matter in which order an importer multiplies.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from operator import attrgetter
from typing import Any, Protocol

from tvm import ir, relax

from sparseflow.core.activations import ACTIVATIONS, Activation
from sparseflow.ops.expressions import is_constant, op_name, scalar

Expr = Any
Look = Callable[[Expr], Expr]
"""What a variable is bound to; any other expression itself."""

Term = tuple[Any, ...]
"""``(operator, operand, …)``, ``("number", value)``, ``("product", number, …)``, ``("sum", number, …)``"""

X: Term = ("x",)
PARAMETER: Term = ("t",)
NEAR = 9  # operators after a tensor among which the last of its activation is sought
COMPARED = ("greater", "less_equal")
MIRRORED = {"less": "greater", "greater_equal": "less_equal"}
PYTHON: dict[type, str] = {
    ast.Mult: "multiply", ast.Div: "divide", ast.Add: "add", ast.Sub: "subtract", ast.USub: "negative",
    ast.Gt: "greater", ast.GtE: "greater_equal", ast.Lt: "less", ast.LtE: "less_equal",
}  # fmt: skip


class Bindings(Protocol):
    """What is asked of a function's bindings: who reads a variable, how often, and what it is bound to."""

    @property
    def consumers(self) -> Mapping[Expr, list[Expr]]:
        """The variables whose values read a variable."""

    @property
    def uses(self) -> Mapping[Expr, int]:
        """How often a variable is read, results included."""

    def value(self, expr: Expr) -> Expr:
        """What a variable is bound to; the expression itself if it is no bound variable."""


@dataclass(frozen=True)
class Match:
    """An activation found in a graph.

    Attributes
    ----------
    activation : Activation
    parameter : float
    result : Var
        What its last operator is bound to.
    inside : list of Var
        Its operand, and what its other operators are bound to.
    """

    activation: Activation
    parameter: float
    result: Expr
    inside: list[Expr]


def single_activation(step: Expr) -> tuple[Activation, float] | None:
    """The activation that one operator on its first operand is, and its parameter; None if it is none."""
    if not isinstance(step, relax.Call) or not step.args:
        return None
    return _activation(_term(step, step.args[0], lambda e: e, 1, []), "forms")


def lane_function(step: Expr) -> str | None:
    """The activation as which one operator has a kernel of its own on maps; such a kernel leaves zeros zeros."""
    found = single_activation(step)
    fits = found is not None and found[0].fused and not found[0].has_parameter and found[0].keeps_zero()
    return found[0].name if found is not None and fits else None


def activation_of(graph: Bindings, x: Expr) -> Match | None:
    """The activation with vector code that operators make of ``x``, if nothing else reads ``x``."""
    reached = list(dict.fromkeys(graph.consumers.get(x, [])))
    for root in reached:  # which grows
        read: list[Expr] = []
        term = _term(root, x, graph.value, _depth("forms"), read)
        found = _activation(term, "forms")
        inside = [x, *(v for v in dict.fromkeys(read) if v is not root)]
        if found is not None and found[0].fused and _closed(graph, inside, root):
            return Match(*found, root, inside)
        if term is not None and len(reached) < NEAR:
            reached += [v for v in graph.consumers.get(root, []) if v not in reached]
    return None


def replacement(call: Expr, look: Look) -> Expr | None:
    """The one operator that stands for what ``call`` and the operators before it write; None if there is none."""
    if op_name(call).removeprefix("relax.") not in _replaced_roots():
        return None
    depth = _depth("replaced")
    for x in _below(call, look, depth):
        found = _activation(_term(call, x, look, depth, []), "replaced")
        if found is not None:
            name, _, *numbers = parsed(found[0].forms[0])
            return attrgetter(name)(relax.op)(x, *(value for _, value in numbers))
    return None


def _closed(graph: Bindings, inside: Sequence[Expr], root: Expr) -> bool:
    """Whether what is computed inside is read there only."""
    members = {*inside, root}
    return all(
        graph.uses[v] == len(users) and members.issuperset(users)
        for v in inside
        for users in [graph.consumers.get(v, [])]
    )


def _below(expr: Expr, look: Look, depth: int) -> Iterator[Expr]:
    """The variables from which ``expr`` is computed, near ones first."""
    level, seen = [expr], dict[Expr, None]()
    for _ in range(depth):
        calls = [value for e in level if _known(value := look(e))]
        level = list(
            dict.fromkeys(a for c in calls for a in c.args if isinstance(a, ir.Var) and a not in seen)
        )
        seen |= dict.fromkeys(level)
        yield from level


def _forms(kind: str) -> list[str]:
    """All activations' ``forms`` or ``replaced``."""
    return [form for a in ACTIVATIONS.values() for form in getattr(a, kind)]


@cache
def _replaced_roots() -> frozenset[str]:
    roots = {parsed(form)[0] for form in _forms("replaced")}
    return frozenset("multiply" if root == "product" else root for root in roots)


@cache
def _depth(kind: str) -> int:
    """Nested operators of the deepest form; one more, as a product may be written as several."""

    def depth(node: ast.AST) -> int:
        inner = max((depth(child) for child in ast.iter_child_nodes(node)), default=0)
        return inner + isinstance(node, ast.BinOp | ast.UnaryOp | ast.Call | ast.Compare)

    return 1 + max(depth(ast.parse(form)) for form in _forms(kind))


@cache
def _operators() -> frozenset[str]:
    """What occurs in forms."""

    def names(term: Term) -> set[str]:
        return {term[0]}.union(*(names(part) for part in term[1:] if isinstance(part, tuple)))

    forms = [parsed(form) for kind in ("forms", "replaced") for form in _forms(kind)]
    return frozenset({"astype", *PYTHON.values()}.union(*map(names, forms)))


@cache
def _attributes() -> dict[str, list[str]]:
    """Operators of forms and the attributes that stand there as keywords, in order."""
    forms = [ast.parse(form) for kind in ("forms", "replaced") for form in _forms(kind)]
    calls = [
        node for form in forms for node in ast.walk(form) if isinstance(node, ast.Call) and node.keywords
    ]
    return {ast.unparse(call.func): [str(k.arg) for k in call.keywords] for call in calls}


def _known(value: Expr) -> bool:
    """Whether it calls an operator that occurs in a form."""
    return op_name(value).removeprefix("relax.") in _operators()


def _activation(term: Term | None, kind: str) -> tuple[Activation, float] | None:
    """The activation and parameter of a term; None if no form fits."""
    if term is None or term is X:
        return None
    for activation in ACTIVATIONS.values():
        for form in getattr(activation, kind):
            bound: dict[str, float] = {}
            if _fits(parsed(form), term, bound) and activation.allows(t := bound.get("t", 0.0)):
                return activation, t
    return None


def _fits(form: Term, term: Term, bound: dict[str, float]) -> bool:
    """Whether a term is what a form says; puts the parameter into ``bound``."""
    if form == PARAMETER:
        if term[0] == "number":
            bound["t"] = term[1]
        return bool(term[0] == "number")
    if form[0] != term[0] or len(form) != len(term):
        return False
    if form[0] == "number":
        return math.isclose(form[1], term[1], rel_tol=1e-5, abs_tol=1e-8)
    if form[0] not in ("product", "sum"):
        return all(_fits(f, t, bound) for f, t in zip(form[1:], term[1:], strict=True))
    if not math.isclose(form[1], term[1], rel_tol=1e-5, abs_tol=1e-8):
        return False
    return any(
        all(_fits(f, t, bound) for f, t in zip(form[2:], order, strict=True))
        for order in permutations(term[2:])
    )


# ------------------------------------------------------------------------------------------------ terms
@cache
def parsed(form: str) -> Term:
    """A form of an `Activation` as a term."""
    return _of_python(ast.parse(form, mode="eval").body)


def _of_python(node: Any) -> Term:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Constant):
        return "number", float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp):
        return _made(PYTHON[type(node.op)], [_of_python(node.operand)])
    if isinstance(node, ast.BinOp):
        return _made(PYTHON[type(node.op)], [_of_python(node.left), _of_python(node.right)])
    if isinstance(node, ast.Compare):
        sides = [_of_python(node.left), _of_python(node.comparators[0])]
        return _made(PYTHON[type(node.ops[0])], sides)
    operands = [*node.args, *(k.value for k in node.keywords)]
    return _made(ast.unparse(node.func), [_of_python(a) for a in operands])


def _term(expr: Expr, x: Expr, look: Look, depth: int, inside: list[Expr]) -> Term | None:
    """An expression as a term of ``x``, and the variables inside of it; None if it reads anything else."""
    if expr.same_as(x):
        return X
    value = look(expr)
    if is_constant(value):
        number = scalar(value)
        return None if number is None else ("number", number)
    if not isinstance(value, relax.Call):
        number = getattr(value, "value", None)
        return ("number", float(number)) if isinstance(number, int | float) else None
    if depth == 0 or not _known(value):
        return None
    if isinstance(expr, ir.Var):
        inside.append(expr)
    terms: list[Term] = []
    for operand in value.args:
        term = _term(operand, x, look, depth - 1, inside)
        if term is None:
            return None
        terms.append(term)
    name = op_name(value).removeprefix("relax.")
    numbers = (float(getattr(value.attrs, key)) for key in _attributes().get(name, ()))
    return _made(name, [*terms, *(("number", n) for n in numbers)])


def _made(name: str, operands: list[Term]) -> Term:
    """An operator on terms, in the one form of what means the same."""
    if name == "astype":
        return operands[0] if operands[0][0] in COMPARED else ("astype", *operands)
    if name == "multiply":
        return _product(operands)
    if name == "negative":
        return _product([("number", -1.0), *operands])
    if name == "divide":
        top, bottom = operands
        known = bottom[0] == "number" and bottom[1] != 0.0
        return _product([top, ("number", 1.0 / bottom[1]) if known else ("reciprocal", bottom)])
    if name == "add":
        return _sum(operands)
    if name == "subtract":
        return _sum([operands[0], _product([("number", -1.0), operands[1]])])
    if name in MIRRORED:
        return (MIRRORED[name], *reversed(operands))
    return (name, *operands)


def _product(operands: Sequence[Term]) -> Term:
    scale, factors = 1.0, list[Term]()
    for term in operands:
        number, rest = (term[1], term[2:]) if term[0] == "product" else (1.0, (term,))
        if term[0] == "number":
            number, rest = term[1], ()
        scale, factors = scale * number, [*factors, *rest]
    if not factors:
        return "number", scale
    return factors[0] if scale == 1.0 and len(factors) == 1 else ("product", scale, *factors)


def _sum(operands: Sequence[Term]) -> Term:
    shift, terms = 0.0, list[Term]()
    for term in operands:
        number, rest = (term[1], term[2:]) if term[0] == "sum" else (0.0, (term,))
        if term[0] == "number":
            number, rest = term[1], ()
        shift, terms = shift + number, [*terms, *rest]
    if not terms:
        return "number", shift
    return terms[0] if shift == 0.0 and len(terms) == 1 else ("sum", shift, *terms)
