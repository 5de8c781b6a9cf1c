"""Float arithmetic on expressions as a person would write it: what does nothing is left out.

In: expressions a derivation puts together. Out: one expression. Only what holds for every float is used, up to the sign
of zero: `x * 0` stays, as x may be infinite; a part that is zero by a rule is not multiplied in the first place.
"""

from __future__ import annotations

from collections.abc import Iterable

from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op

ZERO = build.real(0.0)
ONE = build.real(1.0)


def add(left: Expr, right: Expr) -> Expr:
    """left + right; a difference where one of them is negated."""
    match left, right:
        case Const(value=x), Const(value=y):
            return build.real(x + y)
        case _ if left is ZERO:
            return right
        case _ if right is ZERO:
            return left
        case _, Apply(op=Op.NEG, args=(operand,)):
            return sub(left, operand)
        case Apply(op=Op.NEG, args=(operand,)), _:
            return sub(right, operand)
        case _:
            return build.apply(Op.ADD, left, right)


def sub(left: Expr, right: Expr) -> Expr:
    """left - right."""
    match left, right:
        case Const(value=x), Const(value=y):
            return build.real(x - y)
        case _ if left is ZERO:
            return neg(right)
        case _ if right is ZERO:
            return left
        case _, Apply(op=Op.NEG, args=(operand,)):
            return add(left, operand)
        case _:
            return build.apply(Op.SUB, left, right)


def neg(operand: Expr) -> Expr:
    """-operand, without a double sign."""
    match operand:
        case Const(value=x):
            return build.real(-x)
        case Apply(op=Op.NEG, args=(inner,)):
            return inner
        case Apply(op=Op.SUB, args=(left, right)):
            return sub(right, left)
        case _:
            return build.apply(Op.NEG, operand)


def mul(left: Expr, right: Expr) -> Expr:
    """left * right, the sign outermost."""
    match left, right:
        case Const(value=x), Const(value=y):
            return build.real(x * y)
        case (Const(value=1.0), other) | (other, Const(value=1.0)):
            return other
        case (Const(value=-1.0), other) | (other, Const(value=-1.0)):
            return neg(other)
        case (Apply(op=Op.NEG, args=(inner,)), other) | (other, Apply(op=Op.NEG, args=(inner,))):
            return neg(mul(inner, other))
        case _:
            return build.apply(Op.MUL, left, right)


def div(left: Expr, right: Expr) -> Expr:
    """left / right, the sign outermost."""
    match left, right:
        case other, Const(value=1.0):
            return other
        case (Apply(op=Op.NEG, args=(inner,)), other):
            return neg(div(inner, other))
        case (other, Apply(op=Op.NEG, args=(inner,))):
            return neg(div(other, inner))
        case _:
            return build.apply(Op.DIV, left, right)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """yes where the condition holds, else no."""
    if yes is no:
        return yes
    match condition:
        case Const(value=truth):
            return yes if truth else no
        case Apply(op=Op.NOT, args=(opposite,)):
            return select(opposite, no, yes)
        case _:
            return build.apply(Op.WHERE, condition, yes, no)


def call(op: Op, operand: Expr) -> Expr:
    """A function of one float."""
    return build.apply(op, operand)


def total(parts: Iterable[Expr]) -> Expr:
    """The sum of the parts, 0 where there are none."""
    found: Expr = ZERO
    for part in parts:
        found = add(found, part)
    return found
