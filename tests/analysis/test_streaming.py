"""Streaming forms carried out block by block, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from compare import assert_rows_close
from derivations import called, forward, kept, lse_of, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from normalizers import row
from strategies import Case, cases

from attndsl.analysis.rescaling import rescaling
from attndsl.analysis.streaming import Kind, Refusal, Statistic, Streaming, Term, stream
from attndsl.frontend import normalizers
from attndsl.frontend.builder import Builder
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_expr
from attndsl.ir.types import DType
from attndsl.ir.variant import Variant
from attndsl.reference import attend

PRECISE = 1e-10
RANDOM = cases(max_programs=4, max_length=17, tensor_offsets=True, scores=False, sinks=False, row=row)


def blocks(length: int, generator: torch.Generator) -> list[torch.Tensor]:
    """The keys in blocks of any size, in any order."""
    order = torch.randperm(length, generator=generator)
    sizes = []
    while sum(sizes) < length:
        sizes.append(min(int(torch.randint(1, 8, (), generator=generator)), length - sum(sizes)))
    return list(order.split(sizes))


def check(case: Case, seed: int) -> None:
    """Both ways to the output: summed as the statistics stream, and from weights when they are known."""
    streaming = stream(case.variant)
    assert not isinstance(streaming, Refusal)
    q, k, v = case.inputs(seed, torch.float64)
    expected = attend(
        case.variant, case.values, q, k, v, enable_gqa=case.kv_heads != case.q_heads, q_offset=case.q_offset
    )
    call = called(case, q, k, v, case.values)
    rows, streamed = forward(call, streaming, blocks(case.kv_len, torch.Generator().manual_seed(seed)))
    if streamed is not None:
        assert_rows_close(streamed, expected.out, PRECISE, "streamed")
    out = weights(call, streaming, kept(call, streaming, rows)) @ call.v
    assert_rows_close(out, expected.out, PRECISE, "from weights")
    assert (streaming.lse is None) == (expected.lse is None)
    if expected.lse is not None:
        assert_rows_close(lse_of(call, streaming, rows).squeeze(-1), expected.lse, PRECISE, "lse")


@settings(max_examples=120)
@given(RANDOM, st.integers(0, 99))
def test_random_normalizers_stream_to_what_the_reference_gives(case: Case, seed: int) -> None:
    check(case, seed)


PARAMS = "t: tensor[H], p: tensor[N], c: tensor[H], a: float"
M, M_NEW, L = build.row_value("m_i"), build.row_value("m_new"), build.row_value("l_i")


def variant(normalizer: str, weight: str = "weight", lets: str = "") -> Variant:
    """A variant from text."""
    text = f"attention t({PARAMS}) {{\n{lets}\nnormalizer {normalizer}\nweight {weight}\n}}"
    return parse(text)[0]


def streamed(normalizer: str, weight: str = "weight", lets: str = "") -> Streaming:
    found = stream(variant(normalizer, weight, lets))
    assert not isinstance(found, Refusal)
    return found


def apply(op: Op, *args: Expr) -> Expr:
    return build.apply(op, *args)


def softmax(sink: Expr | None = None) -> Variant:
    builder = Builder()
    return Variant("softmax", (), build.SCORE, build.TRUE, normalizers.softmax(builder, sink), build.WEIGHT)


@pytest.mark.parametrize("sink", [None, build.load("sink", (build.H,), DType.F32), build.real(0.5)])
def test_softmax_is_the_online_softmax_everybody_knows(sink: Expr | None) -> None:
    value = apply(Op.EXP, apply(Op.SUB, build.SCORE, M))
    rescale = apply(Op.EXP, apply(Op.SUB, M, M_NEW))
    whole = L if sink is None else apply(Op.ADD, apply(Op.EXP, apply(Op.SUB, sink, M)), L)
    found = stream(softmax(sink))
    assert isinstance(found, Streaming)
    statistics = (Statistic("m_i", Kind.MAX, build.SCORE), Statistic("l_i", Kind.SUM, value, rescale))
    expected = Streaming(
        passes=(statistics,),
        terms=(Term(apply(Op.DIV, build.real(1.0), whole), value, rescale),),
        weight=apply(Op.EXP, apply(Op.SUB, build.SCORE, build.row_value("lse"))),
        kept=("lse",),
        lse=apply(Op.ADD, M, apply(Op.LOG, whole)),
        sink=sink,
    )
    assert replace(found, notes=()) == expected


E = "let e = exp(score - row_max(score))"
FORMS = {
    # normalizer, weight mod, lets -> statistics by pass, number of accumulators, what is kept
    "sigmoid": ("sigmoid(score + c[h])", "weight", "", [[]], 1, ()),
    "taylor": ("x / row_sum(x)", "weight", "let x = 1.0 + score + score * score / 2.0", [["l_i"]], 1, ("l_i",)),
    "plus-one": ("e / (exp(-row_max(score)) + row_sum(e))", "weight", E, [["m_i", "l_i"]], 1, ("lse",)),
    "decay": ("e / row_sum(e)", "weight * exp(a * float(kv_idx - q_idx))", E, [["m_i", "l_i"]], 1, ("lse",)),
    "affine": ("e / row_sum(e)", "t[h] * weight + c[h]", E, [["m_i", "l_i"]], 2, ("lse",)),
    "threshold": ("e / row_sum(e)", "0.0 if weight < 0.1 else weight", E, [["m_i", "l_i"]], 0, ("lse",)),
    "square": ("e / row_sum(e)", "weight * weight", E, [["m_i", "l_i"]], 1, ("lse",)),
    "prior": ("p[kv_idx] * e / row_sum(p[kv_idx] * e)", "weight", E, [["m_i", "l_i"]], 1, ("m_i", "l_i")),
    "key-temperature": (
        "x / row_sum(x)",
        "weight",
        "let x = exp((score - row_max(score)) / p[kv_idx])",
        [["m_i"], ["l_i"]],
        0,
        ("m_i", "l_i"),
    ),
    "row-temperature": (
        "x / row_sum(x)",
        "weight",
        "let x = exp((score - row_max(score)) / t[h])",
        [["m_i", "l_i"]],
        1,
        ("m_i", "l_i"),
    ),
    "two-scales": ("(e + e * e) / row_sum(e)", "weight", E, [["m_i", "l_i"]], 2, ("m_i", "l_i")),
    "three-scales": ("(e + e * e + e * e * e) / row_sum(e)", "weight", E, [["m_i", "l_i"]], 0, ("m_i", "l_i")),
    "near-the-maximum": (
        "x / row_sum(x)",
        "weight",
        "let x = exp(score) if score > row_max(score) - 2.0 else 0.0",
        [["m_i"], ["l_i"]],
        0,
        ("m_i", "l_i"),
    ),
    "by-position": (
        "x / row_sum(x)",
        "weight",
        "let x = exp(score - row_max(score)) if kv_idx < 4 else 0.0",
        [["m_i", "l_i"]],
        1,
        ("m_i", "l_i"),
    ),
    "maximum-of-a-sum": (
        "score / (row_sum(score * score) + row_max(score / row_sum(abs(score))))",
        "weight",
        "",
        [["l_i", "l_i_1"], ["m_i"]],
        0,
        ("l_i", "l_i_1", "m_i"),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_passes_and_accumulators(name: str) -> None:
    normalizer, weight, lets, passes, terms, kept_ = FORMS[name]
    found = streamed(normalizer, weight, lets)
    assert [sorted(statistic.name for statistic in part) for part in found.passes] == [sorted(part) for part in passes]
    assert len(found.terms) == terms
    assert set(found.kept) == set(kept_)
    assert found.notes or not passes


def test_names_count_from_zero_and_maxima_come_first() -> None:
    found = streamed("e / row_sum(e) - f / row_sum(f)", lets=E + "\nlet f = exp(-score - row_max(-score))")
    assert [statistic.name for statistic in found.statistics] == ["m_i", "m_i_1", "l_i", "l_i_1"]
    assert [statistic.grown.name for statistic in found.statistics[:2]] == ["m_new", "m_new_1"]
    assert [print_expr(term.rescale) for term in found.terms] == ["exp(m_i - m_new)", "exp(m_i_1 - m_new_1)"]


KEY, ROW = build.load("p", (build.K,), DType.F32), build.load("t", (build.H,), DType.F32)
RATIOS: dict[str, tuple[Callable[[Expr], Expr], str | None]] = {
    "exp(s - m)": (lambda d: apply(Op.EXP, d), "exp(m_i - m_new)"),
    "exp2(s - m)": (lambda d: apply(Op.EXP2, d), "exp((m_i - m_new) * 0.6931471805599453)"),
    "p[kv] exp(s - m)": (lambda d: apply(Op.MUL, KEY, apply(Op.EXP, d)), "exp(m_i - m_new)"),
    "exp((s - m) / tau[kv])": (lambda d: apply(Op.EXP, apply(Op.DIV, d, KEY)), None),
    "exp((s - m) * tau[kv])": (lambda d: apply(Op.EXP, apply(Op.MUL, KEY, d)), None),
    "exp((s - m) ** 2)": (lambda d: apply(Op.EXP, apply(Op.MUL, d, d)), None),
    "exp((s - m) / 2)": (lambda d: apply(Op.EXP, apply(Op.DIV, d, build.real(2.0))), "exp((m_i - m_new) / 2.0)"),
    "exp((s - m) / -2)": (
        lambda d: apply(Op.EXP, apply(Op.DIV, d, build.real(-2.0))),
        "0.0 if m_i == -inf else exp((m_i - m_new) / -2.0)",
    ),
    "exp((s - m) / t[h])": (
        lambda d: apply(Op.EXP, apply(Op.DIV, d, ROW)),
        "0.0 if m_i == -inf else exp((m_i - m_new) / t[h])",
    ),
    "s - m": (lambda d: d, None),
    "max(s - m, -3)": (lambda d: apply(Op.MAX, d, build.real(-3.0)), None),
    "sigmoid(s - m)": (lambda d: apply(Op.SIGMOID, d), None),
    "exp(s - m) + 1": (lambda d: apply(Op.ADD, apply(Op.EXP, d), build.real(1.0)), None),
    "exp(s - m) / exp(-m)": (lambda d: apply(Op.DIV, apply(Op.EXP, d), apply(Op.EXP, apply(Op.NEG, M))), "1.0"),
    "exp(s - m) + exp(-m)": (
        lambda d: apply(Op.ADD, apply(Op.EXP, d), apply(Op.EXP, apply(Op.NEG, M))),
        "exp(m_i - m_new)",
    ),
    "where(near, exp(s - m), 0)": (
        lambda d: apply(Op.WHERE, apply(Op.LT, build.K, build.Q), apply(Op.EXP, d), build.real(0.0)),
        "exp(m_i - m_new)",
    ),
    "where(near, exp(s - m), 1)": (
        lambda d: apply(Op.WHERE, apply(Op.LT, build.K, build.Q), apply(Op.EXP, d), build.real(1.0)),
        None,
    ),
    "where(s > m - 1, exp(s - m), 0)": (
        lambda d: apply(Op.WHERE, apply(Op.GT, d, build.real(-1.0)), apply(Op.EXP, d), build.real(0.0)),
        None,
    ),
    "sqrt(exp(s - m))": (lambda d: apply(Op.SQRT, apply(Op.EXP, d)), "exp((m_i - m_new) * 0.5)"),
    "max(exp(s - m), 0)": (lambda d: apply(Op.MAX, apply(Op.EXP, d), build.real(0.0)), "exp(m_i - m_new)"),
    "exp(s) (free of m)": (lambda d: apply(Op.EXP, build.SCORE), "1.0"),
}


@pytest.mark.parametrize("name", RATIOS)
def test_the_ratio_test(name: str) -> None:
    form, expected = RATIOS[name]
    factor = rescaling(form(apply(Op.SUB, build.SCORE, M)), {M: M_NEW})
    assert (None if factor is None else print_expr(factor)) == expected


def test_a_factor_that_two_summands_share_in_different_writing_is_seen() -> None:
    difference = apply(Op.SUB, build.SCORE, M)
    twice = apply(Op.EXP, apply(Op.ADD, difference, difference))
    squared = apply(Op.MUL, apply(Op.EXP, difference), apply(Op.EXP, apply(Op.MUL, difference, build.real(1.0))))
    assert rescaling(apply(Op.ADD, twice, squared), {M: M_NEW}) is not None


def test_sinks_join_the_maximum() -> None:
    divisor = "exp(c[h] - m) + row_sum(exp(score * a - m)) + exp(-m)"
    found = streamed(f"exp(score * a - m) / ({divisor})", lets="let m = row_max(score * a)")
    assert found.sink is not None
    assert print_expr(found.sink) == "max(c[h], 0.0)"
    assert streamed("exp(score) / (exp(c[h]) + row_sum(exp(score)))").sink is None


def test_sums_of_sums_are_refused_with_their_places() -> None:
    found = stream(variant("(score - row_sum(score) / 9.0) / row_sum(abs(score - row_sum(score) / 9.0))"))
    assert isinstance(found, Refusal)
    (reason,) = found.reasons
    assert reason.code == "normalizer-needs-more-passes"
    assert "row_sum(abs(score - row_sum(score) / 9.0))" in reason.message
    assert reason.span is not None
    assert any("it reads `row_sum(score)` (" in note for note in reason.notes)
    assert reason.help is not None


def test_maxima_of_maxima_and_then_sums_are_refused() -> None:
    text = "let m = row_max(score * 2.0 - row_max(score))"
    found = stream(variant("exp(score - m) / row_sum(sigmoid(score - m))", lets=text))
    assert isinstance(found, Refusal)
    assert [reason.code for reason in found.reasons] == ["normalizer-needs-more-passes"]


@pytest.mark.parametrize("normalizer", ["exp(score) / row_sum(exp(score))", "exp(score) / (1.0 + row_sum(exp(score)))"])
def test_without_a_shift_lse_is_the_log_of_the_divisor(normalizer: str) -> None:
    found = streamed(normalizer)
    assert found.lse is not None
    assert print_expr(found.lse).startswith("log(")


def test_an_unshifted_exponential_says_that_it_overflows() -> None:
    assert any("overflow" in note for note in streamed("exp(score) / row_sum(exp(score))").notes)


def test_only_divisors_that_may_be_zero_are_guarded() -> None:
    assert "== 0.0" not in print_expr(streamed("e / row_sum(e)", lets=E).terms[0].factor)
    guarded = streamed("e / row_sum(p[kv_idx] * e)", lets=E)
    assert print_expr(guarded.terms[0].factor) == "0.0 if l_i == 0.0 else 1.0 / l_i"


def test_notes_are_lines() -> None:
    for normalizer, weight, lets, *_ in FORMS.values():
        assert not any("\n" in note for note in streamed(normalizer, weight, lets).notes)
