"""Operators on constants become constants."""

from __future__ import annotations

import math
import struct

from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op, facts
from attndsl.ir.rewrite import rewrite_variant
from attndsl.ir.variant import Variant

INT64 = range(-(2**63), 2**63)
SMALLEST_NORMAL = 2.0**-126
FOLDED_ON_FLOATS = frozenset(
    {Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.NEG, Op.ABS, Op.MIN, Op.MAX}
    | {Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE, Op.WHERE, Op.TO_BOOL, Op.TO_INT}
)
Value = bool | int | float


def fold_constants(variant: Variant) -> Variant:
    """Evaluate what does not depend on anything.

    before: `mask q_idx - kv_idx < 4 * 256 and 1 < 2`
    after:  `mask q_idx - kv_idx < 1024 and true`

    What has no exact value stays as written: a division by zero, an integer beyond 64 bits, a shift out of range, and
    floats whose result float32 (in kernels) and float64 (in the reference) would round differently.
    """
    return rewrite_variant(variant, _fold)


def _fold(node: Expr) -> Expr | None:
    match node:
        case Apply(op=Op.WHERE, args=(Const(value=condition), yes, no)):
            return yes if condition else no
        case Apply(op=op, args=args):
            constants = [arg.value for arg in args if isinstance(arg, Const)]
            if len(constants) < len(args):
                return None
            value = _value(op, constants)
            return None if value is None else _constant(node, value)
        case _:
            return None


def _value(op: Op, operands: list[Value]) -> Value | None:
    """The exact value, `None` where there is none."""
    exact = facts(op).exact
    if exact is None or not all(map(_is_portable, operands)):
        return None
    if any(isinstance(operand, float) for operand in operands) and op not in FOLDED_ON_FLOATS:
        return None
    match op, operands:
        case (Op.DIV | Op.FLOORDIV | Op.MOD, [_, divisor]) if divisor == 0:
            return None
        case (Op.SHL | Op.SHR, [_, count]) if not 0 <= count < 64:
            return None
        case (Op.MIN | Op.MAX, [float(left), float(right)]) if left == right and _bits(left) != _bits(right):
            return None  # which of the two zeros comes out differs between targets
        case (Op.TO_INT, [float(value)]) if not math.isfinite(value):
            return None
    result: Value = exact(*operands)
    return result if _is_portable(result) else None


def _is_portable(value: Value) -> bool:
    """Whether every target has this very value: an int of 64 bits, a float that float32 holds exactly."""
    if not isinstance(value, float):
        return isinstance(value, bool) or value in INT64
    if math.isinf(value) or value == 0.0:
        return True
    # Subnormals are flushed to zero by some targets; a NaN compares unequal and is left alone.
    return SMALLEST_NORMAL <= abs(value) < 2.0**128 and struct.unpack("<f", _single(value))[0] == value


def _single(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # rounds to a float32 infinity
        return struct.pack("<f", math.inf)


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)


def _constant(node: Apply, value: Value) -> Const:
    if node.dtype.is_bool:
        return build.boolean(bool(value))
    return build.integer(int(value)) if node.dtype.is_int else build.real(float(value))
