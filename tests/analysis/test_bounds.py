"""Key ranges read from masks after the passes: exact for affine conjunctions, right for every pair."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial

import pytest
from exact import value
from hypothesis import given, settings
from hypothesis import strategies as st

from attndsl.analysis.bounds import KeyRange, conjuncts, key_range
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_expr
from attndsl.ir.types import DType
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes

WINDOW = build.scalar("window", DType.I64)
SHIFT = build.scalar("shift", DType.I64)


def program(mask: str) -> Variant:
    (variant,) = parse(f"attention t(window: int, shift: int, doc: int tensor[N]) {{ mask {mask} }}")
    return variant


def range_of(mask: str) -> KeyRange:
    return key_range(run_passes(program(mask)).mask)


def texts(expressions: tuple[Expr, ...]) -> list[str]:
    return [print_expr(expression) for expression in expressions]


@pytest.mark.parametrize(
    "mask, lower, upper, gates, residue",
    [
        ("true", [], [], [], []),
        ("kv_idx <= q_idx", [], ["q_idx"], [], []),
        ("kv_idx <= q_idx and q_idx - kv_idx < window", ["q_idx - window + 1"], ["q_idx"], [], []),
        ("kv_idx == q_idx", ["q_idx"], ["q_idx"], [], []),
        ("kv_idx < 8 and h < 2", [], ["7"], ["h < 2"], []),
        ("kv_idx <= q_idx and doc[q_idx] == doc[kv_idx]", [], ["q_idx"], [], ["doc[q_idx] == doc[kv_idx]"]),
        ("kv_idx < doc[q_idx]", [], ["doc[q_idx] - 1"], [], []),
        ("kv_idx < 4 or kv_idx <= q_idx", [], [], [], ["kv_idx <= 3 or kv_idx <= q_idx"]),
        ("2 * kv_idx == q_idx", ["q_idx // 2"], ["q_idx // 2"], ["q_idx % 2 == 0"], []),
        ("kv_idx // 64 == q_idx // 64", ["q_idx // 64 * 64"], ["q_idx // 64 * 64 + 63"], [], []),
        ("abs(q_idx - kv_idx) <= 3", ["q_idx - 3"], ["q_idx + 3"], [], []),
        ("kv_idx <= q_idx if h < 2 else false", [], ["q_idx"], ["h < 2"], []),
        ("not (kv_idx > q_idx or kv_idx < shift)", ["shift"], ["q_idx"], [], []),
    ],
)
def test_key_range(mask: str, lower: list[str], upper: list[str], gates: list[str], residue: list[str]) -> None:
    found = range_of(mask)
    assert [texts(part) for part in (found.lower, found.upper, found.gates, found.residue)] == [
        lower,
        upper,
        gates,
        residue,
    ]
    assert found.is_exact == (not residue)
    assert found.is_bounded == bool(lower or upper or gates)


def test_conjuncts_are_distinct_and_in_order() -> None:
    first, second = build.apply(Op.LE, build.K, build.Q), build.apply(Op.LE, build.K, WINDOW)
    assert conjuncts(build.TRUE) == ()
    assert conjuncts(build.conjunction([second, first, second])) == (second, first)


def scaled(term: Expr, factor: int) -> Expr:
    return build.apply(Op.MUL, build.integer(factor), term)


@st.composite
def bounds(draw: st.DrawFn) -> Expr:
    """`a * kv + b * q + c * window + d * shift + e  op  0`, the terms in any order and on any side."""
    coefficients = {
        build.K: draw(st.sampled_from([-3, -2, -1, 1, 2, 3])),
        build.Q: draw(st.integers(-3, 3)),
        WINDOW: draw(st.integers(-2, 2)),
        SHIFT: draw(st.integers(-1, 1)),
        build.integer(1): draw(st.integers(-9, 9)),
    }
    sides: tuple[list[Expr], list[Expr]] = ([], [])
    for term in draw(st.permutations(list(coefficients))):
        side = draw(st.integers(0, 1))
        sides[side].append(scaled(term, coefficients[term] if side == 0 else -coefficients[term]))
    left, right = (_sum(terms) for terms in sides)
    comparison = build.apply(draw(st.sampled_from([Op.LE, Op.LT, Op.GE, Op.GT, Op.EQ])), left, right)
    return build.apply(Op.NOT, comparison) if draw(st.booleans()) and comparison.op is not Op.EQ else comparison


def _sum(terms: list[Expr]) -> Expr:
    total: Expr = build.integer(0)
    for term in terms:
        total = build.apply(Op.ADD, total, term)
    return total


def is_live(found: KeyRange, leaves: Mapping[Expr, int]) -> bool:
    """What a `KeyRange` says of a pair."""
    of = partial(value, leaves=leaves)
    key = leaves[build.K]
    within = all(of(bound) <= key for bound in found.lower) and all(key <= of(bound) for bound in found.upper)
    return within and all(map(of, found.gates)) and all(map(of, found.residue))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(terms=st.lists(bounds(), min_size=1, max_size=4))
def test_affine_conjunctions_are_exact(terms: list[Expr]) -> None:
    written = build.conjunction(terms)
    base = program("true")
    found = key_range(run_passes(base.map(lambda root: written if root is base.mask else root)).mask)
    assert found.is_exact
    for q, k, window, shift in itertools.product(range(6), range(6), (-2, 0, 3), (0, 1)):
        leaves = {build.Q: q, build.K: k, WINDOW: window, SHIFT: shift}
        assert is_live(found, leaves) == bool(value(written, leaves)), leaves
