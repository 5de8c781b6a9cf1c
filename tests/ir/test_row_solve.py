"""Row solves: what binds, what prints, what is told apart, what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import attndsl as ad
from attndsl.diagnostics import VerifyError
from attndsl.frontend.builder import Builder
from attndsl.frontend.normalizers import softmax
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.binding import open_nodes, varies_along_keys
from attndsl.ir.build import SCORE, THRESHOLD, WEIGHT, K, real
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.nodes import Expr, Solve, postorder
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_expr, print_variant
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import ScalarParam, TensorParam, Variant
from attndsl.ir.verify import verify

TOP = build.row(Reduction.MAX, SCORE)
ZERO, ONE = real(0.0), real(1.0)
GAP = build.apply(Op.SUB, SCORE, THRESHOLD)
PARAMS = (ScalarParam("t", DType.F32), TensorParam("u", DType.F32, ("H",)), ScalarParam("d0", DType.F32))


def binary(op: Op, left: Expr, right: Expr) -> Expr:
    return build.apply(op, left, right)


def solve(body: Expr, total: Expr = ONE, lower: Expr = ZERO, upper: Expr = TOP) -> Expr:
    return build.solve(body, total, lower, upper)


def program(normalizer: Expr, weight: Expr = WEIGHT) -> Variant:
    return Variant("v", PARAMS, SCORE, build.TRUE, normalizer, weight)


def test_what_a_solve_binds_is_not_free_in_it() -> None:
    root = solve(GAP)
    assert open_nodes(root) == {GAP, THRESHOLD}
    assert root not in open_nodes(binary(Op.SUB, SCORE, root))
    loose = build.solve(GAP, THRESHOLD, real(0.0), TOP)
    assert loose in open_nodes(loose)


def test_what_is_one_value_to_a_row() -> None:
    assert not varies_along_keys(binary(Op.ADD, solve(GAP), TOP))
    assert not varies_along_keys(build.apply(Op.TO_FLOAT, build.Q))
    assert not varies_along_keys(build.row_value("m_i"))
    assert varies_along_keys(binary(Op.ADD, SCORE, TOP))
    assert varies_along_keys(build.apply(Op.TO_FLOAT, K))
    assert varies_along_keys(WEIGHT)


def test_a_printed_solve() -> None:
    text = "row_solve(t: score - t, total = 1.0, lower = 0.0, upper = row_max(score))"
    assert print_expr(solve(GAP)) == text


def test_shared_parts_of_a_body_are_functions_of_its_threshold() -> None:
    shared = build.apply(Op.EXP, GAP)
    printed = print_variant(program(solve(binary(Op.ADD, shared, binary(Op.MUL, shared, shared)))))
    # `t`, `u` and `d0` are parameters.
    assert "def d1(t0) = exp(score - t0)" in printed
    assert "row_solve(t0: d1(t0) + d1(t0) * d1(t0), total = 1.0, lower = 0.0, upper = row_max(score))" in printed


def test_a_solve_that_another_one_reads_is_named_before() -> None:
    inner = solve(GAP)
    printed = print_expr(solve(binary(Op.MUL, GAP, inner)))
    lets = ["def d0(t) = score - t", "let d1 = row_max(score)"]
    ends = "total = 1.0, lower = 0.0, upper = d1)"
    assert printed.splitlines() == [
        *lets,
        f"let d2 = row_solve(t: d0(t), {ends}",
        f"row_solve(t: d0(t) * d2, {ends}",
    ]


def expressions() -> st.SearchStrategy[Expr]:
    """Bodies over the threshold, with parts that are shared, deep, or solved themselves."""
    leaves = st.sampled_from(
        [THRESHOLD, SCORE, TOP, GAP, real(2.0), build.scalar("t", DType.F32), build.load("u", (build.H,), DType.F32)]
    )

    def grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        pairs = st.tuples(st.sampled_from([Op.ADD, Op.SUB, Op.MUL, Op.MAX]), inner, inner)
        single = inner.map(lambda operand: build.apply(Op.EXP, operand))
        twice = inner.map(lambda operand: binary(Op.MUL, operand, operand))
        solved = inner.map(lambda body: solve(binary(Op.MAX, body, GAP)))
        return st.one_of(pairs.map(lambda drawn: binary(*drawn)), single, twice, solved)

    return st.recursive(leaves, grown, max_leaves=12)


@given(expressions())
def test_printed_solves_parse_back(body: Expr) -> None:
    root = solve(binary(Op.MAX, body, GAP))
    variant = program(binary(Op.SUB, SCORE, root))
    verify(variant, "the test")
    text = print_variant(variant)
    assert parse(text) == (variant,), text


def test_a_deep_body_parses_back() -> None:
    body: Expr = GAP
    for _ in range(100):
        body = build.apply(Op.EXP, body)
    variant = program(solve(body))
    assert parse(print_variant(variant)) == (variant,)


def test_the_name_a_body_gives_does_not_matter() -> None:
    text = "attention a {{ normalizer row_solve({0}: score - {0}, total = 1.0, lower = 0.0, upper = 1.0) }}"
    (one,), (other,) = (parse(text.format(name)) for name in ("t", "tau"))
    assert fingerprint(one) == fingerprint(other)


def test_every_part_of_a_solve_is_in_the_fingerprint() -> None:
    two = real(2.0)
    variants = [solve(GAP), solve(binary(Op.MUL, GAP, GAP)), solve(GAP, two), solve(GAP, lower=two)]
    variants += [solve(GAP, upper=two), build.row(Reduction.SUM, SCORE)]
    assert len({fingerprint(program(root)) for root in variants}) == len(variants)


BROKEN = {
    "the total of row_solve is not one value to a row": program(solve(GAP, SCORE)),
    "the lower of row_solve is not one value to a row": program(solve(GAP, lower=build.apply(Op.TO_FLOAT, K))),
    "the upper of row_solve is not one value to a row": program(solve(GAP, upper=SCORE)),
    "the body of row_solve does not read its threshold": program(solve(SCORE)),
    "the normalizer reads a threshold outside of a row_solve": program(GAP),
    "row_sum of a threshold": program(solve(binary(Op.MUL, GAP, build.row(Reduction.SUM, GAP)))),
    "the weight contains row_solve": program(softmax(Builder()), solve(GAP)),
    "the weight reads a threshold outside of a row_solve": program(softmax(Builder()), THRESHOLD),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_rules(message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(BROKEN[message], "the test")


def test_floats_only() -> None:
    with pytest.raises(VerifyError, match="a row is solved with floats"):
        build.solve(GAP, build.integer(1), real(0.0), TOP)


def test_both_front_ends_write_the_same_solve() -> None:

    @ad.normalizer
    def threshold(score, h, *, p):
        top = ad.row_max(score)
        return ad.maximum(
            score - ad.row_solve(lambda t: ad.exp(p[h]) * ad.maximum(score - t, 0), total=1, lower=top - 1, upper=top),
            0.0,
        )

    traced = ad.attention(normalizer=threshold(p=torch.ones(2))).variant
    (read,) = parse("""
attention a(q: tensor[H]) {
    let top = row_max(score)
    def body(t) = exp(q[h]) * max(score - t, 0)
    normalizer  max(score - row_solve(t: body(t), upper = top, lower = top - 1, total = 1), 0.0)
}
""")
    assert fingerprint(traced) == fingerprint(read)
    assert any(isinstance(node, Solve) for node in postorder(traced.normalizer))
