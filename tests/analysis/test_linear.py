"""Linear forms: what cancels, what stays opaque, how they read, and that they mean what was written."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from exact import value
from hypothesis import given, settings
from hypothesis import strategies as st

from attndsl.analysis.linear import MAX_DEGREE, Linear, linear, to_expr
from attndsl.analysis.magnitude import CEILING, PARAMETER, POSITION, magnitude
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_expr
from attndsl.ir.types import DType

WINDOW = build.scalar("window", DType.I64)


def integer(text: str) -> Expr:
    """An integer expression of the language."""
    (variant,) = parse(f"attention t(window: int, n: int, doc: int tensor[N]) {{ mask {text} == 0 }}")
    assert isinstance(variant.mask, Apply)
    return variant.mask.args[0]


@pytest.mark.parametrize(
    "text, form",
    [
        ("q_idx - window + 1", "q_idx - window + 1"),
        ("1 - (window - q_idx)", "q_idx - window + 1"),
        ("window + q_idx", "q_idx + window"),
        ("2 * (q_idx + 3) - q_idx - 7", "q_idx - 1"),
        ("q_idx // 64 * 64 + 63", "q_idx // 64 * 64 + 63"),
        ("3 - h", "3 - h"),
        ("-h - 3", "-h - 3"),
        ("-2 * h", "h * -2"),
        ("q_idx - q_idx", "0"),
        ("q_idx - q_idx - 5", "-5"),
        ("(q_idx << 3) + ~kv_idx", "q_idx * 8 - kv_idx - 1"),
        ("doc[q_idx] * 3 - doc[kv_idx]", "doc[q_idx] * 3 - doc[kv_idx]"),
        ("(q_idx + 1) * n - q_idx * n", "n"),
        ("(q_idx - kv_idx) * (q_idx + kv_idx)", "q_idx * q_idx - kv_idx * kv_idx"),
        ("n * q_idx - q_idx * n", "0"),
        ("(n + 1) * (n + 1) * (n - 1)", "n * n * n + n * n - n - 1"),
        ("2 * n * 3 * window", "n * window * 6"),
    ],
)
def test_reads(text: str, form: str) -> None:
    expr = to_expr(linear(integer(text)))
    assert expr is integer(form), print_expr(expr)
    assert to_expr(linear(expr)) is expr


def test_products_can_stay_as_written() -> None:
    product = integer("(q_idx + 1) * n")
    assert linear(product, expand=False) == Linear(((product, 1),), 0)


def test_forms_add_scale_and_divide() -> None:
    form = linear(integer("4 * q_idx - 6 * window + 1"))
    assert form.coefficient(build.Q) == 4
    assert form.coefficient(build.K) == 0
    assert form.gcd == 2
    assert form.without(build.Q) == linear(integer("1 - 6 * window"))
    assert form.times(-1) == linear(integer("6 * window - 4 * q_idx - 1"))
    assert form.plus(2) == linear(integer("4 * q_idx - 6 * window + 3"))
    assert form.plus(form.times(-1)) == Linear((), 0)


def test_the_order_of_terms_does_not_depend_on_names() -> None:
    def total(first: str, second: str) -> Linear:
        return linear(build.apply(Op.ADD, *(build.scalar(name, DType.I64) for name in (first, second))))

    assert [term.name for term, _ in total("a", "b").terms] == ["a", "b"]
    assert [term.name for term, _ in total("b", "a").terms] == ["b", "a"]


def doubled(op: Op, expr: Expr, times: int) -> Expr:
    for _ in range(times):
        expr = build.apply(op, expr, expr)
    return expr


@pytest.mark.parametrize(
    "expr", [WINDOW, build.integer(3), build.apply(Op.ADD, WINDOW, build.Q)], ids=["w", "3", "w+q"]
)
def test_repeated_squaring_ends(expr: Expr) -> None:
    assert len(linear(doubled(Op.MUL, expr, 60)).terms) < 4 * MAX_DEGREE
    assert linear(doubled(Op.ADD, expr, 60)).constant < 2**64


def test_depth_is_no_matter() -> None:
    total: Expr = build.Q
    for _ in range(5000):
        total = build.apply(Op.ADD, total, build.integer(1))
    assert linear(total) == Linear(((build.Q, 1),), 5000)


def test_sums_need_no_sympy() -> None:
    program = (
        "import sys\n"
        "from attndsl.frontend.parse import parse\n"
        "from attndsl.passes.pipeline import run_passes\n"
        "run_passes(parse('attention t(w: int) { mask q_idx - kv_idx < w * h and kv_idx <= q_idx }')[0])\n"
        "assert 'sympy' not in sys.modules\n"
        "run_passes(parse('attention t(w: int) { mask (q_idx - kv_idx) * w < (q_idx + 1) * w }')[0])\n"
        "assert 'sympy' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


expressions = st.recursive(
    st.sampled_from([build.Q, build.K, WINDOW, build.apply(Op.FLOORDIV, build.Q, build.integer(3))])
    | st.integers(-5, 5).map(build.integer),
    lambda inner: st.one_of(
        st.builds(build.apply, st.sampled_from([Op.ADD, Op.SUB, Op.MUL, Op.MAX]), inner, inner),
        st.builds(build.apply, st.sampled_from([Op.NEG, Op.BIT_NOT]), inner),
        st.builds(build.apply, st.just(Op.SHL), inner, st.integers(0, 3).map(build.integer)),
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expr=expressions, expand=st.booleans())
def test_means_what_was_written(expr: Expr, expand: bool) -> None:
    form = linear(expr, expand)
    again = to_expr(form)
    for q, k, window in itertools.product((0, 3, 7), (0, 1, 5), (-4, 0, 6)):
        leaves = {build.Q: q, build.K: k, WINDOW: window}
        expected = value(expr, leaves)
        assert form.constant + sum(number * value(term, leaves) for term, number in form.terms) == expected
        assert value(again, leaves) == expected
    assert to_expr(linear(again, expand)) is again


def test_two_forms_are_equal_when_the_polynomials_are() -> None:
    left, right = integer("(q_idx + n) * (q_idx - n)"), integer("q_idx * q_idx - n * n")
    assert linear(build.apply(Op.SUB, left, right)) == Linear((), 0)


@pytest.mark.parametrize(
    "text, bound",
    [
        ("q_idx + 5", POSITION + 5),
        ("q_idx * 8 - kv_idx", 9 * POSITION),
        ("q_idx // 64 * 64 + 63", POSITION + 64 + 63),
        ("(kv_idx % 8) * 4", POSITION),
        ("window * 2 + 1", 2 * PARAMETER + 1),
        ("doc[kv_idx] * n", PARAMETER),
        ("max(-q_idx, abs(kv_idx) + 1)", POSITION + 1),
        ("(3 if h == 0 else 4) * 2", POSITION),
        ("int(h == 0) * 4000000000", 4000000000),
    ],
)
def test_magnitude(text: str, bound: int) -> None:
    assert magnitude(integer(text)) == bound


def test_magnitude_stops_growing() -> None:
    total: Expr = build.Q
    for _ in range(50):
        total = build.apply(Op.MUL, total, build.integer(2**40))
    assert magnitude(total) == CEILING
