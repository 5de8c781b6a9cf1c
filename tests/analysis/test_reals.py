"""Enclosures contain what floats of any width become, and tell what is exact exactly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attndsl.analysis import reals
from attndsl.analysis import values as v
from attndsl.analysis.bounds import Strategy, choose_strategy, floats_looked_into, floats_planned_by
from attndsl.analysis.real_summaries import RealSummary
from attndsl.analysis.reals import REAL, Reals
from attndsl.analysis.values import Interval
from attndsl.frontend.parse import parse
from attndsl.ir.ops import Op, facts
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.runtime.known import summarize_floats

COMPARISONS = (Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE)
WILD = (0.0, -0.0, 1.0, -1.0, 0.1, 2.5, -3.75, 1e-45, -1e-40, 3e38, -3e38, 16777217.0, math.inf, -math.inf, math.nan)
"""Ties, numbers that float32 rounds, subnormal ones, ones whose sums and products leave float32, and no numbers."""

FLOATS = st.one_of(st.sampled_from(WILD), st.integers(-40, 40).map(float), st.floats(width=32), st.floats())
SETS = st.lists(FLOATS, min_size=1, max_size=4)
FUSED = {Op.ADD: torch.add, Op.SUB: torch.sub}


def enclosure(values: list[float], dtype: torch.dtype = torch.float64) -> Reals:
    """What is known of a tile that holds these."""
    array = torch.tensor(values, dtype=dtype)
    ends = (np.full((1, 1, 1, 1), end) for end in (0, len(values) - 1))
    return summarize_floats(array).range((Interval(*ends),))


def contains(found: Reals, values: Tensor) -> bool:
    numbers = values[~values.isnan()].double().numpy()
    inside = (numbers >= found.lo.item()) & (numbers <= found.hi.item())
    return bool(inside.all()) and bool(found.nan.item() or not values.isnan().any())


def applied(operator: Op, operands: list[list[float]], dtype: torch.dtype) -> Tensor:
    """The results of all combinations, in the arithmetic of a dtype."""
    columns = torch.tensor(list(itertools.product(*operands)), dtype=torch.float64).to(dtype)
    return getattr(torch, facts(operator).torch)(*columns.unbind(1))


@pytest.mark.parametrize("operator", sorted(REAL, key=lambda op: op.name))
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_enclosures_contain_the_results_of_every_width(operator: Op, data: st.DataObject) -> None:
    operands = [data.draw(SETS) for _ in range(facts(operator).arity)]
    found = REAL[operator](*map(enclosure, operands))
    for dtype in (torch.float32, torch.float64):
        assert contains(found, applied(operator, operands, dtype)), dtype
    for end in (found.lo.item(), found.hi.item()):
        assert end == np.float32(end)


@given(a=SETS, b=SETS, c=SETS, operator=st.sampled_from(sorted(FUSED, key=lambda op: op.name)))
@settings(max_examples=80, deadline=None)
def test_a_product_may_be_fused_with_what_it_is_added_to(
    a: list[float], b: list[float], c: list[float], operator: Op
) -> None:
    """The product in float64, where it is exact, and rounded once with the sum."""
    x, y, z = (torch.tensor(list(column)).double() for column in zip(*itertools.product(a, b, c), strict=True))
    found = REAL[operator](
        reals.mul(*(enclosure(list(some), torch.float32) for some in (a, b))), enclosure(c, torch.float32)
    )
    assert contains(found, FUSED[operator](x * y, z).float())
    turned = REAL[operator](
        enclosure(c, torch.float32), reals.mul(*(enclosure(some, torch.float32) for some in (a, b)))
    )
    assert contains(turned, FUSED[operator](z, x * y).float())


@given(values=SETS)
@settings(max_examples=60, deadline=None)
def test_a_square_is_no_product_of_two(values: list[float]) -> None:
    found = reals.square(enclosure(values))
    for dtype in (torch.float32, torch.float64):
        numbers = torch.tensor(values, dtype=dtype)
        assert contains(found, numbers * numbers)
    assert not found.lo.item() < 0


@pytest.mark.parametrize("operator", COMPARISONS)
@given(left=SETS, right=SETS)
@settings(max_examples=60, deadline=None)
def test_comparisons_of_elements_are_told_where_their_extremes_tell(
    operator: Op, left: list[float], right: list[float]
) -> None:
    truth = reals.compare(operator, *(enclosure(some, torch.float32) for some in (left, right)))
    seen = applied(operator, [left, right], torch.float32)
    can_be_true, can_be_false = bool(truth.can_be_true.item()), bool(truth.can_be_false.item())
    assert can_be_true or not seen.any()
    assert can_be_false or seen.all()
    if operator not in (Op.EQ, Op.NE):
        assert (can_be_true, can_be_false) == (bool(seen.any()), not seen.all())


@given(values=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_integers_become_floats_of_every_width(values: list[int]) -> None:
    ends = Interval(*(v.constant(pick(values), np.dtype(object)).lo for pick in (min, max)))
    inside = [value for value in values if abs(value) < 2**63]
    for dtype in (torch.float32, torch.float64):
        assert contains(reals.of_integers(ends), torch.tensor(inside, dtype=torch.int64).to(dtype))


@given(values=SETS)
@settings(max_examples=60, deadline=None)
def test_floats_become_integers_towards_zero(values: list[float]) -> None:
    found = reals.to_integers(enclosure(values), np.dtype(np.int64))
    numbers = [int(value) for value in values if math.isfinite(value) and abs(value) < 2**59]
    assert all(found.lo.item() <= number <= found.hi.item() for number in numbers)
    if not all(map(math.isfinite, values)):
        assert (found.lo.item(), found.hi.item()) == (-(2**60), 2**60), "what an integer of no number is, nobody says"
    if len(numbers) == len(values):
        assert found.hi.item() - found.lo.item() <= max(numbers) - min(numbers) + max(map(abs, numbers)) * 2**-20 + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_extremes_of_a_box_are_those_of_its_elements(dtype: torch.dtype, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    some = data.draw(st.lists(FLOATS, min_size=rows * columns, max_size=rows * columns))
    array = torch.tensor(some, dtype=torch.float64).to(dtype).reshape(rows, columns)
    summary, step = summarize_floats(array), data.draw(st.sampled_from((1, 8, 5)))
    first = np.arange(0, columns, step).reshape(1, 1, 1, -1)
    row = np.arange(rows).reshape(1, -1, 1, 1)
    found = summary.range((Interval(row, row), Interval(first, np.minimum(first + step, columns) - 1)))
    for number, start in itertools.product(range(rows), range(0, columns, step)):
        box = array[number, start : start + step].double()
        numbers = box[~box.isnan()]
        lo, hi, nan = (
            np.broadcast_to(end, (1, rows, 1, first.size))[0, number, 0, start // step]
            for end in (found.lo, found.hi, found.nan)
        )
        assert bool(nan) == bool(box.isnan().any())
        assert (lo > hi) == (numbers.numel() == 0)
        if numbers.numel():
            assert contains(Reals(*(np.full((1, 1, 1, 1), end) for end in (lo, hi, nan))), box)
            if dtype is not torch.float64:
                assert (lo, hi) == (numbers.min().item(), numbers.max().item())


def test_tensors_of_no_elements_and_of_no_axes() -> None:
    point = np.zeros((1, 1, 1, 1), np.int64)
    assert RealSummary(np.zeros((0,), np.float32)).range((Interval(point, point),)).lo.item() == 0.0
    found = summarize_floats(torch.tensor(2.5, dtype=torch.bfloat16)).range(())
    assert (found.lo.item(), found.hi.item(), found.nan.item()) == (2.5, 2.5, False)


def program(mask: str) -> Variant:
    (variant,) = parse(
        f"attention a(g: tensor[N], t: tensor[H], p: tensor[N, N], x: int tensor[N], s: float) {{ mask {mask} }}"
    )
    return run_passes(variant)


@pytest.mark.parametrize(
    "mask, strategy, looked_into",
    [
        ("g[kv_idx] > 0.5", Strategy.TABLE, ("g",)),
        ("kv_idx <= q_idx and g[q_idx] - g[kv_idx] < s", Strategy.TABLE, ("g",)),
        ("sqrt(g[q_idx] * t[h]) / 2.0 < floor(g[kv_idx])", Strategy.TABLE, ("g", "t")),
        ("kv_idx <= q_idx and g[q_idx] > t[h]", Strategy.CLOSED_FORM, ("g", "t")),
        ("exp(g[kv_idx]) > 0.5", Strategy.DENSE, ()),
        ("exp(g[kv_idx]) > 0.5 and x[kv_idx] < 3", Strategy.TABLE, ()),
        ("p[q_idx, kv_idx] > 0.5", Strategy.DENSE, ()),
        ("p[q_idx, kv_idx] > 0.5 or g[kv_idx] > 0.5", Strategy.DENSE, ("g",)),
        ("g[q_idx - kv_idx] > 0.5", Strategy.TABLE, ("g",)),
        ("float(kv_idx) * s < float(q_idx)", Strategy.TABLE, ()),
    ],
)
def test_which_floats_are_looked_into(mask: str, strategy: Strategy, looked_into: tuple[str, ...]) -> None:
    """Those by which a mask is decided: nothing is known of what else is computed, and tables of pairs stay unread."""
    found = program(mask).mask
    assert choose_strategy(found) is strategy
    assert floats_looked_into(found) == looked_into
    assert floats_planned_by(found) == (looked_into if strategy is Strategy.TABLE else ())
