"""What an integer expression leaves when divided: the second domain of interval analysis, the same on every tile.

In: expressions, the integers known at a call, their linear forms. Out: a `Congruence` for every integer node.
`(4 * kv_idx + 1) % 2` is 1 whatever the tile, and `16 * (q_idx // 16)` never 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from attndsl.analysis.forms import Form
from attndsl.analysis.values import Interval
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder

MAX_MODULUS = 2**60
"""Larger moduli say nothing about intervals of 64-bit integers; they are given up, and numbers stay small."""


@dataclass(frozen=True, slots=True)
class Congruence:
    """Integers `residue + modulus * n`; a modulus of 0 is one integer, a modulus of 1 any."""

    modulus: int
    residue: int

    @property
    def is_number(self) -> bool:
        return self.modulus == 0

    def plus(self, other: Congruence, factor: int = 1) -> Congruence:
        modulus = math.gcd(self.modulus, factor * other.modulus)
        return congruence(modulus, self.residue + factor * other.residue)

    def times(self, other: Congruence) -> Congruence:
        cross = (self.modulus * other.modulus, self.modulus * other.residue, other.modulus * self.residue)
        return congruence(math.gcd(*cross), self.residue * other.residue)

    def or_else(self, other: Congruence) -> Congruence:
        """What holds of a value that is one or the other."""
        return congruence(math.gcd(self.modulus, other.modulus, self.residue - other.residue), self.residue)

    def and_also(self, other: Congruence) -> Congruence | None:
        """What holds of a value that is both; `None` where none is."""
        divisor = math.gcd(self.modulus, other.modulus)
        gap = other.residue - self.residue
        if gap % divisor if divisor else gap:
            return None
        if self.is_number or other.is_number:
            return self if self.is_number else other
        # residue + modulus * n meets the other's residue modulo its modulus for one n.
        step = other.modulus // divisor
        n = gap // divisor * pow(self.modulus // divisor, -1, step) % step if step > 1 else 0
        return congruence(self.modulus * step, self.residue + self.modulus * n)

    def within(self, value: Interval) -> Interval:
        """The least and the greatest such integer in an interval; lo > hi where there is none."""
        if self.is_number or self.modulus == 1 or value.is_point:
            return value
        lo = value.lo + (self.residue - value.lo) % self.modulus
        return Interval(lo, value.hi - (value.hi - self.residue) % self.modulus)


ANY = Congruence(1, 0)


def congruence(modulus: int, residue: int) -> Congruence:
    """The congruence with its residue reduced."""
    modulus = abs(modulus)
    if modulus > MAX_MODULUS:
        return ANY
    return Congruence(modulus, residue % modulus if modulus else residue)


def congruences_below(roots: tuple[Expr, ...], forms: Mapping[Expr, Form]) -> dict[Expr, Congruence]:
    """The congruence of every integer node below the roots."""
    found: dict[Expr, Congruence] = {}
    for node in postorder(*roots):
        if node.dtype.is_int:
            form = forms[node]
            found[node] = _of_node(node, found) if node in form.terms else of_form(form, found)
    return found


def of_form(form: Form, known: Mapping[Expr, Congruence]) -> Congruence:
    """The congruence of a linear form."""
    total = Congruence(0, form.constant)
    for term, coefficient in form.terms.items():
        total = total.plus(known[term], coefficient)
    return total


def _of_node(node: Expr, known: Mapping[Expr, Congruence]) -> Congruence:
    match node:
        case Const(value=value):
            return Congruence(0, int(value))
        case Apply(op=op, args=args) if all(arg.dtype.is_int for arg in args):
            return _of_operation(op, [known[arg] for arg in args])
        case Apply(op=Op.WHERE, args=(_, yes, no)):
            return known[yes].or_else(known[no])
        case _:
            return ANY


def _of_operation(op: Op, args: list[Congruence]) -> Congruence:
    match op, args:
        case Op.MUL, [left, right]:
            return left.times(right)
        case Op.ABS, [operand]:
            return operand.or_else(congruence(operand.modulus, -operand.residue))
        case ((Op.MIN | Op.MAX), [left, right]):
            return left.or_else(right)
        case Op.MOD, [left, Congruence(modulus=0, residue=divisor)] if divisor != 0:
            if left.modulus % divisor == 0:
                return Congruence(0, left.residue % divisor)
            return congruence(math.gcd(left.modulus, divisor), left.residue)
        case Op.FLOORDIV, [left, Congruence(modulus=0, residue=divisor)] if divisor and left.modulus % divisor == 0:
            return congruence(left.modulus // divisor, left.residue // divisor)
        case Op.SHL, [left, Congruence(modulus=0, residue=shift)] if 0 <= shift < 64:
            return left.times(Congruence(0, 1 << shift))
        case Op.BIT_AND, [left, right]:
            # Bits that are 0 at the end of one operand are 0 at the end of the result.
            return congruence(max(_trailing(left), _trailing(right)), 0)
        case _:
            return ANY


def _trailing(value: Congruence) -> int:
    """The largest power of two, within reason, that divides every such integer."""
    bits = value.modulus | value.residue
    return min(bits & -bits, MAX_MODULUS) if bits else MAX_MODULUS
