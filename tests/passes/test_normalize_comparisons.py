"""Comparisons solved for the key: pairs before and after, and random ones by brute force in Python's integers."""

from __future__ import annotations

import itertools

import pytest
from exact import value
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import check_mask, program

from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import rewrite
from attndsl.ir.types import DType
from attndsl.ir.variant import Variant
from attndsl.passes.normalize_comparisons import Solver, normalize_comparisons

WINDOW = build.scalar("window", DType.I64)
CHUNK = build.scalar("chunk", DType.I64)


@pytest.mark.parametrize(
    "before, after",
    [
        ("kv_idx <= q_idx", "kv_idx <= q_idx"),
        ("q_idx >= kv_idx", "kv_idx <= q_idx"),
        ("kv_idx < q_idx", "kv_idx <= q_idx - 1"),
        ("q_idx - kv_idx < window", "kv_idx >= q_idx - window + 1"),
        ("2 * kv_idx + 3 <= 3 * q_idx", "kv_idx <= (q_idx * 3 - 3) // 2"),
        ("q_idx < 2 * kv_idx", "kv_idx >= (q_idx + 2) // 2"),
        ("4 * kv_idx <= 2 * q_idx + 3", "kv_idx <= (q_idx + 1) // 2"),
        ("-3 * kv_idx <= -7", "kv_idx >= 3"),
        ("kv_idx == q_idx - 1", "kv_idx == q_idx - 1"),
        ("2 * kv_idx == q_idx", "kv_idx == q_idx // 2 and q_idx % 2 == 0"),
        ("2 * kv_idx == 2 * q_idx + 1", "false"),
        ("2 * kv_idx != 2 * q_idx + 1", "true"),
        ("q_idx - kv_idx != 1", "kv_idx != q_idx - 1"),
        ("2 * kv_idx != q_idx", "2 * kv_idx != q_idx"),
        ("q_idx < window", "q_idx <= window - 1"),
        ("2 * q_idx > 5", "q_idx >= 3"),
        ("h < 4", "h < 4"),
        ("h - h < 4", "true"),
        ("kv_idx - kv_idx == 1", "false"),
        ("abs(q_idx - kv_idx) <= window", "kv_idx >= q_idx - window and kv_idx <= q_idx + window"),
        ("abs(q_idx - kv_idx) > 3", "kv_idx <= q_idx - 4 or kv_idx >= q_idx + 4"),
        ("min(kv_idx, q_idx) <= 3", "kv_idx <= 3 or q_idx <= 3"),
        ("max(kv_idx, q_idx) <= 3", "kv_idx <= 3 and q_idx <= 3"),
        ("min(kv_idx, q_idx) >= 3", "kv_idx >= 3 and q_idx >= 3"),
        ("max(kv_idx, q_idx) >= 3", "kv_idx >= 3 or q_idx >= 3"),
        ("max(kv_idx, doc[kv_idx]) <= q_idx", "kv_idx <= q_idx and doc[kv_idx] <= q_idx"),
        ("kv_idx <= min(q_idx, lengths[b])", "kv_idx <= min(q_idx, lengths[b])"),
        ("kv_idx // 64 <= q_idx // 64", "kv_idx <= q_idx // 64 * 64 + 63"),
        ("kv_idx // 64 >= q_idx // 64 - 1", "kv_idx >= q_idx // 64 * 64 - 64"),
        ("q_idx // 8 == kv_idx // 8", "kv_idx >= q_idx // 8 * 8 and kv_idx <= q_idx // 8 * 8 + 7"),
        ("2 * (kv_idx // 8) <= q_idx", "kv_idx <= q_idx // 2 * 8 + 7"),
        ("(kv_idx // 2 + 1) // 3 < 4", "kv_idx <= 21"),
        ("kv_idx << 2 <= q_idx", "kv_idx <= q_idx // 4"),
        ("~kv_idx >= -q_idx", "kv_idx <= q_idx - 1"),
        ("(kv_idx + 1) * n - kv_idx * n <= 3", "n <= 3"),
        ("(kv_idx + 1) * (q_idx + 1) - kv_idx * q_idx - kv_idx <= 9", "q_idx <= 8"),
        ("2 * kv_idx <= (q_idx + 1) * n", "kv_idx <= (q_idx + 1) * n // 2"),
    ],
)
def test_solves(before: str, after: str) -> None:
    check_mask(normalize_comparisons, before, after)


