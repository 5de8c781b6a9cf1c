"""Conditions built from conditions, in the shape `simplify_logic` leaves them in."""

from __future__ import annotations

from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op

OPPOSITE: dict[Op, Op] = {
    Op.LT: Op.GE,
    Op.GE: Op.LT,
    Op.GT: Op.LE,
    Op.LE: Op.GT,
    Op.EQ: Op.NE,
    Op.NE: Op.EQ,
}
DUAL = {Op.AND: Op.OR, Op.OR: Op.AND}


def is_junction(condition: Expr) -> bool:
    """Whether a condition is an `and` or an `or`."""
    return isinstance(condition, Apply) and condition.op in DUAL


def negation(condition: Expr) -> Expr:
    """`not condition`, the `not` pushed down to where it cannot go further.

    Comparisons of floats keep their `not`: `not (x < y)` holds for a NaN, `x >= y` does not.
    """
    negated: dict[Expr, Expr] = {}
    stack = [condition]
    while stack:
        node = stack[-1]
        waiting = [arg for arg in _arms(node) if arg not in negated]
        if waiting:
            stack.extend(waiting)
            continue
        negated[node] = _negated(node, negated)
        stack.pop()
    return negated[condition]


def choice(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`yes if condition else no` for conditions, as logic."""
    if yes is no:
        return yes
    if yes is build.TRUE:
        return condition if no is build.FALSE else build.apply(Op.OR, condition, no)
    if no is build.FALSE:
        return build.apply(Op.AND, condition, yes)
    if yes is build.FALSE:
        return negation(condition) if no is build.TRUE else build.apply(Op.AND, negation(condition), no)
    if no is build.TRUE:
        return build.apply(Op.OR, negation(condition), yes)
    taken = build.apply(Op.AND, condition, yes)
    return build.apply(Op.OR, taken, build.apply(Op.AND, negation(condition), no))


def both(left: Expr, right: Expr) -> Expr:
    """`left and right`, just one of them where the other is true."""
    if left is build.TRUE:
        return right
    return left if right is build.TRUE else build.apply(Op.AND, left, right)


def _arms(node: Expr) -> tuple[Expr, ...]:
    return node.args if isinstance(node, Apply) and node.op in DUAL else ()


def _negated(node: Expr, negated: dict[Expr, Expr]) -> Expr:
    match node:
        case Const(value=value):
            return build.boolean(not value)
        case Apply(op=Op.NOT, args=(arg,)):
            return arg
        case Apply(op=Op.AND | Op.OR as op, args=(left, right)):
            return build.apply(DUAL[op], negated[left], negated[right])
        case Apply(op=op, args=(left, right)) if op in (Op.EQ, Op.NE) or (op in OPPOSITE and left.dtype.is_int):
            return build.apply(OPPOSITE[op], left, right)
        case _:
            return build.apply(Op.NOT, node)
