"""What a running sum is multiplied by when a running maximum grows.

In: an expression of a pair that reads maxima `m`. Out: the logarithm of ρ in `g(s, m') = ρ · g(s, m)` as an expression
of m and m' that is free of the score and of everything that varies along the keys; `None` where there is no such ρ, or
none that is a power of e, which alone is sure to be neither 0 nor infinite. Branches of a `where` are looked at one by
one: one that is 0 fits any ρ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from attndsl.analysis.algebra import is_zero
from attndsl.analysis.arithmetic import ZERO, add, call, div, mul, neg, select, sub
from attndsl.analysis.axes import axes_below
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, substituted
from attndsl.ir.types import Axis

LN2 = build.real(math.log(2.0))
HALF = build.real(0.5)


def rescaling(root: Expr, grown: Mapping[Expr, Expr]) -> Expr | None:
    """ρ when the maxima become what `grown` says; 1 where the value does not change with them."""
    shift = Shifts(root, grown).of(root)
    if shift is None or shift is ZERO:
        return None if shift is None else build.real(1.0)
    factor = call(Op.EXP, shift)
    read = [maximum for maximum in grown if maximum in set(postorder(shift))]
    if any(_falls(shift, sub(maximum, grown[maximum])) for maximum in read):
        return factor
    # Before the first key a maximum is -inf and the sum 0: a factor that is then infinite must not reach it.
    first = build.disjunction([build.apply(Op.EQ, maximum, build.real(-math.inf)) for maximum in read])
    return select(first, ZERO, factor)


class Shifts:
    """Of every node below a root: what is added to its logarithm, and what is added to it."""

    def __init__(self, root: Expr, grown: Mapping[Expr, Expr]) -> None:
        self._axes = axes_below(root)
        self._moved = substituted((root,), grown)
        self._added: dict[Expr, Expr | None] = {}
        self._scaled: dict[Expr, Expr | None] = {}
        for node in postorder(root):
            if node.dtype.is_float:
                self._added[node] = ZERO if self._is_still(node) else self._difference(node)
                self._scaled[node] = ZERO if self._is_still(node) else self._logarithm(node)

    def of(self, node: Expr) -> Expr | None:
        """The logarithm of the factor; 0 where the node reads no maximum."""
        return self._scaled[node]

    def _is_still(self, node: Expr) -> bool:
        return self._moved[node] is node

    def _is_row(self, node: Expr) -> bool:
        return Axis.K not in self._axes[node]

    def _logarithm(self, node: Expr) -> Expr | None:
        match node:
            case Apply(op=Op.EXP, args=(exponent,)):
                return self._added[exponent]
            case Apply(op=Op.EXP2, args=(exponent,)):
                return _times(self._added[exponent], LN2)
            case Apply(op=Op.POW, args=(base, exponent)) if self._is_row(exponent) and self._is_still(exponent):
                return _times(self._scaled[base], exponent)
            case Apply(op=Op.SQRT, args=(operand,)):
                return _times(self._scaled[operand], HALF)
            case Apply(op=Op.RSQRT, args=(operand,)):
                return _times(self._scaled[operand], neg(HALF))
            case Apply(op=Op.MUL | Op.DIV as op, args=(left, right)):
                return _together(self._scaled[left], self._scaled[right], add if op is Op.MUL else sub)
            case Apply(op=Op.NEG | Op.ABS, args=(operand,)):
                return self._scaled[operand]
            case Apply(op=Op.ADD | Op.SUB | Op.MIN | Op.MAX, args=args):
                return self._alike(args)
            case Apply(op=Op.WHERE, args=(condition, *branches)) if self._is_still(condition):
                return self._alike(branches)
            case _:
                return None

    def _difference(self, node: Expr) -> Expr | None:
        if self._is_row(node):
            return sub(self._moved[node], node)
        match node:
            case Apply(op=Op.ADD | Op.SUB as op, args=(left, right)):
                return _together(self._added[left], self._added[right], add if op is Op.ADD else sub)
            case Apply(op=Op.NEG, args=(operand,)):
                added = self._added[operand]
                return None if added is None else neg(added)
            case Apply(op=Op.MUL, args=(left, right)):
                return self._multiple(left, right) or self._multiple(right, left)
            case Apply(op=Op.DIV, args=(left, right)) if self._is_row(right) and self._is_still(right):
                added = self._added[left]
                return None if added is None else div(added, right)
            case Apply(op=Op.LOG, args=(operand,)):
                return self._scaled[operand]
            case Apply(op=Op.WHERE, args=(condition, yes, no)) if self._is_still(condition):
                first, second = self._added[yes], self._added[no]
                return first if first is not None and second is not None and _same(first, second) else None
            case _:
                return None

    def _multiple(self, factor: Expr, node: Expr) -> Expr | None:
        steady = self._is_row(factor) and self._is_still(factor)
        return _times(self._added[node], factor) if steady else None

    def _alike(self, parts: Iterable[Expr]) -> Expr | None:
        """The factor all parts share; a part that is 0 has any."""
        found = [self._scaled[part] for part in parts if not _is_nothing(part)]
        first = found[0] if found else ZERO
        if first is None or any(other is None or not _same(first, other) for other in found[1:]):
            return None
        return first


def _falls(shift: Expr, difference: Expr) -> bool:
    """Whether a shift is plainly a positive multiple of a difference: -inf before the first key."""
    match shift:
        case Apply(op=Op.MUL | Op.DIV, args=(multiple, Const(value=factor))):
            return factor > 0 and multiple is difference
        case _:
            return shift is difference


def _is_nothing(node: Expr) -> bool:
    return isinstance(node, Const) and node.value == 0.0


def _times(shift: Expr | None, factor: Expr) -> Expr | None:
    if shift is None or shift is ZERO:
        return shift
    return mul(shift, factor)


def _together(left: Expr | None, right: Expr | None, combine: Callable[[Expr, Expr], Expr]) -> Expr | None:
    if left is None or right is None:
        return None
    return ZERO if combine is sub and left is right else combine(left, right)


def _same(left: Expr, right: Expr) -> bool:
    return left is right or is_zero(sub(left, right))
