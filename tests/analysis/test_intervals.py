"""Every transformer contains every value, in both arithmetics; correlation, assumptions and summaries are sharp."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attndsl.analysis import values as v
from attndsl.analysis.intervals import Known, evaluate, evaluate_exactly, whole
from attndsl.analysis.summaries import ArraySummary
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.transfer import INTEGER
from attndsl.analysis.values import Interval, Truth
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op, facts
from attndsl.ir.types import Coordinate, DType

NUMBERS = st.integers(-40, 40)
op = build.apply
number = build.integer
distance = op(Op.SUB, build.Q, build.K)


@st.composite
def ranges(draw: st.DrawFn) -> range:
    low = draw(NUMBERS)
    return range(low, low + draw(st.integers(0, 20)) + 1)


def interval(values: range, dtype: type) -> Interval:
    return Interval(v.constant(values[0], dtype).lo, v.constant(values[-1], dtype).lo)


def exactly(operator: Op, *operands: int) -> int:
    """What the operator table says, where the operation has a value; a divisor of 0 counts as 1."""
    if operator in (Op.FLOORDIV, Op.MOD) and operands[1] == 0:
        operands = (operands[0], 1)
    exact = facts(operator).exact
    assert exact is not None
    return int(exact(*operands))


@pytest.mark.parametrize("dtype", [np.int64, object])
@pytest.mark.parametrize("operator", sorted(INTEGER, key=lambda op: op.name))
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_transformers_contain_every_value(operator: Op, dtype: type, data: st.DataObject) -> None:
    operands = [data.draw(ranges()) for _ in range(facts(operator).arity)]
    if operator in (Op.SHL, Op.SHR):
        operands[1] = range(abs(operands[1][0]) // 4, abs(operands[1][0]) // 4 + len(operands[1]))
    found = INTEGER[operator](*(interval(values, dtype) for values in operands))
    truth = [exactly(operator, *point) for point in itertools.product(*operands)]
    lo, hi = int(found.lo.min()), int(found.hi.max())
    assert lo <= min(truth)
    assert max(truth) <= hi
    if all(len(values) == 1 for values in operands):
        assert lo == hi == truth[0]
    if operator in (Op.ADD, Op.SUB, Op.NEG, Op.MUL, Op.ABS, Op.MIN, Op.MAX, Op.BIT_NOT, Op.BIT_LENGTH, Op.SHL, Op.SHR):
        assert (lo, hi) == (min(truth), max(truth))


@pytest.mark.parametrize("divisor", [1, 2, 7, 64, -3])
@given(values=ranges())
@settings(max_examples=60, deadline=None)
def test_division_by_a_constant_is_sharp(divisor: int, values: range) -> None:
    by = interval(range(divisor, divisor + 1), np.int64)
    quotient = v.floordiv(interval(values, np.int64), by)
    truth = [x // divisor for x in values]
    assert (int(quotient.lo.min()), int(quotient.hi.max())) == (min(truth), max(truth))
    remainder = v.mod(interval(values, np.int64), by)
    if values[0] // divisor == values[-1] // divisor:
        rest = [x % divisor for x in values]
        assert (int(remainder.lo.min()), int(remainder.hi.max())) == (min(rest), max(rest))


@pytest.mark.parametrize("comparison", [Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE])
@given(x=ranges(), y=ranges())
@settings(max_examples=60, deadline=None)
def test_comparisons_are_decided_when_ranges_decide_them(comparison: Op, x: range, y: range) -> None:
    truth = v.compare(comparison, v.sub(interval(x, np.int64), interval(y, np.int64)))
    seen = {bool(exactly(comparison, a, b)) for a, b in itertools.product(x, y)}
    assert bool(truth.can_be_true.all()) == (True in seen)
    assert bool(truth.can_be_false.all()) == (False in seen)


def box(q: tuple[int, int] = (0, 999), k: tuple[int, int] = (0, 999), h: tuple[int, int] = (0, 7)):
    return whole(
        {
            Coordinate.B: (0, 1),
            Coordinate.H: h,
            Coordinate.Q_IDX: q,
            Coordinate.KV_IDX: k,
            Coordinate.Q_LEN: (1000, 1000),
            Coordinate.KV_LEN: (1000, 1000),
        }
    )


def bounds(expr: Expr, *assume: Expr, known: Known | None = None, **where: tuple[int, int]) -> tuple[int, int]:
    found = evaluate_exactly((expr,), box(**where), known or Known(), assume)[expr]
    assert isinstance(found, Interval)
    return int(found.lo.min()), int(found.hi.max())


def truth(expr: Expr, *assume: Expr, known: Known | None = None, **where: tuple[int, int]) -> set[bool]:
    found = evaluate_exactly((expr,), box(**where), known or Known(), assume)[expr]
    assert isinstance(found, Truth)
    return {value for value, can in ((True, found.can_be_true), (False, found.can_be_false)) if can.any()}


def test_linear_terms_keep_their_correlation() -> None:
    assert bounds(op(Op.ADD, distance, build.K)) == (0, 999)
    twice = op(Op.SUB, op(Op.MUL, number(2), build.Q), op(Op.SHL, build.Q, number(1)))
    assert bounds(twice) == (0, 0)
    negated = op(Op.ADD, op(Op.BIT_NOT, build.Q), build.Q)
    assert bounds(negated) == (-1, -1)
    step = build.scalar("step", DType.I64)
    scaled = op(Op.SUB, op(Op.MUL, step, build.Q), op(Op.MUL, build.Q, number(3)))
    assert bounds(scaled, known=Known({"step": 3})) == (0, 0)


def test_comparisons_go_by_the_difference() -> None:
    later = op(Op.ADD, build.Q, number(1))
    assert truth(op(Op.LT, build.Q, later)) == {True}
    assert truth(op(Op.EQ, distance, distance)) == {True}
    assert truth(op(Op.NE, op(Op.MOD, build.Q, number(7)), op(Op.MOD, build.Q, number(7)))) == {False}
    assert truth(op(Op.LE, build.K, build.Q), q=(500, 600), k=(0, 500)) == {True}
    assert truth(op(Op.LE, build.K, build.Q), q=(500, 600), k=(601, 700)) == {False}
    assert truth(op(Op.LE, build.K, build.Q), q=(500, 600), k=(0, 501)) == {True, False}


def test_floats_are_known_where_integers_or_booleans_are_made_of_them() -> None:
    as_float = partial(op, Op.TO_FLOAT)
    assert truth(op(Op.LT, as_float(build.Q), build.real(1000.0))) == {True}
    assert truth(op(Op.LT, as_float(build.Q), build.real(999.5))) == {True}
    assert truth(op(Op.LT, as_float(build.Q), build.real(998.5))) == {True, False}
    # 999 * 2^20 is a number of float32, one more is not.
    large = op(Op.MUL, build.Q, number(2**20))
    assert truth(op(Op.LE, as_float(large), build.real(999 * 2.0**20))) == {True}
    assert truth(op(Op.LE, as_float(op(Op.ADD, large, number(1))), build.real(999 * 2.0**20))) == {True, False}
    scaled = op(Op.MUL, as_float(distance), build.scalar("slope", DType.F32))
    assert truth(op(Op.LE, scaled, build.real(499.5)), known=Known({"slope": 0.5})) == {True}
    assert truth(op(Op.LE, scaled, build.real(499.5))) == {True, False}
    assert bounds(op(Op.TO_INT, scaled), known=Known({"slope": 0.5})) == (-499, 499)
    assert bounds(op(Op.TO_INT, op(Op.LT, build.Q, number(0)))) == (0, 0)
    near = op(Op.LT, op(Op.TO_FLOAT, distance), build.real(10.0))
    either = op(Op.WHERE, near, build.real(1.0), build.real(2.0))
    assert truth(op(Op.LT, either, build.real(2.0)), near) == {True}
    assert truth(op(Op.TO_BOOL, either)) == {True}
    assert truth(op(Op.LT, op(Op.EXP, as_float(build.Q)), build.real(-1.0))) == {True, False}


def test_assumptions_narrow_every_form_they_are_part_of() -> None:
    causal = op(Op.LE, build.K, build.Q)
    near = op(Op.LT, distance, number(10))
    assert bounds(distance, causal) == (0, 999)
    assert bounds(distance, causal, near) == (0, 9)
    assert bounds(op(Op.SUB, build.K, build.Q), op(Op.AND, causal, near)) == (-9, 0)
    assert bounds(op(Op.ADD, op(Op.MUL, distance, number(2)), build.H), causal, near) == (0, 25)
    assert bounds(op(Op.MOD, distance, number(16)), causal, near) == (0, 9)
    assert bounds(build.K, causal, q=(0, 5)) == (0, 5)
    assert bounds(distance, op(Op.NOT, op(Op.GT, build.K, build.Q))) == (0, 999)
    assert bounds(distance, op(Op.LE, op(Op.ABS, distance), number(4))) == (-4, 4)
    assert bounds(distance, op(Op.NOT, op(Op.OR, op(Op.GT, build.K, build.Q), op(Op.GE, distance, number(3))))) == (
        0,
        2,
    )
    assert bounds(distance, op(Op.EQ, build.K, build.Q)) == (0, 0)


def test_an_assumed_boolean_is_true_wherever_it_occurs() -> None:
    flag = op(Op.LT, op(Op.MOD, build.Q, number(3)), number(1))
    assert truth(flag) == {True, False}
    assert bounds(op(Op.WHERE, flag, number(1), number(2)), flag) == (1, 1)
    assert bounds(op(Op.WHERE, flag, number(1), number(2)), op(Op.NOT, flag)) == (2, 2)


def test_numbers_beyond_64_bits_do_not_wrap_on_tiles() -> None:
    tiling = Tiling(1, 1, 256, 256, (128, 128), np.zeros(1, np.int64))
    huge = op(Op.MUL, op(Op.ADD, build.Q, number(2**40)), op(Op.ADD, build.K, number(2**40)))
    mask = op(Op.GT, huge, number(0))
    found = evaluate((mask,), tiling.tiles(slice(0, 2), slice(0, 2)), Known())[mask]
    assert isinstance(found, Truth)
    assert found.can_be_true.all()
    assert not found.can_be_false.any()


def test_common_prefixes_decide_bits() -> None:
    differ = op(Op.BIT_LENGTH, op(Op.BIT_XOR, build.Q, build.K))
    assert bounds(differ, q=(128, 255), k=(128, 255)) == (0, 7)
    assert bounds(differ, q=(128, 255), k=(0, 127)) == (8, 8)
    assert bounds(op(Op.BIT_AND, build.Q, number(64)), q=(64, 127)) == (64, 64)
    assert bounds(op(Op.BIT_AND, build.Q, number(63)), q=(0, 40)) == (0, 40)
    assert bounds(op(Op.BIT_OR, build.Q, number(64)), q=(0, 63)) == (64, 127)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_summary_is_the_range_over_the_box(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 13), min_size=0, max_size=2)))
    array = np.random.default_rng(data.draw(st.integers(0, 999))).integers(-50, 50, shape).astype(np.int32)
    tiles = data.draw(st.integers(1, 4))
    boxes = [
        [sorted(data.draw(st.tuples(st.integers(-3, size + 2), st.integers(-3, size + 2)))) for size in shape]
        for _ in range(tiles)
    ]
    indices = tuple(
        Interval(*(np.array([boxes[t][axis][end] for t in range(tiles)]).reshape(1, 1, -1, 1) for end in (0, 1)))
        for axis in range(len(shape))
    )
    found = ArraySummary(array).range(indices)
    lo, hi = (np.broadcast_to(end, (1, 1, tiles, 1)).ravel() for end in (found.lo, found.hi))
    for t in range(tiles):
        clipped = [np.clip(ends, 0, size - 1) for ends, size in zip(boxes[t], shape, strict=True)]
        part = array[tuple(slice(a, b + 1) for a, b in clipped)]
        assert (lo[t], hi[t]) == (part.min(), part.max())


def test_a_summary_of_many_shapes_falls_back_to_the_box_around_all() -> None:
    array = np.arange(10**6)
    widths = 1 << np.arange(18)
    index = Interval(np.zeros_like(widths), widths - 1)
    found = ArraySummary(array).range((index,))
    assert (found.lo <= 0).all()
    assert (found.hi >= widths - 1).all()


def test_an_empty_or_bool_tensor_has_a_summary() -> None:
    point = Interval(*(np.zeros((1, 1, 1, 1), np.int64),) * 2)
    assert int(ArraySummary(np.zeros(0, np.int64)).range((point,)).hi.max()) == 0
    flags = Known(summaries={"flags": ArraySummary(np.array([True, True, False]))})
    assert truth(build.load("flags", (build.Q,), DType.BOOL), known=flags, q=(0, 1)) == {True}
    assert truth(build.load("flags", (build.Q,), DType.BOOL), known=flags, q=(0, 2)) == {True, False}
