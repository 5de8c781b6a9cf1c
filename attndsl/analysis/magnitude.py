"""How large the integers of an expression can get, coarsely and without running anything.

In: an integer expression. Out: a bound passes use to keep a rearranged comparison within 64 bits. It is no proof that
an integer fits: that needs the values of a call.
"""

from __future__ import annotations

from collections.abc import Mapping

from attndsl.ir.nodes import Apply, Const, Coord, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder

POSITION = 2**31
"""Coordinates and lengths are taken to be smaller."""

PARAMETER = 2**48
"""Integers from outside (scalars, captured tensors), and products and shifts as they were written, are taken to be no
larger when forms are rearranged."""

CEILING = 2**64
"""Where bounds stop growing: larger than any integer a kernel can hold."""


def magnitude(expr: Expr) -> int:
    """An upper bound on the absolute value of an integer expression and of every integer it is computed from."""
    bounds: dict[Expr, int] = {}
    widest = 0
    for node in postorder(expr):
        bounds[node] = min(_magnitude(node, bounds), CEILING)
        if node.dtype.is_int:
            widest = max(widest, bounds[node])
    return widest


def _magnitude(node: Expr, bounds: Mapping[Expr, int]) -> int:
    match node:
        case Const(value=int(value)):
            return abs(value)
        case Coord():
            return POSITION
        case Apply(op=Op.ADD | Op.SUB, args=(left, right)):
            return bounds[left] + bounds[right]
        case Apply(op=Op.MUL, args=(left, right)) if isinstance(left, Const) or isinstance(right, Const):
            return bounds[left] * bounds[right]
        case Apply(op=Op.MIN | Op.MAX, args=(left, right)):
            return max(bounds[left], bounds[right])
        case Apply(op=Op.WHERE, args=(_, left, right)):
            return max(bounds[left], bounds[right])
        case Apply(op=Op.MOD, args=(_, Const(value=divisor))):
            return abs(int(divisor))
        case Apply(op=Op.FLOORDIV, args=(arg, Const(value=divisor))) if divisor != 0:
            return bounds[arg] // abs(int(divisor)) + 1
        case Apply(op=Op.NEG | Op.ABS, args=(arg,)):
            return bounds[arg]
        case Apply(op=Op.TO_INT, args=(arg,)) if arg.dtype.is_bool:
            return 1
        case _:
            return PARAMETER
