"""Comparisons of integers are solved for the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from attndsl.analysis.axes import axes_of
from attndsl.analysis.linear import Linear, linear, to_expr
from attndsl.analysis.magnitude import magnitude
from attndsl.analysis.signs import positive_scalars
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, rewrite_variant
from attndsl.ir.types import Axis
from attndsl.ir.variant import Variant

COMPARISONS = frozenset({Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE})
UNKNOWNS = ((build.K, Axis.K), (build.Q, Axis.Q))

MAX_SPLITS = 16
"""Comparisons that one with `min`, `max` and `abs` in it may become."""

INT64_END = 2**63
ZERO = Linear(())
Positive = frozenset[Expr]
"""Scalars known to be at least 1 in every call."""

CHOICES = frozenset({Op.MIN, Op.MAX, Op.ABS})


def normalize_comparisons(variant: Variant) -> Variant:
    """Solve comparisons of integers for `kv_idx`, or for `q_idx` where no key occurs.

    before: `mask q_idx - kv_idx < window and kv_idx // 64 <= q_idx // 64 and abs(q_idx - 2 * kv_idx) <= 8`
    after:  `mask kv_idx >= q_idx - window + 1 and kv_idx <= q_idx // 64 * 64 + 63
             and (kv_idx <= (q_idx + 8) // 2 and kv_idx >= (q_idx - 7) // 2)`

    A divisor is a positive number, or a scalar that a requirement says is positive: under `require chunk >= 1`,
    `kv_idx // chunk <= q_idx // chunk` is `kv_idx <= q_idx // chunk * chunk + chunk - 1`.

    Solved comparisons are `<=`, `>=`, `==` or `!=`. One that cannot be solved (the key also occurs inside a load, a
    remainder, a product), or that could leave 64 bits where the written one did not, stays as it is.
    """
    return rewrite_variant(variant, partial(_normalize, positive=positive_scalars(variant.requirements)))


def _normalize(node: Expr, positive: Positive = frozenset()) -> Expr | None:
    match node:
        case Apply(op=op, args=(left, right)) if op in COMPARISONS and left.dtype.is_int:
            solved = _solve(op, left, right, positive)
            fits = solved is not None and magnitude(solved) < INT64_END
            return solved if fits and solved is not node else None
        case _:
            return None


def _solve(op: Op, left: Expr, right: Expr, positive: Positive) -> Expr | None:
    """The comparison solved, `None` where it cannot be."""
    difference = build.apply(Op.SUB, left, right)
    form = linear(difference, expand=False)
    solved = _compare(op, form, positive)
    if solved is not None or not any(_is_product_of_keys(term) for term, _ in form.terms):
        return solved
    # The key may cancel once products are multiplied out; those free of the key read better as written.
    form = linear(difference)
    solved = _compare(op, form, positive)
    if solved is None and not any(_varies_along_keys(term) for term, _ in form.terms):
        return _written(op, form)
    return solved


def _is_product_of_keys(term: Expr) -> bool:
    return isinstance(term, Apply) and term.op is Op.MUL and _varies_along_keys(term)


def _varies_along_keys(term: Expr) -> bool:
    return Axis.K in axes_of(term)


def _compare(op: Op, form: Linear, positive: Positive) -> Expr | None:
    """`form op 0`, solved."""
    match op:
        case Op.LE:
            return _at_most_zero(form, positive)
        case Op.LT:
            return _at_most_zero(form.plus(1), positive)
        case Op.GE:
            return _at_most_zero(form.times(-1), positive)
        case Op.GT:
            return _at_most_zero(form.times(-1).plus(1), positive)
        case Op.EQ:
            return _zero(form, positive)
        case _:
            return _not_zero(form)


def _at_most_zero(form: Linear, positive: Positive) -> Expr | None:
    """`form <= 0`, solved."""
    while form.terms:
        form = Linear(tuple((term, number // form.gcd) for term, number in form.terms), -(-form.constant // form.gcd))
        unknown, bearers = _unknown(form)
        if unknown is None:
            return None
        if not bearers:
            return _bound(form, unknown)
        division = _division(form, unknown, bearers, positive)
        if division is None:
            return _split(form, bearers, positive)
        form = _undivided(form, division)
    return build.boolean(form.constant <= 0)


def _zero(form: Linear, positive: Positive) -> Expr | None:
    """`form == 0`, solved."""
    if not form.terms or form.constant % form.gcd != 0:
        return build.boolean(form == ZERO)
    form = Linear(tuple((term, number // form.gcd) for term, number in form.terms), form.constant // form.gcd)
    unknown, bearers = _unknown(form)
    if unknown is None:
        return None
    if not bearers:
        return _point(form, unknown)
    division = _division(form, unknown, bearers, positive)
    if division is None:
        return None
    # x // n == e between two bounds on x: e <= x // n and x // n <= e.
    sides = [_at_most_zero(form.times(sign), positive) for sign in _ascending(form.coefficient(division))]
    return None if sides[0] is None or sides[1] is None else build.apply(Op.AND, sides[0], sides[1])


def _not_zero(form: Linear) -> Expr | None:
    """`form != 0`, solved where the unknown stands alone."""
    if not form.terms or form.constant % form.gcd != 0:
        return build.boolean(form != ZERO)
    form = Linear(tuple((term, number // form.gcd) for term, number in form.terms), form.constant // form.gcd)
    unknown, bearers = _unknown(form)
    if unknown is None or bearers or abs(form.coefficient(unknown)) != 1:
        return None
    return build.apply(Op.NE, unknown, to_expr(form.without(unknown).times(-form.coefficient(unknown))))


def _unknown(form: Linear) -> tuple[Expr | None, list[Expr]]:
    """The coordinate to solve for, and the other terms it occurs in."""
    axes = {term: axes_of(term) for term, _ in form.terms}
    for unknown, axis in UNKNOWNS:
        if any(axis in found for found in axes.values()):
            return unknown, [term for term, found in axes.items() if axis in found and term is not unknown]
    return None, []


def _bound(form: Linear, unknown: Expr) -> Expr:
    coefficient = form.coefficient(unknown)
    rest = form.without(unknown)
    if coefficient > 0:
        return build.apply(Op.LE, unknown, to_expr(_floor(rest.times(-1), coefficient)))
    return build.apply(Op.GE, unknown, to_expr(_ceiling(rest, -coefficient)))


def _point(form: Linear, unknown: Expr) -> Expr:
    coefficient = form.coefficient(unknown)
    value = form.without(unknown).times(-1 if coefficient > 0 else 1)
    divisor = build.integer(abs(coefficient))
    point = build.apply(Op.EQ, unknown, to_expr(_floor(value, abs(coefficient))))
    if abs(coefficient) == 1:
        return point
    remainder = build.apply(Op.MOD, to_expr(value), divisor)
    return build.apply(Op.AND, point, build.apply(Op.EQ, remainder, build.integer(0)))


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


def _division(form: Linear, unknown: Expr, bearers: list[Expr], positive: Positive) -> Apply | None:
    """The term `x // n`, n positive, when the unknown occurs nowhere else."""
    match bearers:
        case [Apply(op=Op.FLOORDIV, args=(_, divisor)) as term] if _is_positive(divisor, positive):
            return term if form.coefficient(unknown) == 0 else None
        case _:
            return None


def _is_positive(divisor: Expr, positive: Positive) -> bool:
    return divisor.value > 0 if isinstance(divisor, Const) else divisor in positive


def _undivided(form: Linear, division: Apply) -> Linear:
    """`form <= 0` without its term `x // n`: x // n <= e is x <= e * n + n - 1, x // n >= e is x >= e * n."""
    value, divisor = linear(division.args[0], expand=False), division.args[1]
    coefficient = form.coefficient(division)
    rest = form.without(division)
    if coefficient > 0:
        above = _product(_floor(rest.times(-1), coefficient).plus(1), divisor)
        return value.plus(above.times(-1)).plus(1)
    return value.times(-1).plus(_product(_ceiling(rest, -coefficient), divisor))


