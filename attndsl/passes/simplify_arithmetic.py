"""Arithmetic that does nothing goes away."""

from __future__ import annotations

import math

from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import rewrite_variant
from attndsl.ir.variant import Variant

IDEMPOTENT = frozenset({Op.MIN, Op.MAX, Op.BIT_AND, Op.BIT_OR})
ZERO_WITH_ITSELF = frozenset({Op.SUB, Op.BIT_XOR})

NEUTRAL_RIGHT: dict[Op, int] = {
    Op.ADD: 0,
    Op.SUB: 0,
    Op.MUL: 1,
    Op.FLOORDIV: 1,
    Op.SHL: 0,
    Op.SHR: 0,
    Op.BIT_AND: -1,
    Op.BIT_OR: 0,
    Op.BIT_XOR: 0,
}
"""`x op c` is x, on integers; for commutative operators `c op x` too."""

ABSORBING: dict[Op, int] = {Op.MUL: 0, Op.BIT_AND: 0, Op.BIT_OR: -1}
"""`x op c` and `c op x` are c, on integers."""

FLOAT_NEUTRAL_RIGHT: dict[Op, float] = {Op.ADD: -0.0, Op.SUB: 0.0, Op.MUL: 1.0, Op.DIV: 1.0}
"""`x op c` is x to the bit, for every float x: `x + 0.0` is not (it turns -0.0 into 0.0)."""


def simplify_arithmetic(variant: Variant) -> Variant:
    """Remove identities of integers, and those of floats that hold to the bit for every value, NaN included.

    before: `mask kv_idx * 1 + 0 <= max(q_idx, q_idx)`
    after:  `mask kv_idx <= q_idx`
    """
    return rewrite_variant(variant, _simplify)


def _simplify(node: Expr) -> Expr | None:
    match node:
        case Apply(op=Op.WHERE, args=(_, yes, no)) if yes is no:
            return yes
        case Apply(op=op, args=(left, right)) if left is right and op in IDEMPOTENT:
            return left
        case Apply(args=(arg,)):
            return _unary(node, arg)
        case Apply(op=op, args=(left, right)) if left.dtype.is_int and node.dtype.is_int:
            return _integer(op, left, right)
        case Apply(op=op, args=(left, right)) if left.dtype.is_float and node.dtype.is_float:
            return _float(op, left, right)
        case _:
            return None


def _unary(node: Apply, arg: Expr) -> Expr | None:
    match node.op, arg:
        case (Op.NEG, Apply(op=Op.NEG, args=(inner,))) | (Op.BIT_NOT, Apply(op=Op.BIT_NOT, args=(inner,))):
            return inner
        case (Op.ABS, Apply(op=Op.ABS)):
            return arg
        case (Op.ABS, Apply(op=Op.NEG, args=(inner,))):
            return build.apply(Op.ABS, inner)
        case _:
            return None


def _integer(op: Op, left: Expr, right: Expr) -> Expr | None:
    commutative = op in (Op.ADD, Op.MUL, Op.BIT_AND, Op.BIT_OR, Op.BIT_XOR)
    for value, constant in ((left, right), (right, left)) if commutative else ((left, right),):
        if isinstance(constant, Const) and constant.value == NEUTRAL_RIGHT.get(op):
            return value
        if isinstance(constant, Const) and constant.value == ABSORBING.get(op):
            return constant
    match op, left, right:
        case (_, _, _) if left is right and op in ZERO_WITH_ITSELF:
            return build.integer(0)
        case (Op.SUB, Const(value=0), _):
            return build.apply(Op.NEG, right)
        case (Op.MUL, _, Const(value=-1)):
            return build.apply(Op.NEG, left)
        case (Op.MUL, Const(value=-1), _):
            return build.apply(Op.NEG, right)
        case (Op.MOD, _, Const(value=1)):
            return build.integer(0)
        case _:
            return None


def _float(op: Op, left: Expr, right: Expr) -> Expr | None:
    neutral = FLOAT_NEUTRAL_RIGHT.get(op)
    if neutral is None:
        return None
    for value, constant in ((left, right), (right, left)) if op in (Op.ADD, Op.MUL) else ((left, right),):
        if isinstance(constant, Const) and _same_bits(float(constant.value), neutral):
            return value
    return None


def _same_bits(left: float, right: float) -> bool:
    return left == right and math.copysign(1.0, left) == math.copysign(1.0, right)
