"""The derivative of every operator on floats: one row each, so that a new operator is one row and its tests.

A row has one entry for each operand: what flows back to it from the gradient of the result, or `None` where nothing
does. Conventions are those of torch: ties of `min` and `max` share the gradient evenly, `abs` has slope 0 at 0, steps
(`floor`, `//`) have slope 0 everywhere. Entries reuse the result where that is cheaper: tanh' is 1 - tanh * tanh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from attndsl.analysis.arithmetic import ONE, ZERO, add, call, div, mul, neg, select, sub
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op

Literal = tuple[Expr, bool]
"""A condition, and whether it holds or fails."""

Back = Callable[[Expr, Apply], Expr]
Gate = Callable[[Apply], tuple[Literal, ...]]

LN2 = build.real(math.log(2.0))
HALF = build.real(0.5)


def _open(node: Apply) -> tuple[Literal, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Partial:
    """`back(gradient, node)` flows to the operand where all literals of `gate(node)` hold, and nothing elsewhere."""

    back: Back
    gate: Gate = _open


Row = tuple[Partial | None, ...]


def _same(gradient: Expr, node: Apply) -> Expr:
    return gradient


def _chain(slope: Callable[[Expr, Apply], Expr]) -> Row:
    """A function of one operand: the gradient times the slope at the operand, given the operand and the result."""
    return (Partial(lambda gradient, node: mul(gradient, slope(node.args[0], node))),)


def _square(operand: Expr) -> Expr:
    return mul(operand, operand)


def _over_divisor(gradient: Expr, node: Apply) -> Expr:
    return div(gradient, node.args[1])


def _by_divisor(gradient: Expr, node: Apply) -> Expr:
    return neg(mul(div(gradient, node.args[1]), node))


def _by_modulus(gradient: Expr, node: Apply) -> Expr:
    return neg(mul(gradient, build.apply(Op.FLOORDIV, *node.args)))


def _to_base(gradient: Expr, node: Apply) -> Expr:
    base, exponent = node.args
    lower = sub(exponent, ONE)
    return mul(gradient, mul(exponent, base if lower is ONE else build.apply(Op.POW, base, lower)))


def _to_exponent(gradient: Expr, node: Apply) -> Expr:
    return mul(gradient, mul(node, call(Op.LOG, node.args[0])))


def _exponent_counts(node: Apply) -> tuple[Literal, ...]:
    """x ** 0 is 1 even at 0."""
    exponent = node.args[1]
    return () if isinstance(exponent, Const) else ((build.apply(Op.EQ, exponent, ZERO), False),)


def _base_counts(node: Apply) -> tuple[Literal, ...]:
    """0 ** x stays 0 when x moves."""
    base, exponent = node.args
    at_zero = build.apply(Op.AND, build.apply(Op.EQ, base, ZERO), build.apply(Op.GE, exponent, ZERO))
    return ((at_zero, False),)


def _absolute(gradient: Expr, node: Apply) -> Expr:
    return select(build.apply(Op.LT, node.args[0], ZERO), neg(gradient), gradient)


def _off_zero(node: Apply) -> tuple[Literal, ...]:
    return ((build.apply(Op.NE, node.args[0], ZERO), True),)


def _shared_on_ties(gradient: Expr, node: Apply) -> Expr:
    return select(build.apply(Op.EQ, *node.args), mul(gradient, HALF), gradient)


def _extreme(op: Op) -> Row:
    """`min` or `max`: to the operand that `op` finds ahead of the other or on a par with it."""
    return (
        Partial(_shared_on_ties, lambda node: ((build.apply(op, *node.args), True),)),
        Partial(_shared_on_ties, lambda node: ((build.apply(op, *reversed(node.args)), True),)),
    )


def _where() -> Row:
    return (
        None,
        Partial(_same, lambda node: ((node.args[0], True),)),
        Partial(_same, lambda node: ((node.args[0], False),)),
    )


def _log(base: float) -> Row:
    factor = build.real(1.0 / math.log(base))
    return (Partial(lambda gradient, node: mul(factor, div(gradient, node.args[0]))),)


def _silu_slope(operand: Expr, result: Expr) -> Expr:
    share = call(Op.SIGMOID, operand)
    return add(share, mul(result, sub(ONE, share)))


def _gelu_slope(operand: Expr, result: Expr) -> Expr:
    share = mul(HALF, add(ONE, call(Op.ERF, mul(operand, build.real(math.sqrt(0.5))))))
    density = mul(build.real(1.0 / math.sqrt(2.0 * math.pi)), _bell(operand, 0.5))
    return add(share, mul(operand, density))


def _bell(operand: Expr, rate: float) -> Expr:
    """exp(-rate * x * x)"""
    return call(Op.EXP, neg(mul(build.real(rate), _square(operand))))


FLAT: Row = (None,)

RULES: dict[Op, Row] = {
    Op.ADD: (Partial(_same), Partial(_same)),
    Op.SUB: (Partial(_same), Partial(lambda gradient, node: neg(gradient))),
    Op.MUL: (
        Partial(lambda gradient, node: mul(gradient, node.args[1])),
        Partial(lambda gradient, node: mul(gradient, node.args[0])),
    ),
    Op.DIV: (Partial(_over_divisor), Partial(_by_divisor)),
    Op.FLOORDIV: (None, None),
    Op.MOD: (Partial(_same), Partial(_by_modulus)),
    Op.POW: (Partial(_to_base, _exponent_counts), Partial(_to_exponent, _base_counts)),
    Op.NEG: (Partial(lambda gradient, node: neg(gradient)),),
    Op.ABS: (Partial(_absolute, _off_zero),),
    Op.MIN: _extreme(Op.LE),
    Op.MAX: _extreme(Op.GE),
    Op.WHERE: _where(),
    Op.EXP: _chain(lambda x, result: result),
    Op.EXP2: _chain(lambda x, result: mul(LN2, result)),
    Op.LOG: (Partial(lambda gradient, node: div(gradient, node.args[0])),),
    Op.LOG2: _log(2.0),
    Op.SQRT: (Partial(lambda gradient, node: mul(HALF, div(gradient, node))),),
    Op.RSQRT: _chain(lambda x, result: neg(mul(HALF, mul(result, _square(result))))),
    Op.SIN: _chain(lambda x, result: call(Op.COS, x)),
    Op.COS: _chain(lambda x, result: neg(call(Op.SIN, x))),
    Op.TAN: _chain(lambda x, result: add(ONE, _square(result))),
    Op.TANH: _chain(lambda x, result: sub(ONE, _square(result))),
    Op.SIGMOID: _chain(lambda x, result: mul(result, sub(ONE, result))),
    Op.SILU: _chain(_silu_slope),
    Op.GELU: _chain(_gelu_slope),
    Op.ERF: _chain(lambda x, result: mul(build.real(2.0 / math.sqrt(math.pi)), _bell(x, 1.0))),
    Op.FLOOR: FLAT,
    Op.CEIL: FLAT,
    Op.ROUND: FLAT,
    Op.TO_FLOAT: (Partial(_same),),
}
