"""Linear forms compared with zero, the unknown alone on the left.

In: a linear form, and a coordinate that occurs in one term of it. Out: the comparison of that coordinate with the rest.
"""

from __future__ import annotations

from attndsl.analysis.axes import axes_of
from attndsl.analysis.linear import Linear, linear, to_expr
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import Axis

UNKNOWNS = ((build.K, Axis.K), (build.Q, Axis.Q))
ZERO = Linear(())


def reduced(form: Linear) -> Linear:
    """The form over the divisor its coefficients share, the constant rounded up: `form <= 0` stays what it is."""
    return Linear(tuple((term, number // form.gcd) for term, number in form.terms), -(-form.constant // form.gcd))


def unknown_of(form: Linear) -> tuple[Expr | None, list[Expr]]:
    """The coordinate to solve for, and the other terms it occurs in."""
    axes = {term: axes_of(term) for term, _ in form.terms}
    for unknown, axis in UNKNOWNS:
        if any(axis in found for found in axes.values()):
            return unknown, [term for term, found in axes.items() if axis in found and term is not unknown]
    return None, []


def bound(form: Linear, unknown: Expr) -> Expr:
    """`form <= 0`: a bound on the unknown."""
    coefficient = form.coefficient(unknown)
    rest = form.without(unknown)
    if coefficient > 0:
        return build.apply(Op.LE, unknown, to_expr(_floor(rest.times(-1), coefficient)))
    return build.apply(Op.GE, unknown, to_expr(_ceiling(rest, -coefficient)))


def point(form: Linear, unknown: Expr) -> Expr:
    """`form == 0`: where the unknown lies."""
    coefficient = form.coefficient(unknown)
    value = form.without(unknown).times(-1 if coefficient > 0 else 1)
    divisor = build.integer(abs(coefficient))
    there = build.apply(Op.EQ, unknown, to_expr(_floor(value, abs(coefficient))))
    if abs(coefficient) == 1:
        return there
    remainder = build.apply(Op.MOD, to_expr(value), divisor)
    return build.apply(Op.AND, there, build.apply(Op.EQ, remainder, build.integer(0)))


def never_zero(form: Linear) -> bool:
    """Whether no integers make the form 0: what divides all of its terms does not divide its constant."""
    return form != ZERO and (not form.terms or form.constant % form.gcd != 0)


def not_zero(form: Linear) -> Expr | None:
    """`form != 0`, where the unknown stands alone."""
    if form == ZERO or never_zero(form):
        return build.boolean(form != ZERO)
    form = reduced(form)
    unknown, bearers = unknown_of(form)
    if unknown is None or bearers or abs(form.coefficient(unknown)) != 1:
        return None
    return build.apply(Op.NE, unknown, to_expr(form.without(unknown).times(-form.coefficient(unknown))))


def undivided(form: Linear, division: Apply) -> Linear:
    """`form <= 0` without its term `x // n`: x // n <= e is x <= e * n + n - 1, x // n >= e is x >= e * n."""
    value, divisor = linear(division.args[0], expand=False), division.args[1]
    coefficient = form.coefficient(division)
    rest = form.without(division)
    if coefficient > 0:
        above = _product(_floor(rest.times(-1), coefficient).plus(1), divisor)
        return value.plus(above.times(-1)).plus(1)
    return value.times(-1).plus(_product(_ceiling(rest, -coefficient), divisor))


def written(op: Op, form: Linear) -> Expr:
    """`form op 0` unsolved, negative terms and the constant on the right."""
    ahead = Linear(tuple((term, number) for term, number in form.terms if number > 0))
    behind = Linear(tuple((term, -number) for term, number in form.terms if number < 0), -form.constant)
    return build.apply(op, to_expr(ahead), to_expr(behind))


def _product(form: Linear, factor: Expr) -> Linear:
    """The form times a number, or times a scalar: of what it is a sum of, each part."""
    if isinstance(factor, Const):
        return form.times(int(factor.value))
    parts = [(build.apply(Op.MUL, term, factor), number) for term, number in form.terms]
    return Linear.of(dict([*parts, (factor, form.constant)]), 0)


def _floor(form: Linear, divisor: int) -> Linear:
    """`form // divisor` for a positive divisor."""
    if divisor == 1:
        return form
    if not form.terms:
        return Linear((), form.constant // divisor)
    return Linear(((build.apply(Op.FLOORDIV, to_expr(form), build.integer(divisor)), 1),))


def _ceiling(form: Linear, divisor: int) -> Linear:
    """`form / divisor` rounded up, for a positive divisor."""
    return _floor(form.plus(divisor - 1), divisor)
