"""Does a weight depend on a row maximum, or only seem to?

In: expressions over row values, and the statistics they are. Out: a proof that nothing changes when a maximum is taken
to be another number, its own effect on sums and roots included. Then it is a constant to derivatives; a softmax is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attndsl.analysis.algebra import is_zero
from attndsl.analysis.arithmetic import ONE, ZERO, mul, neg, total
from attndsl.analysis.calculus import cotangents
from attndsl.analysis.exponential import is_row
from attndsl.analysis.factors import proportion
from attndsl.analysis.statistics import Kind, Statistic
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.rewrite import substitute


def is_invariant(roots: Sequence[Expr], maximum: Statistic, statistics: Sequence[Statistic]) -> bool:
    """Whether the expressions are proven not to change with a maximum."""
    slopes: dict[Expr, Expr] = {maximum.value: ONE}
    for statistic in statistics:
        if statistic is not maximum:
            slope = _slope(statistic, slopes)
            if slope is None:
                return False
            if slope is not ZERO:
                slopes[statistic.value] = slope
    return all(is_zero(_along(root, slopes)) for root in roots)


def _along(root: Expr, slopes: Mapping[Expr, Expr]) -> Expr:
    """The derivative of an expression when row values change at these rates."""
    partials = cotangents(root, ONE, slopes)
    return total(mul(partials[value], slope) for value, slope in slopes.items() if partials[value] is not ZERO)


def _slope(statistic: Statistic, slopes: Mapping[Expr, Expr]) -> Expr | None:
    """The rate at which a statistic changes, where it is seen from its integrand."""
    moved = _along(statistic.integrand, slopes)
    match statistic.kind:
        case Kind.MAX:
            return moved if is_row(moved) else None
        case Kind.SUM:
            factor = proportion(moved, statistic.integrand, regular=False)
            if factor is None:
                return ZERO if is_zero(moved) else None
            return factor if factor is ZERO else mul(factor, statistic.value)
        case Kind.SOLVE:
            return _slope_of_root(statistic, slopes, moved)


def _slope_of_root(statistic: Statistic, slopes: Mapping[Expr, Expr], moved: Expr) -> Expr | None:
    """The sum moves by κ times what it moves by with the root: the root moves by -κ."""
    assert statistic.solve is not None
    if _along(statistic.solve.total, slopes) is not ZERO:
        return None
    by_root = cotangents(statistic.integrand, ONE, [build.THRESHOLD])[build.THRESHOLD]
    factor = proportion(moved, by_root, regular=False)
    return None if factor is None else neg(substitute(factor, {build.THRESHOLD: statistic.value}))
