"""Printed programs parse back to the same nodes, and read well."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import Case, cases

from attndsl.frontend.builder import Builder
from attndsl.frontend.normalizers import softmax
from attndsl.frontend.parse import parse, read
from attndsl.ir import build
from attndsl.ir.build import KV_LEN, SCORE, WEIGHT, K, Q, integer, real
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op, facts
from attndsl.ir.printer import print_expr, print_variant
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant

EXAMPLES = Path(__file__).parents[2] / "examples"

LEAVES: dict[DType, tuple[Expr, ...]] = {
    DType.BOOL: tuple(build.load(name, (), DType.BOOL) for name in ("p", "r", "s")),
    DType.I64: (build.scalar("a", DType.I64), Q, K),
    DType.F32: (build.scalar("x", DType.F32), build.scalar("y", DType.F32), SCORE),
}
PARAMS: tuple[Param, ...] = (
    *(TensorParam(name, DType.BOOL, ()) for name in "prs"),
    ScalarParam("a", DType.I64, -7),
    ScalarParam("x", DType.F32, -math.inf),
    ScalarParam("y", DType.F32, 1e30),
    TensorParam("t", DType.I64, ("B", "8")),
)


def as_float(value: Expr) -> Expr:
    """A float made of a value of any type; literals stay literals."""
    match value.dtype:
        case DType.BOOL:
            return build.apply(Op.WHERE, value, SCORE, real(-math.inf))
        case DType.F32:
            return value
        case _:
            return build.apply(Op.TO_FLOAT, build.apply(Op.ADD, value, Q))


def program(value: Expr) -> Variant:
    """A variant whose score holds the value."""
    return Variant("v", PARAMS, as_float(value), build.TRUE, softmax(Builder()), WEIGHT)


def assert_round_trip(variant: Variant) -> None:
    text = print_variant(variant)
    (parsed,) = parse(text)
    assert parsed == variant, text
    assert print_variant(parsed) == text


def types_of(op: Op) -> list[tuple[DType, ...]]:
    """Every way to type the operands of an operator."""
    row = facts(op)
    alike = [(dtype,) * row.arity for dtype in DType if dtype in row.operands]
    return [(DType.BOOL, *types[1:]) for types in alike] if op is Op.WHERE else alike


def applications() -> list[Apply]:
    """Every operator on leaves of every type it takes."""
    found = []
    for op in Op:
        for types in types_of(op):
            if (op, types[0]) not in ((Op.TO_BOOL, DType.BOOL), (Op.TO_INT, DType.I64), (Op.TO_FLOAT, DType.F32)):
                found.append(build.apply(op, *(LEAVES[dtype][n] for n, dtype in enumerate(types))))
    return found


@pytest.mark.parametrize("outer", applications(), ids=lambda node: f"{node.op.name}-{node.args[-1].dtype.value}")
def test_every_operator_in_every_operand_of_every_other(outer: Apply) -> None:
    assert_round_trip(program(outer))
    literals = {DType.I64: (integer(-2), integer(2)), DType.F32: (real(-2.0), real(2.0), real(-math.inf))}
    for position, operand in enumerate(outer.args):
        inner = [node for node in applications() if node.dtype is operand.dtype]
        foldable = outer.op in (Op.NEG, Op.TO_FLOAT) or facts(outer.op).text in ("<<", ">>")
        for value in (*inner, *(() if foldable else literals.get(operand.dtype, ()))):
            args = [*outer.args[:position], value, *outer.args[position + 1 :]]
            assert_round_trip(program(build.apply(outer.op, *args)))


@pytest.mark.parametrize(
    "value, text",
    [
        (real(1.0), "1.0"),
        (real(1e30), "1e+30"),
        (real(5e-324), "5e-324"),
        (real(-0.0), "-0.0"),
        (real(math.inf), "inf"),
        (real(-math.inf), "-inf"),
        (real(math.nan), "nan"),
        (real(-math.nan), "-nan"),
        (build.apply(Op.LT, Q, integer(-(2**63))), "q_idx < -9223372036854775808"),
        (build.apply(Op.POW, real(-2.0), real(2.0)), "(-2.0) ** 2.0"),
        (build.apply(Op.NEG, build.apply(Op.POW, real(2.0), SCORE)), "-2.0 ** score"),
        (build.apply(Op.POW, SCORE, real(-2.0)), "score ** -2.0"),
        (build.FALSE, "false"),
        (build.apply(Op.EQ, build.apply(Op.LT, Q, K), build.TRUE), "(q_idx < kv_idx) == true"),
    ],
)
def test_literals(value: Expr, text: str) -> None:
    assert print_expr(value) == text
    assert_round_trip(program(value))


def test_chains_are_flat_and_branches_readable() -> None:
    x, y, z = LEAVES[DType.F32]
    sums = build.apply(Op.SUB, build.apply(Op.SUB, x, y), build.apply(Op.ADD, y, z))
    assert print_expr(sums) == "x - y - (y + score)"
    p, r, s = LEAVES[DType.BOOL]
    branch = build.apply(Op.WHERE, p, x, build.apply(Op.WHERE, r, y, z))
    assert print_expr(branch) == "x if p else y if r else score"
    assert print_expr(build.apply(Op.MUL, branch, x)) == "(x if p else y if r else score) * x"
    logic = build.apply(Op.AND, build.apply(Op.AND, build.apply(Op.OR, p, r), build.apply(Op.NOT, s)), p)
    assert print_expr(logic) == "(p or r) and not s and p"


GPT_OSS = """\
attention gpt_oss(window: int = 128, sink: tensor[H], doc: int tensor[B, N], flag: bool tensor[8]) {
    let d0 = q_idx - kv_idx
    mask        0 <= d0 and d0 < window and (doc[b, q_idx] == doc[b, kv_idx] or flag[kv_idx])
    score       50.0 * tanh(score / 50.0)
    normalizer  softmax(sink = sink[h])
    weight      weight * exp(float(d0) * -0.1)
}
"""
OTHERS = (
    "attention plain() {}\n",
    "attention gate() {\n    normalizer  sigmoid(score)\n}\n",
    """\
