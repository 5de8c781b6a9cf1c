"""Random normalizers and weight mods, thresholds of rows among them, from one form to the next."""

from __future__ import annotations

import torch
from compare import assert_rows_close
from expressions import Scope
from hypothesis import given, settings
from hypothesis import strategies as st
from normalizers import by_key, by_row, over_its_sum, positive, row
from strategies import Case, cases

from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.nodes import Expr
from attndsl.ir.printer import print_variant
from attndsl.ir.types import Reduction
from attndsl.ir.verify import verify
from attndsl.passes.pipeline import run_passes
from attndsl.reference import attend

T = build.THRESHOLD


def solved(scope: Scope) -> Expr:
    """A threshold of a body that falls with it, and weights made of it."""
    score = scope.op("+", build.SCORE, by_key(scope)) if scope.between(0, 1) else build.SCORE
    top = scope.builder.row(Reduction.MAX, score)
    gap = scope.call("max", scope.op("-", score, T), 0.0)
    body = scope.pick(
        (
            lambda: gap,
            lambda: scope.op("*", gap, gap),
            lambda: scope.call("exp", scope.op("-", score, T)),
            lambda: scope.op("*", positive(scope, by_key(scope)), gap),
            lambda: scope.call("where", scope.op(">", score, T), 1.0, 0.0),
        )
    )()
    total = scope.op("+", scope.call("abs", by_row(scope)), 0.5)
    lower, upper = scope.op("-", top, 10.0), scope.op("+", top, scope.pick((0.0, 10.0)))
    tau = scope.builder.solve(body, total, lower, upper)
    above = scope.call("max", scope.op("-", score, tau), 0.0)
    return scope.pick((lambda: above, lambda: over_its_sum(scope, scope.op("+", above, 0.125)), lambda: above))()


def any_row(scope: Scope) -> tuple[Expr, Expr]:
    normalizer, weight = row(scope)
    return (solved(scope) if scope.between(0, 1) else normalizer), weight


RANDOM = cases(max_programs=4, max_length=17, tensor_offsets=True, row=any_row)


@settings(max_examples=60)
@given(RANDOM)
def test_printed_programs_parse_back(case: Case) -> None:
    verify(case.variant, "the test")
    text = print_variant(case.variant)
    (parsed,) = parse(text)
    assert parsed == case.variant, text
    assert fingerprint(parsed) == fingerprint(case.variant)


@settings(max_examples=40)
@given(RANDOM, st.integers(0, 2**16))
def test_passes_keep_the_reference(case: Case, seed: int) -> None:
    inputs = case.inputs(seed, torch.float64)
    after = run_passes(case.variant)
    verify(after, "the passes")
    found, expected = (
        attend(variant, case.values, *inputs, enable_gqa=case.kv_heads != case.q_heads, q_offset=case.q_offset)
        for variant in (after, case.variant)
    )
    assert_rows_close(found.out, expected.out, 1e-12)
