"""Expressions as C++: brackets by one rule, vectors along queries, reads side by side, constants by their bits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from attndsl.codegen.cpp_expr import CppPrinter
from attndsl.codegen.triton_expr import LoadStyle
from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Load
from attndsl.ir.ops import FACTS, Op
from attndsl.ir.types import DType

INSIDE = LoadStyle(clamped=False)
CLAMPED = LoadStyle(clamped=True)
N = build.scalar("n", DType.I64)
X = build.scalar("x", DType.F32)
SEEN = build.apply(Op.LE, build.K, build.Q)
LEAVES: dict[Expr, str] = {build.H: "h", build.Q: "q_idx", build.K: "kv_idx", build.SCORE: "s", N: "n", X: "x"}


def printer(real: str = "float", cheap: frozenset[Expr] = frozenset()) -> CppPrinter:
    return CppPrinter(real, LEAVES, {"table": "table_"}, cheap)


def text(node: Expr, loads: LoadStyle = INSIDE, names: Mapping[Expr, str] | None = None) -> str:
    return printer().text(node, names or {}, loads)


def test_an_operation_inside_another_stands_in_brackets() -> None:
    distance = build.apply(Op.SUB, build.Q, build.apply(Op.SUB, build.K, N))
    assert text(distance) == "q_idx - (kv_idx - n)"
    assert text(build.apply(Op.MUL, distance, distance)) == "(q_idx - (kv_idx - n)) * (q_idx - (kv_idx - n))"
    assert text(build.apply(Op.BIT_AND, build.Q, build.apply(Op.BIT_OR, build.K, N))) == "q_idx & (kv_idx | n)"
    assert text(build.apply(Op.AND, SEEN, build.apply(Op.NOT, SEEN))) == "(kv_idx <= q_idx) & !(kv_idx <= q_idx)"
    assert text(build.apply(Op.EQ, SEEN, SEEN)) == "(kv_idx <= q_idx) == (kv_idx <= q_idx)"


def test_an_operation_goes_on_without_brackets_on_the_left_alone() -> None:
    left = build.apply(Op.SUB, build.apply(Op.SUB, build.Q, build.K), N)
    assert text(left) == "q_idx - kv_idx - n"
    assert text(build.apply(Op.SUB, N, left)) == "n - (q_idx - kv_idx - n)"
    assert text(build.apply(Op.ADD, left, N)) == "(q_idx - kv_idx - n) + n"


def test_no_two_signs_meet() -> None:
    assert text(build.apply(Op.NEG, build.apply(Op.NEG, X))) == "-(-x)"
    assert text(build.apply(Op.NEG, build.integer(-3))) == "-(-3)"
    assert text(build.apply(Op.SUB, N, build.integer(-3))) == "n - -3"


@pytest.mark.parametrize(
    "value, single, double",
    [
        (math.inf, "INF", "INF"),
        (-math.inf, "-INF", "-INF"),
        (math.nan, "NAN", "NAN"),
        (-0.0, "-0.0f", "-0.0"),
        (1e-45, "1e-45f", "1e-45"),
        (-2.5, "-2.5f", "-2.5"),
        (1e39, "INF", "1e+39"),
    ],
)
def test_float_constants(value: float, single: str, double: str) -> None:
    assert text(build.real(value)) == single
    assert printer("double").text(build.real(value), {}, INSIDE) == double


def test_small_powers_are_multiplied_out() -> None:
    powers = (build.apply(Op.POW, X, build.real(exponent)) for exponent in (2.0, 3.0, 4.0, 5.0))
    assert [*map(text, powers)] == ["pow_2(x)", "pow_3(x)", "pow_4(x)", "pow(x, 5.0f)"]


def test_the_least_integer_is_no_literal() -> None:
    assert text(build.integer(-(2**63))) == "-9223372036854775807 - 1"
    assert text(build.integer(2**63 - 1)) == "9223372036854775807"


def test_types_follow_the_query() -> None:
    types = {node: printer().type_of(node) for node in (SEEN, build.Q, build.SCORE, N, X, build.TRUE, build.K)}
    assert list(types.values()) == ["vbool", "vint", "vreal", "integer", "real", "bool", "integer"]


def test_one_value_and_vectors_choose_each_in_their_way() -> None:
    near = build.apply(Op.LT, build.H, N)
    assert text(build.apply(Op.WHERE, near, X, build.real(1.0))) == "(h < n) ? x : 1.0f"
    assert text(build.apply(Op.WHERE, near, build.SCORE, X)) == "(h < n) ? s : x"
    assert text(build.apply(Op.WHERE, SEEN, build.SCORE, X)) == "select(kv_idx <= q_idx, s, x)"
    assert text(build.apply(Op.WHERE, SEEN, X, build.SCORE)) == "select(kv_idx <= q_idx, vreal(x), s)"
    assert text(build.apply(Op.AND, near, near)) == "(h < n) && (h < n)"
    assert text(build.apply(Op.OR, near, SEEN)) == "(h < n) | (kv_idx <= q_idx)"


def test_division_is_rounded_down_by_a_function_unless_signs_are_known() -> None:
    column, row = (build.apply(Op.FLOORDIV, leaf, N) for leaf in (build.K, build.Q))
    assert text(column) == "floor_divide(kv_idx, n)"
    cheap = printer(cheap=frozenset({column, row}))
    assert cheap.text(column, {}, INSIDE) == "kv_idx / n"
    assert cheap.text(row, {}, INSIDE) == "floor_divide(q_idx, n)"


def test_division_by_a_power_of_two_is_a_shift_whatever_the_sign() -> None:
    assert text(build.apply(Op.FLOORDIV, build.Q, build.integer(64))) == "q_idx >> 6"
    assert text(build.apply(Op.MOD, build.apply(Op.SUB, build.Q, N), build.integer(8))) == "(q_idx - n) & 7"
    assert text(build.apply(Op.MOD, build.Q, build.integer(-8))) == "floor_mod(q_idx, -8)"
    assert text(build.apply(Op.FLOORDIV, build.Q, build.integer(1))) == "q_idx >> 0"


def load(*indices: Expr, dtype: DType = DType.F32) -> Load:
    node = build.load("table", indices, dtype)
    assert isinstance(node, Load)
    return node


def test_one_element_is_read_by_its_index() -> None:
    assert text(load()) == "to_real(table_[0])"
    assert text(load(build.H, dtype=DType.BOOL)) == "to_bool(table_[h * stride_table__0])"
    shifted = build.apply(Op.SUB, build.K, N)
    assert text(load(build.H, shifted, dtype=DType.I64)) == (
        "to_integer(table_[h * stride_table__0 + (kv_idx - n) * stride_table__1])"
    )


@pytest.mark.parametrize(
    "index, read",
    [
        (build.Q, "reals_along(table_, q_idx, stride_table__0)"),
        (build.apply(Op.ADD, build.K, build.Q), "reals_along(table_, kv_idx + q_idx, stride_table__0)"),
        (build.apply(Op.SUB, build.Q, build.K), "reals_along(table_, q_idx - kv_idx, stride_table__0)"),
        (build.apply(Op.SUB, build.K, build.Q), "reals_against(table_, kv_idx - q_idx, stride_table__0)"),
        (build.apply(Op.NEG, build.Q), "reals_against(table_, -q_idx, stride_table__0)"),
        (build.apply(Op.SUB, N, build.apply(Op.NEG, build.Q)), "reals_along(table_, n - -q_idx, stride_table__0)"),
        (build.apply(Op.MUL, build.Q, N), "reals_at(table_, q_idx * n, stride_table__0)"),
        (build.apply(Op.SUB, build.Q, build.Q), "reals_at(table_, q_idx - q_idx, stride_table__0)"),
        (build.apply(Op.ADD, build.Q, build.Q), "reals_at(table_, q_idx + q_idx, stride_table__0)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reads_go_along_the_queries_one_by_one_or_anyhow(index: Expr, read: str) -> None:
    assert text(load(index)) == read


def test_reads_that_move_along_two_dimensions() -> None:
    read = "reals_at(table_ + h * stride_table__1, q_idx, stride_table__0, kv_idx + q_idx, stride_table__2)"
    assert text(load(build.Q, build.H, build.apply(Op.ADD, build.K, build.Q))) == read


def test_reads_are_clamped_unless_they_are_known_to_be_inside() -> None:
    node = load(build.H, build.Q)
    inside = "reals_along(table_ + h * stride_table__0, q_idx, stride_table__1)"
    assert text(node) == text(node, LoadStyle(clamped=True, unclamped=frozenset({node}))) == inside
    assert text(node, CLAMPED) == (
        "reals_along(table_ + clamped(h, size_table__0) * stride_table__0, "
        "clamped(q_idx, size_table__1), stride_table__1)"
    )


def test_a_name_stands_for_its_value_but_at_the_root() -> None:
    total = build.apply(Op.ADD, SEEN_AS_NUMBER, X)
    assert text(total, names={SEEN_AS_NUMBER: "term"}) == "term + x"
    assert text(SEEN_AS_NUMBER, names={SEEN_AS_NUMBER: "term"}) == "to_real(kv_idx <= q_idx)"


SEEN_AS_NUMBER = build.apply(Op.TO_FLOAT, SEEN)


def test_a_leaf_without_a_name_is_a_bug() -> None:
    with pytest.raises(VerifyError, match="has no name"):
        text(build.apply(Op.ADD, build.B, N))


def test_every_operator_has_a_spelling() -> None:
    assert [op.name for op, row in FACTS.items() if not row.cpp] == []