@pytest.mark.parametrize(
    "mask",
    [
        "kv_idx + doc[kv_idx] < q_idx",
        "doc[q_idx] == doc[kv_idx]",
        "kv_idx % 64 < q_idx % 64",
        "abs(q_idx % 8 - kv_idx % 8) < 3",
        "kv_idx * n < q_idx",
        "kv_idx // n < q_idx // n",
        "kv_idx // -4 < q_idx",
        "kv_idx // 4 != q_idx // 4",
        "kv_idx // 4 + kv_idx < q_idx",
        "slope < 1.0",
        "kv_idx + 9223372036854775807 < q_idx",
        "kv_idx // 1099511627776 < q_idx",
    ],
)
def test_leaves_what_it_cannot_solve(mask: str) -> None:
    variant = program(mask=mask)
    assert normalize_comparisons(variant) is variant


@pytest.mark.parametrize(
    "before, after",
    [
        ("kv_idx // n <= q_idx // n", "kv_idx <= q_idx // n * n + n - 1"),
        ("kv_idx // n >= q_idx // n - window", "kv_idx >= q_idx // n * n - window * n"),
        ("q_idx // n == kv_idx // n", "kv_idx >= q_idx // n * n and kv_idx <= q_idx // n * n + n - 1"),
        ("2 * (kv_idx // n) <= q_idx", "kv_idx <= q_idx // 2 * n + n - 1"),
        ("kv_idx // n < 3", "kv_idx <= n * 3 - 1"),
        ("(kv_idx - window) // n <= q_idx", "kv_idx <= window + q_idx * n + n - 1"),
        ("kv_idx // window <= q_idx // window", "kv_idx // window <= q_idx // window"),
        ("kv_idx % n <= q_idx % n", "kv_idx % n <= q_idx % n"),
    ],
)
@pytest.mark.parametrize("required", ["n >= 1", "n > 0", "0 < n", "2 <= n and window >= 0", "2 * n > n"])
def test_solves_divisions_by_a_scalar_required_to_be_positive(before: str, after: str, required: str) -> None:
    got, wanted = (required_program(mask, required) for mask in (before, after))
    assert normalize_comparisons(got).mask is wanted.mask


@pytest.mark.parametrize("required", ["n >= 0", "n != 0", "n >= 1 or window >= 1", "n >= window", "-n >= 1", "true"])
def test_a_scalar_that_may_not_be_positive_is_no_divisor(required: str) -> None:
    variant = required_program("kv_idx // n <= q_idx // n", required)
    assert normalize_comparisons(variant) is variant


def required_program(mask: str, required: str) -> Variant:
    text = f'attention t(n: int, window: int) {{ require {required}, "it is not"\n mask {mask} }}'
    (variant,) = parse(text)
    return variant


def test_wide_choices_are_not_taken_apart() -> None:
    """Each `abs` doubles the number of comparisons: five of them would make 32."""
    total = " + ".join(f"abs(kv_idx - {index} * q_idx)" for index in range(5))
    variant = program(mask=f"{total} <= 9")
    assert normalize_comparisons(variant) is variant


def binary(*ops: Op) -> st.SearchStrategy[Op]:
    return st.sampled_from(ops)


integers = st.recursive(
    st.sampled_from([build.K, build.K, build.Q, WINDOW]) | st.integers(-9, 9).map(build.integer),
    lambda inner: st.one_of(
        st.builds(build.apply, binary(Op.ADD, Op.SUB, Op.MIN, Op.MAX, Op.MUL), inner, inner),
        st.builds(build.apply, st.sampled_from([Op.MUL, Op.ADD]), inner, st.integers(-3, 3).map(build.integer)),
        st.builds(
            build.apply, binary(Op.FLOORDIV, Op.MOD), inner, st.sampled_from([1, 2, 3, 5, -2]).map(build.integer)
        ),
        st.builds(build.apply, binary(Op.NEG, Op.ABS, Op.BIT_NOT), inner),
    ),
    max_leaves=7,
)
comparisons = st.builds(build.apply, binary(Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE), integers, integers)
GRID = [
    {build.Q: q, build.K: k, WINDOW: window} for q, k, window in itertools.product(range(7), range(7), (-3, 0, 1, 4))
]


divided = st.builds(
    build.apply,
    binary(Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ),
    st.builds(
        lambda inner, rest: build.apply(Op.ADD, build.apply(Op.FLOORDIV, inner, CHUNK), rest), integers, integers
    ),
    integers,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(comparison=divided)
def test_divided_by_a_positive_scalar_means_what_was_written(comparison: Expr) -> None:
    solved = rewrite(comparison, Solver(frozenset({CHUNK})).rule)
    for leaves in GRID:
        for chunk in (1, 2, 5):
            at = {**leaves, CHUNK: chunk}
            assert bool(value(solved, at)) == bool(value(comparison, at)), at


@settings(max_examples=500, deadline=None, derandomize=True)
@given(comparison=comparisons)
def test_means_what_was_written(comparison: Expr) -> None:
    rule = Solver().rule
    solved = rewrite(comparison, rule)
    for leaves in GRID:
        assert bool(value(solved, leaves)) == bool(value(comparison, leaves)), leaves
    assert rewrite(solved, rule) is solved
