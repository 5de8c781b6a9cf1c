"""How large the scores of a variant can get: whether one can be -inf though nothing wrote or loaded an infinity.

In: a score expression. Out: a bound on its absolute value as an expression over float scalars, from which the host
tells, with the values of a call, that every score is finite. NaN is no concern here: it is not -inf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Input, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder

LARGEST = 3.4028234663852886e38
"""The largest finite number of float32."""

LARGEST_PRODUCT = 1e24
"""Scaled dot products are taken to be no larger: those of finite float16 inputs cannot be."""

LARGEST_INTEGER = 2.0**31
"""Where a proof is used, integers fit in 32 bits."""

_SATURATING = frozenset({Op.TANH, Op.SIGMOID, Op.SIN, Op.COS, Op.ERF})
_SHRINKING = frozenset({Op.NEG, Op.ABS, Op.SILU, Op.GELU})


def finite_facts(score: Expr) -> tuple[Expr, ...] | None:
    """What must hold of the float scalars, in float32, for no score to be infinite; `None` where nothing ensures it."""
    bounds: dict[Expr, Expr] = {}
    for node in postorder(score):
        if node.dtype.is_float:
            bound = _bound(node, bounds)
            if bound is not None:
                bounds[node] = bound
    bound = build.real(LARGEST_PRODUCT) if score is build.SCORE else bounds.get(score)
    match bound:
        case None:
            return None
        case Const(value=value):
            return () if value <= LARGEST else None
        case _:
            return (build.apply(Op.LT, bound, build.real(math.inf)),)


def _bound(node: Expr, bounds: Mapping[Expr, Expr]) -> Expr | None:
    """A bound on the absolute value of a float from its operands' bounds."""
    match node:
        case Const(value=value):
            return build.real(abs(value))
        case Input():
            return build.real(LARGEST_PRODUCT)
        case Scalar():
            return build.apply(Op.ABS, node)
        case Apply(op=Op.TO_FLOAT):
            return build.real(LARGEST_INTEGER)
        case Apply(op=op) if op in _SATURATING:
            return build.real(1.0)
        case Apply(op=Op.WHERE, args=(_, left, right)):
            return _joined(Op.MAX, bounds.get(left), bounds.get(right))
        case Apply(op=op, args=args):
            return _of_operator(op, [bounds.get(arg) for arg in args], args)
        case _:
            return None


def _of_operator(op: Op, found: list[Expr | None], args: tuple[Expr, ...]) -> Expr | None:
    if None in found:
        return None
    match op:
        case Op.ADD | Op.SUB:
            return _joined(Op.ADD, *found)
        case Op.MIN | Op.MAX:
            return _joined(Op.MAX, *found)
        case Op.MUL:
            return _joined(Op.MUL, *found)
        case Op.DIV if isinstance(args[1], Scalar) or (isinstance(args[1], Const) and args[1].value != 0):
            return _joined(Op.DIV, *found)
        case _ if op in _SHRINKING:
            return found[0]
        case _:
            return None


def _joined(op: Op, left: Expr | None, right: Expr | None) -> Expr | None:
    """An operator on two bounds, worked out where both are numbers."""
    if left is None or right is None:
        return None
    if isinstance(left, Const) and isinstance(right, Const):
        x, y = float(left.value), float(right.value)
        return build.real({Op.ADD: x + y, Op.MUL: x * y, Op.MAX: max(x, y), Op.DIV: x / y if y else x}[op])
    if op is Op.MUL and any(isinstance(side, Const) and side.value == 1.0 for side in (left, right)):
        return right if isinstance(left, Const) and left.value == 1.0 else left
    return build.apply(op, left, right)
