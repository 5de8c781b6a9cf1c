"""Expressions as Triton: brackets come from the tree, reads are clamped where they may stray, constants keep bits."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping

import pytest

from attndsl.codegen.triton_expr import LoadStyle, TritonPrinter
from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Load
from attndsl.ir.ops import FACTS, Op
from attndsl.ir.types import DType

INSIDE = LoadStyle(clamped=False)
CLAMPED = LoadStyle(clamped=True)
N = build.scalar("n", DType.I64)
X = build.scalar("x", DType.F32)
LEAVES: dict[Expr, str] = {build.Q: "q_idx", build.K: "kv_idx", build.SCORE: "s", N: "n", X: "x"}


def printer(index: DType = DType.I32, cheap: frozenset[Expr] = frozenset()) -> TritonPrinter:
    return TritonPrinter(index, LEAVES, {"table": "table_"}, cheap)


def text(node: Expr, loads: LoadStyle = INSIDE, names: Mapping[Expr, str] | None = None) -> str:
    return printer().text(node, names or {}, loads)


def test_brackets_stand_where_the_tree_needs_them() -> None:
    distance = build.apply(Op.SUB, build.Q, build.apply(Op.SUB, build.K, N))
    assert text(distance) == "q_idx - (kv_idx - n)"
    assert text(build.apply(Op.MUL, distance, distance)) == "(q_idx - (kv_idx - n)) * (q_idx - (kv_idx - n))"
    seen = build.apply(Op.LE, build.K, build.Q)
    assert text(build.apply(Op.AND, seen, build.apply(Op.NOT, seen))) == "(kv_idx <= q_idx) & ~(kv_idx <= q_idx)"
    assert text(build.apply(Op.EQ, seen, seen)) == "(kv_idx <= q_idx) == (kv_idx <= q_idx)"
    assert text(build.apply(Op.NEG, build.apply(Op.NEG, X))) == "--x"


@pytest.mark.parametrize(
    "value, printed",
    [(math.inf, "INF"), (-math.inf, "-INF"), (math.nan, "NAN"), (-0.0, "-0.0"), (1e-45, "1e-45"), (-2.5, "-2.5")],
)
def test_float_constants(value: float, printed: str) -> None:
    assert text(build.real(value)) == printed


def test_a_negative_constant_keeps_its_sign_under_operators() -> None:
    node = build.apply(Op.BIT_AND, build.integer(-3), N)
    assert ast.unparse(ast.parse(text(node), mode="eval")) == "-3 & n"
    assert text(build.apply(Op.SUB, N, build.integer(-3))) == "n - -3"


def test_division_is_rounded_by_a_helper_unless_signs_are_known() -> None:
    node = build.apply(Op.FLOORDIV, build.Q, N)
    careful = printer()
    assert careful.text(node, {}, INSIDE) == "_floordiv(q_idx, n)"
    assert careful.helpers == {"_floordiv"}
    cheap = printer(cheap=frozenset({node}))
    assert cheap.text(node, {}, INSIDE) == "q_idx // n"
    assert cheap.helpers == set()


def test_integers_and_floats_have_their_own_spelling() -> None:
    assert text(build.apply(Op.MIN, N, build.Q)) == "tl.minimum(n, q_idx)"
    assert text(build.apply(Op.MIN, X, build.SCORE)) == "_minimum(x, s)"
    assert printer(DType.I64).text(build.apply(Op.TO_INT, X), {}, INSIDE) == "x.to(tl.int64)"


def test_reads_are_clamped_unless_they_are_known_to_be_inside() -> None:
    load = build.load("table", (build.apply(Op.SUB, build.Q, build.K),), DType.F32)
    inside = "tl.load(table_ + (q_idx - kv_idx) * stride_table__0).to(tl.float32)"
    assert text(load) == inside
    assert text(load, LoadStyle(clamped=True, unclamped=frozenset({load}))) == inside
    index = "tl.minimum(tl.maximum(q_idx - kv_idx, 0), size_table__0 - 1)"
    assert text(load, CLAMPED) == f"tl.load(table_ + {index} * stride_table__0).to(tl.float32)"


def test_reads_have_the_type_of_the_program() -> None:
    suffixes = {DType.F32: ".to(tl.float32)", DType.I64: ".to(tl.int32)", DType.BOOL: ".to(tl.int1)"}
    for dtype, suffix in suffixes.items():
        load = build.load("table", (), dtype)
        assert isinstance(load, Load)
        assert text(load) == f"tl.load(table_){suffix}"


def test_offsets_are_added_up_before_the_pointer() -> None:
    """A pointer is twice as wide; what is one for all of a program is added to it once."""
    load = Load("table", (build.B, N, build.Q, build.K), DType.I64)
    place = "table_ + b * stride_table__0 + n * stride_table__1 + (q_idx * stride_table__2 + kv_idx * stride_table__3)"
    assert text(load, names={build.B: "b"}) == f"tl.load({place}).to(tl.int32)"


@pytest.mark.parametrize(
    "exponent, printed",
    [(2.0, "_small_pow(x, 2)"), (4.0, "_small_pow(x, 4)"), (5.0, "_pow(x, 5.0)"), (0.5, "_pow(x, 0.5)")],
)
def test_small_powers_are_multiplied_out(exponent: float, printed: str) -> None:
    assert text(build.apply(Op.POW, X, build.real(exponent))) == printed


def test_a_named_value_is_printed_by_its_name() -> None:
    inner = build.apply(Op.MUL, X, X)
    node = build.apply(Op.ADD, inner, X)
    assert text(node, names={inner: "square"}) == "square + x"
    assert text(inner, names={inner: "square"}) == "x * x"
    assert printer().named(inner, {inner: "square"}, INSIDE) == "square"


def test_a_leaf_without_a_name_is_a_bug_of_the_compiler() -> None:
    with pytest.raises(VerifyError, match="no name in the kernel"):
        text(build.apply(Op.ADD, build.H, N))


@pytest.mark.parametrize("op", FACTS, ids=lambda op: op.name)
def test_every_spelling_parses_with_its_operands(op: Op) -> None:
    row = FACTS[op]
    for spelling in filter(None, (row.triton, row.triton_int)):
        filled = spelling.replace("INDEX", "tl.int32").format(*(f"operand{place}" for place in range(row.arity)))
        names = {node.id for node in ast.walk(ast.parse(filled, mode="eval")) if isinstance(node, ast.Name)}
        assert {f"operand{place}" for place in range(row.arity)} <= names
