"""Sums over the keys of a row that a derivative needs: what `delta` gives, and what one more pass adds up.

In: slopes of the weight of a pair. Out: the row's sum of DWEIGHT times a slope as an expression of the row, and the
integrands of the sums that are left over. Where the slope is a multiple of the weight, the sum is that multiple of
`delta`; what is alike along the row stands outside of a sum, so that several slopes share one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from attndsl.analysis.arithmetic import ONE, ZERO, add, mul, neg, select, sub
from attndsl.analysis.exponential import is_row
from attndsl.analysis.factors import factored, proportion
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, RowValue
from attndsl.ir.ops import Op

DELTA = build.row_value("delta")


@dataclass(slots=True)
class RowSums:
    """The sums met so far, of a variant with this weight."""

    weight: Expr
    found: dict[Expr, RowValue] = field(default_factory=dict)

    def of_gradient(self, slope: Expr) -> Expr:
        """The row's sum of DWEIGHT * slope."""
        known = self.known(slope)
        if known is not None:
            return known
        match slope:
            case Apply(op=Op.ADD | Op.SUB as op, args=(left, right)):
                return (add if op is Op.ADD else sub)(self.of_gradient(left), self.of_gradient(right))
            case Apply(op=Op.NEG, args=(operand,)):
                return neg(self.of_gradient(operand))
            case _:
                return self._outside(slope, build.DWEIGHT)

    def known(self, slope: Expr) -> Expr | None:
        """The row's sum of DWEIGHT * slope where it takes no further sum."""
        factor = proportion(slope, self.weight)
        if factor is not None:
            return behind_gates(factor, DELTA)
        outer, inner = factored(slope).split(is_row)
        value = self.found.get(mul(build.DWEIGHT, inner.expr()))
        return None if value is None else behind_gates(outer.expr(), value)

    def of(self, value: Expr) -> Expr:
        """The row's sum of a value."""
        return ZERO if value is ZERO else self._outside(value, ONE)

    def _outside(self, value: Expr, seed: Expr) -> Expr:
        outer, inner = factored(value).split(is_row)
        integrand = mul(seed, inner.expr())
        if integrand not in self.found:
            name = "sum_i" if not self.found else f"sum_i_{len(self.found)}"
            self.found[integrand] = build.row_value(name)
        return behind_gates(outer.expr(), self.found[integrand])


def behind_gates(factor: Expr, value: Expr) -> Expr:
    """factor * value, the gates of the factor outermost: where they are shut nothing is multiplied."""
    match factor:
        case _ if factor is ZERO:
            return ZERO
        case Apply(op=Op.WHERE, args=(condition, yes, no)) if yes is ZERO or no is ZERO:
            return select(condition, behind_gates(yes, value), behind_gates(no, value))
        case _:
            return mul(factor, value)