def _product(form: Linear, factor: Expr) -> Linear:
    """The form times a number, or times a scalar: of what it is a sum of, each part."""
    if isinstance(factor, Const):
        return form.times(int(factor.value))
    parts = [(build.apply(Op.MUL, term, factor), number) for term, number in form.terms]
    return Linear.of(dict([*parts, (factor, form.constant)]), 0)


def _ascending(coefficient: int) -> tuple[int, int]:
    """The signs that make a term with this coefficient bounded from below, then from above."""
    return (-1, 1) if coefficient > 0 else (1, -1)


def _split(form: Linear, bearers: list[Expr], positive: Positive) -> Expr | None:
    """`form <= 0` with a `min`, `max` or `abs` taken apart, where that solves at least one of the two parts."""
    choices = next((term for term in bearers if isinstance(term, Apply) and term.op in CHOICES), None)
    if choices is None or math.prod(map(_alternatives, bearers)) > MAX_SPLITS:
        return None
    coefficient = form.coefficient(choices)
    rest = form.without(choices)
    arms = [linear(arg, expand=False) for arg in choices.args]
    if choices.op is Op.ABS:
        arms.append(arms[0].times(-1))
    parts = [rest.plus(arm.times(coefficient)) for arm in arms]
    solved = [_at_most_zero(part, positive) for part in parts]
    if solved == [None, None]:
        return None
    left, right = (_written(Op.LE, part) if one is None else one for part, one in zip(parts, solved, strict=True))
    # The larger of two is below a bound when both are.
    all_of = (choices.op is not Op.MIN) == (coefficient > 0)
    return build.apply(Op.AND if all_of else Op.OR, left, right)


def _written(op: Op, form: Linear) -> Expr:
    """`form op 0` unsolved, negative terms and the constant on the right."""
    ahead = Linear(tuple((term, number) for term, number in form.terms if number > 0))
    behind = Linear(tuple((term, -number) for term, number in form.terms if number < 0), -form.constant)
    return build.apply(op, to_expr(ahead), to_expr(behind))


def _alternatives(term: Expr) -> int:
    """How many comparisons taking a term apart may yield."""
    counts: dict[Expr, int] = {}
    for node in postorder(term):
        counts[node] = min(_count(node, counts), MAX_SPLITS + 1)
    return counts[term]


def _count(node: Expr, counts: Mapping[Expr, int]) -> int:
    match node:
        case Apply(op=Op.MIN | Op.MAX, args=(left, right)):
            return counts[left] + counts[right]
        case Apply(op=Op.ABS, args=(arg,)):
            return 2 * counts[arg]
        case Apply(op=Op.ADD | Op.SUB | Op.MUL | Op.FLOORDIV, args=(left, right)):
            return counts[left] * counts[right]
        case Apply(op=Op.NEG, args=(arg,)):
            return counts[arg]
        case _:
            return 1