attention plus_one() {
    let d0 = row_max(score)
    let d1 = exp(score - d0)
    normalizer  d1 / (exp(-d0) + row_sum(d1))
}
""",
    """\
attention scalars(d0: int = -3, x: float = inf, y: float = 2.0, one: tensor[]) {
    let d1 = q_idx % d0
    mask        d1 * d1 <= kv_idx
    score       score * x + y * one
}
""",
)


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.attn")), ids=lambda path: path.stem)
def test_examples_round_trip(path: Path) -> None:
    for variant in read(path):
        assert_round_trip(variant)


@pytest.mark.parametrize("text", [GPT_OSS, *OTHERS])
def test_printed_text_is_what_one_would_write(text: str) -> None:
    (variant,) = parse(text)
    assert print_variant(variant) == text


def test_a_wide_mask_takes_several_items() -> None:
    terms = [f"q_idx - {n} < kv_idx * {n}" for n in range(1, 9)]
    (variant,) = parse(f"attention a {{ mask {' and '.join(terms)} }}")
    lines = print_variant(variant).splitlines()
    assert [line.strip() for line in lines[1:-1]] == [f"mask        {term}" for term in terms]
    assert_round_trip(variant)


def test_shared_parts_print_once() -> None:
    value: Expr = SCORE
    for _ in range(150):
        value = build.apply(Op.TANH, build.apply(Op.MUL, value, value))
    variant = program(value)
    assert len(print_variant(variant)) < 150 * 60
    assert_round_trip(variant)
    assert print_expr(value).count("tanh") == 150


@pytest.mark.parametrize("op", [Op.EXP, Op.NEG, Op.POW, Op.WHERE, Op.MIN, Op.NOT, Op.OR, Op.SUB])
@pytest.mark.parametrize("last", [False, True])
def test_deep_programs_print_and_parse(op: Op, last: bool) -> None:
    leaves = LEAVES[next(iter(sorted(facts(op).operands, key=lambda dtype: dtype.value)))]
    args = [*LEAVES[DType.BOOL][:1], *leaves[:2]] if op is Op.WHERE else [*leaves[: facts(op).arity]]
    value = leaves[0]
    for _ in range(390):
        args[-1 if last else (1 if op is Op.WHERE else 0)] = value
        value = build.apply(op, *args)
    assert_round_trip(program(value))


def test_printing_does_not_use_the_stack() -> None:
    value: Expr = SCORE
    for _ in range(20_000):
        value = build.apply(Op.EXP, value)
    start = time.perf_counter()
    assert print_expr(value).count("exp") == 20_000
    assert time.perf_counter() - start < 10


CONSTANTS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(integer),
    st.floats().filter(lambda value: not math.isnan(value)).map(real),
    st.booleans().map(build.boolean),
)


def buildable(op: Op, args: tuple[Expr, ...]) -> bool:
    """Whether a front end would keep the operation: it folds signs and casts of literals, and refuses the rest."""
    literal = isinstance(args[-1], Const)
    if op in (Op.TO_BOOL, Op.TO_INT, Op.TO_FLOAT):
        return facts(op).text != args[0].dtype.word and not (literal and op is Op.TO_FLOAT)
    return not (literal and op in (Op.NEG, Op.SHL, Op.SHR, Op.DIV, Op.FLOORDIV, Op.MOD))


@st.composite
def expressions(draw: st.DrawFn) -> Expr:
    """Any graph of operators, with sharing, of any shape."""
    pool: list[Expr] = [*LEAVES[DType.BOOL], *LEAVES[DType.I64], *LEAVES[DType.F32], KV_LEN]
    pool += draw(st.lists(CONSTANTS, max_size=4))
    for _ in range(draw(st.integers(1, 25))):
        op = draw(st.sampled_from(Op))
        types = draw(st.sampled_from(types_of(op)))
        # The latest nodes first, so that programs grow deep and share.
        args = tuple(draw(st.sampled_from([node for node in pool[::-1] if node.dtype is dtype])) for dtype in types)
        if buildable(op, args):
            pool.append(build.apply(op, *args))
        if draw(st.integers(0, 5)) == 0:
            integers = [node for node in pool[::-1] if node.dtype.is_int]
            pool.append(build.load("t", (draw(st.sampled_from(integers)), integers[0]), DType.I64))
    return pool[-1]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(expressions())
def test_any_expression_round_trips(value: Expr) -> None:
    assert_round_trip(program(value))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(weights=True))
def test_any_program_round_trips(case: Case) -> None:
    assert_round_trip(case.variant)


@settings(max_examples=30, deadline=None)
@given(expressions())
def test_any_normalizer_round_trips(value: Expr) -> None:
    weight = build.apply(Op.DIV, SCORE, build.row(Reduction.SUM, as_float(value)))
    assert_round_trip(Variant("v", PARAMS, SCORE, build.TRUE, weight, WEIGHT))


def test_the_round_trip_notices_a_change() -> None:
    (variant,) = parse(GPT_OSS)
    (changed,) = parse(GPT_OSS.replace("-0.1", "-0.25"))
    (renamed,) = parse(GPT_OSS.replace("128", "129"))
    assert changed != variant != renamed
