"""Comparisons of integers are solved for the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.analysis.linear import Linear, linear
from attndsl.analysis.magnitude import magnitude
from attndsl.analysis.signs import positive_scalars
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, rewrite_variant
from attndsl.ir.types import Axis
from attndsl.ir.variant import Variant
from attndsl.passes.inequalities import (
    ZERO,
    bound,
    never_zero,
    not_zero,
    point,
    reduced,
    undivided,
    unknown_of,
    written,
)

COMPARISONS = frozenset({Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE})

MAX_SPLITS = 16
"""Comparisons that one with `min`, `max` and `abs` in it may become."""

INT64_END = 2**63
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
    return rewrite_variant(variant, Solver(positive_scalars(variant.requirements)).rule)


@dataclass(frozen=True, slots=True)
class Solver:
    """Solves comparisons; `positive` scalars are at least 1 in every call."""

    positive: frozenset[Expr] = frozenset()

    def rule(self, node: Expr) -> Expr | None:
        """A comparison of integers, solved."""
        match node:
            case Apply(op=op, args=(left, right)) if op in COMPARISONS and left.dtype.is_int:
                solved = self._solve(op, left, right)
                fits = solved is not None and magnitude(solved) < INT64_END
                return solved if fits and solved is not node else None
            case _:
                return None

    def _solve(self, op: Op, left: Expr, right: Expr) -> Expr | None:
        """The comparison solved, `None` where it cannot be."""
        difference = build.apply(Op.SUB, left, right)
        form = linear(difference, expand=False)
        solved = self._compare(op, form)
        if solved is not None or not any(_is_product_of_keys(term) for term, _ in form.terms):
            return solved
        # The key may cancel once products are multiplied out; those free of the key read better as written.
        form = linear(difference)
        solved = self._compare(op, form)
        if solved is None and not any(_varies_along_keys(term) for term, _ in form.terms):
            return written(op, form)
        return solved

    def _compare(self, op: Op, form: Linear) -> Expr | None:
        """`form op 0`, solved."""
        match op:
            case Op.LE:
                return self._at_most_zero(form)
            case Op.LT:
                return self._at_most_zero(form.plus(1))
            case Op.GE:
                return self._at_most_zero(form.times(-1))
            case Op.GT:
                return self._at_most_zero(form.times(-1).plus(1))
            case Op.EQ:
                return self._zero(form)
            case _:
                return not_zero(form)

    def _at_most_zero(self, form: Linear) -> Expr | None:
        """`form <= 0`, solved."""
        while form.terms:
            form = reduced(form)
            unknown, bearers = unknown_of(form)
            if unknown is None:
                return None
            if not bearers:
                return bound(form, unknown)
            division = self._division(form, unknown, bearers)
            if division is None:
                return self._split(form, bearers)
            form = undivided(form, division)
        return build.boolean(form.constant <= 0)

    def _zero(self, form: Linear) -> Expr | None:
        """`form == 0`, solved."""
        if form == ZERO or never_zero(form):
            return build.boolean(form == ZERO)
        form = reduced(form)
        unknown, bearers = unknown_of(form)
        if unknown is None:
            return None
        if not bearers:
            return point(form, unknown)
        division = self._division(form, unknown, bearers)
        if division is None:
            return None
        # x // n == e between two bounds on x: e <= x // n and x // n <= e.
        sides = [self._at_most_zero(form.times(sign)) for sign in _ascending(form.coefficient(division))]
        return None if sides[0] is None or sides[1] is None else build.apply(Op.AND, sides[0], sides[1])

    def _division(self, form: Linear, unknown: Expr, bearers: list[Expr]) -> Apply | None:
        """The term `x // n`, n positive, when the unknown occurs nowhere else."""
        match bearers:
            case [Apply(op=Op.FLOORDIV, args=(_, divisor)) as term] if self._is_positive(divisor):
                return term if form.coefficient(unknown) == 0 else None
            case _:
                return None

    def _is_positive(self, divisor: Expr) -> bool:
        return divisor.value > 0 if isinstance(divisor, Const) else divisor in self.positive

    def _split(self, form: Linear, bearers: list[Expr]) -> Expr | None:
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
        solved = [self._at_most_zero(part) for part in parts]
        if solved == [None, None]:
            return None
        left, right = (written(Op.LE, part) if one is None else one for part, one in zip(parts, solved, strict=True))
        # The larger of two is below a bound when both are.
        all_of = (choices.op is not Op.MIN) == (coefficient > 0)
        return build.apply(Op.AND if all_of else Op.OR, left, right)


def _is_product_of_keys(term: Expr) -> bool:
    return isinstance(term, Apply) and term.op is Op.MUL and _varies_along_keys(term)


def _varies_along_keys(term: Expr) -> bool:
    return Axis.K in axes_of(term)


def _ascending(coefficient: int) -> tuple[int, int]:
    """The signs that make a term with this coefficient bounded from below, then from above."""
    return (-1, 1) if coefficient > 0 else (1, -1)


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
