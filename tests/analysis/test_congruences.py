"""Remainders: every value of an expression has the one its congruence says, and comparisons of remainders are decided
wherever arithmetic decides them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from exact import value
from hypothesis import given, settings
from hypothesis import strategies as st

from attndsl.analysis.congruences import Congruence, congruence, congruences_below
from attndsl.analysis.forms import forms_below
from attndsl.analysis.intervals import Known, evaluate, whole
from attndsl.analysis.values import Interval, Truth
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import Coordinate

op = build.apply
number = build.integer
distance = op(Op.SUB, build.Q, build.K)
NUMBERS = st.integers(-12, 12)
SETS = st.builds(congruence, st.integers(0, 12), NUMBERS)


def members(known: Congruence, reach: int = 60) -> set[int]:
    if known.is_number:
        return {known.residue}
    return {n for n in range(-reach, reach + 1) if (n - known.residue) % known.modulus == 0}


@given(SETS, SETS)
def test_sets_of_remainders_combine_as_sets(left: Congruence, right: Congruence) -> None:
    both = left.and_also(right)
    found = set() if both is None else members(both)
    assert found == members(left) & members(right)
    assert members(left.or_else(right)) >= members(left) | members(right)
    for x, y in itertools.product(sorted(members(left, 20)), sorted(members(right, 20))):
        assert x + 3 * y in members(left.plus(right, 3), 200)
        assert x * y in members(left.times(right), 400)


@given(SETS, NUMBERS, st.integers(0, 30))
def test_an_interval_is_narrowed_to_its_members(known: Congruence, low: int, width: int) -> None:
    inside = known.within(Interval(np.array([low]), np.array([low + width])))
    found = sorted(members(known, 100) & set(range(low, low + width + 1)))
    if known.modulus > 1:
        lo, hi = int(inside.lo.min()), int(inside.hi.max())
        assert (lo > hi) if not found else (lo, hi) == (found[0], found[-1])


LEAVES = st.one_of(st.sampled_from([build.Q, build.K, build.H]), st.integers(-9, 9).map(number))


def grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    positive = st.integers(1, 9).map(number)
    binary = st.sampled_from([Op.ADD, Op.SUB, Op.MUL, Op.MIN, Op.MAX, Op.BIT_AND])
    return st.one_of(
        st.builds(op, binary, inner, inner),
        st.builds(op, st.sampled_from([Op.FLOORDIV, Op.MOD]), inner, positive),
        st.builds(op, st.just(Op.SHL), inner, st.integers(0, 3).map(number)),
        st.builds(op, st.sampled_from([Op.NEG, Op.ABS, Op.BIT_NOT]), inner),
        st.builds(lambda x, factor: op(Op.MUL, x, number(factor)), inner, st.integers(-6, 6)),
    )


EXPRESSIONS = st.recursive(LEAVES, grown, max_leaves=6)
POINTS = [dict(zip((build.Q, build.K, build.H), point, strict=True)) for point in itertools.product(range(7), repeat=3)]


@given(EXPRESSIONS)
@settings(max_examples=400, deadline=None)
def test_every_value_has_the_remainder_that_is_known(expr: Expr) -> None:
    known = congruences_below((expr,), forms_below((expr,), {}))[expr]
    for point in POINTS:
        found = value(expr, point)
        assert found == known.residue if known.is_number else (found - known.residue) % known.modulus == 0


def truth(expr: Expr, q: tuple[int, int], k: tuple[int, int]) -> set[bool]:
    """What a boolean can be on a box."""
    ranges = {Coordinate.Q_IDX: q, Coordinate.KV_IDX: k, Coordinate.H: (0, 6), Coordinate.B: (0, 0)}
    lengths = {Coordinate.Q_LEN: (999, 999), Coordinate.KV_LEN: (999, 999)}
    found = evaluate((expr,), whole(ranges | lengths), Known())[expr]
    assert isinstance(found, Truth)
    return {one for one, can in ((True, found.can_be_true), (False, found.can_be_false)) if can.any()}


@given(EXPRESSIONS, EXPRESSIONS, st.integers(1, 12), st.integers(-2, 12), st.sampled_from([Op.EQ, Op.NE, Op.LE]))
@settings(max_examples=400, deadline=None)
def test_comparisons_of_remainders_contain_every_truth(x: Expr, y: Expr, divisor: int, rest: int, compare: Op) -> None:
    for other in (op(Op.MOD, y, number(divisor)), number(rest)):
        for expr in (op(compare, op(Op.MOD, x, number(divisor)), other), op(compare, x, other)):
            seen = {bool(value(expr, point)) for point in POINTS}
            assert seen <= truth(expr, (0, 6), (0, 6))


@given(st.integers(1, 40), st.integers(0, 45), st.integers(0, 60), st.integers(0, 50), st.integers(0, 20))
@settings(max_examples=300, deadline=None)
def test_a_remainder_of_a_distance_is_decided_exactly(divisor: int, rest: int, low: int, start: int, size: int) -> None:
    """The distance takes every integer of its interval, so what arithmetic decides is decided."""
    expr = op(Op.EQ, op(Op.MOD, distance, number(divisor)), number(rest))
    distances = range(low - start - size, low + size - start + 1)
    assert truth(expr, (low, low + size), (start, start + size)) == {d % divisor == rest for d in distances}
    assert truth(op(Op.NE, *expr.args), (low, low + size), (start, start + size)) == {
        d % divisor != rest for d in distances
    }


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (op(Op.EQ, op(Op.MOD, op(Op.MUL, number(4), build.K), number(2)), number(0)), {True}),
        (op(Op.EQ, op(Op.MOD, op(Op.MUL, number(4), build.K), number(6)), number(3)), {False}),
        (op(Op.EQ, op(Op.MUL, number(6), build.Q), op(Op.ADD, op(Op.MUL, number(9), build.K), number(1))), {False}),
        (op(Op.EQ, op(Op.MOD, build.Q, number(200)), op(Op.MOD, build.K, number(200))), {False}),
        (op(Op.EQ, op(Op.MOD, build.Q, number(30)), op(Op.MOD, build.K, number(30))), {True, False}),
        (op(Op.EQ, op(Op.MOD, build.Q, number(30)), number(31)), {False}),
        (op(Op.EQ, op(Op.MUL, op(Op.FLOORDIV, build.Q, number(16)), number(16)), number(40)), {False}),
    ],
)
def test_remainders_decide_what_intervals_cannot(expr: Expr, expected: set[bool]) -> None:
    assert truth(expr, (0, 40), (100, 140)) == expected
