"""The transformer of every integer and boolean operator, by operator."""

from __future__ import annotations

from collections.abc import Callable

from attndsl.analysis import bits
from attndsl.analysis import values as v
from attndsl.analysis.values import Interval, Truth
from attndsl.ir.ops import Op

INTEGER: dict[Op, Callable[..., Interval]] = {
    Op.ADD: v.add,
    Op.SUB: v.sub,
    Op.NEG: v.neg,
    Op.MUL: v.mul,
    Op.FLOORDIV: v.floordiv,
    Op.MOD: v.mod,
    Op.ABS: v.absolute,
    Op.MIN: v.minimum,
    Op.MAX: v.maximum,
    Op.BIT_AND: bits.bit_and,
    Op.BIT_OR: bits.bit_or,
    Op.BIT_XOR: bits.bit_xor,
    Op.BIT_NOT: v.bit_not,
    Op.SHL: v.shl,
    Op.SHR: v.shr,
    Op.BIT_LENGTH: bits.bit_length,
}

LOGIC: dict[Op, Callable[..., Truth]] = {
    Op.AND: v.logical_and,
    Op.OR: v.logical_or,
    Op.XOR: v.logical_xor,
    Op.NOT: v.logical_not,
}
