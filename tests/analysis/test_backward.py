"""Derivatives of normalizers and weight mods, from what the forward keeps, against autograd of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from compare import assert_rows_close
from derivations import at, called, captured, forward, gradients, kept
from hypothesis import given, settings
from hypothesis import strategies as st
from normalizers import row
from strategies import Case, cases

from attndsl.analysis.backward import Backward, differentiate
from attndsl.analysis.streaming import Kind, Refusal, stream
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_expr
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import TensorParam, Variant
from attndsl.reference import attend

PRECISE = 1e-9
RANDOM = cases(max_programs=4, max_length=17, tensor_offsets=True, scores=False, sinks=False, row=row)


def is_float_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def check(case: Case, seed: int) -> None:
    """All gradients of a case, where its derivation does not refuse."""
    streaming = stream(case.variant)
    assert not isinstance(streaming, Refusal)
    backward = differentiate(case.variant, streaming)
    if isinstance(backward, Refusal):
        assert {reason.code for reason in backward.reasons} == {"maximum-not-invariant"}
        return
    generator = torch.Generator().manual_seed(seed)
    inputs = case.inputs(seed, torch.float64, requires_grad=True)
    tensors = {name: value.double().requires_grad_() for name, value in case.values.items() if is_float_tensor(value)}
    values = {**case.values, **tensors}
    result = attend(case.variant, values, *inputs, enable_gqa=case.kv_heads != case.q_heads, q_offset=case.q_offset)
    d_out = torch.randn(result.out.shape, generator=generator, dtype=torch.float64)
    d_lse = torch.randn(result.out.shape[:-1], generator=generator, dtype=torch.float64)
    outputs, seeds = [result.out], [d_out]
    if result.lse is not None and result.lse.requires_grad:
        outputs, seeds = [*outputs, result.lse], [*seeds, d_lse]
    theirs = torch.autograd.grad(outputs, [*inputs, *tensors.values()], seeds, allow_unused=True)

    call = called(
        case, *inputs, {name: getattr(value, "detach", lambda v=value: v)() for name, value in values.items()}
    )
    rows = kept(call, streaming, forward(call, streaming, [torch.arange(case.kv_len)])[0])
    d_scores, by_pair, by_row = gradients(call, backward, rows, d_out, d_lse if result.lse is not None else 0 * d_lse)
    scale, ratio = call.q.shape[-1] ** -0.5, case.q_heads // case.kv_heads
    d_k = (d_scores.transpose(-1, -2) @ call.q * scale).unflatten(1, (case.kv_heads, ratio)).sum(2)
    found = [d_scores @ call.k * scale, d_k, None, *captured(call, [*by_pair, *by_row], tensors).values()]
    for name, ours, expected in zip(("q", "k", "v", *tensors), found, theirs, strict=True):
        if ours is not None:
            expected = torch.zeros_like(ours) if expected is None else expected
            assert_rows_close(ours.reshape(1, -1), expected.reshape(1, -1), PRECISE, f"gradient of {name}")


@settings(max_examples=120)
@given(RANDOM, st.integers(0, 99))
def test_gradients_of_random_normalizers_are_those_of_the_reference(case: Case, seed: int) -> None:
    check(case, seed)


PARAMS = "t: tensor[H], p: tensor[N], c: tensor[H], g: tensor[], x: int tensor[H], a: float"
E = "let e = exp(score - row_max(score))"


def variant(normalizer: str, weight: str = "weight", lets: str = E, mask: str = "true") -> Variant:
    """A variant from text."""
    text = f"attention t({PARAMS}) {{\n{lets}\nmask {mask}\nnormalizer {normalizer}\nweight {weight}\n}}"
    return parse(text)[0]


def derived(normalizer: str, weight: str = "weight", lets: str = E) -> Backward:
    program = variant(normalizer, weight, lets)
    streaming = stream(program)
    assert not isinstance(streaming, Refusal)
    found = differentiate(program, streaming)
    assert not isinstance(found, Refusal)
    return found


def case_of(program: Variant, kv_len: int = 9, **values: torch.Tensor | float) -> Case:
    """A small call of a variant from text, its tensors of moderate size."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"t": (2,), "p": (kv_len,), "c": (2,), "g": ()}
    found = {name: torch.rand(size, generator=generator) + 0.5 for name, size in sizes.items()}
    return Case(program, {**found, "x": torch.tensor([1, 2]), "a": 0.25, **values}, 2, 2, 1, 7, kv_len, 4, 3, 0)


S, LSE, NET = build.SCORE, build.row_value("lse"), build.row_value("net")


def test_softmax_goes_back_as_everybody_knows() -> None:
    found = derived("softmax(sink = c[h])")
    weight = build.apply(Op.EXP, build.apply(Op.SUB, S, LSE))
    assert found.dscore is build.apply(Op.MUL, weight, build.apply(Op.SUB, build.DWEIGHT, NET))
    assert [(row.name, print_expr(row.value)) for row in found.rows] == [("net", "delta - dlse")]
    assert (found.sums, found.dloads, found.kept) == ((), (), ("lse", "net"))
    ((load, value),) = found.drows
    assert (load.tensor, print_expr(value)) == ("c", "0.0 if lse == -inf else -(net * exp(c[h] - lse))")


FORMS: dict[str, tuple[str, str, str, int, set[str], set[str]]] = {
    # normalizer, weight mod, lets -> further sums, captures by pair, captures by row
    "sigmoid": ("sigmoid(score + c[h])", "weight", E, 0, {"c"}, set()),
    "taylor": ("y / row_sum(y)", "weight", "let y = 1.0 + score + score * score / 2.0", 0, set(), set()),
    "prior": ("p[kv_idx] * e / row_sum(p[kv_idx] * e)", "weight", E, 0, {"p"}, set()),
    "sinks": (
        "e / (exp(c[h] - row_max(score)) + row_sum(e) + exp(g - row_max(score)))",
        "weight",
        E,
        0,
        set(),
        {"c", "g"},
    ),
    "temperature": (
        "y / row_sum(y)",
        "weight",
        "let y = exp(score * t[h] - row_max(score * t[h]))",
        0,
        {"t"},
        set(),
    ),
    "divided": ("y / row_sum(y)", "weight", "let y = exp((score - row_max(score)) / t[h])", 0, {"t"}, set()),
    "in-the-divisor": ("e / (row_sum(e) + t[h] * exp(-row_max(score)))", "weight", E, 0, set(), {"t"}),
    "factor": ("e / row_sum(e)", "weight * t[h]", E, 0, {"t"}, set()),
    "decay": ("e / row_sum(e)", "weight * exp(g * float(kv_idx - q_idx))", E, 0, {"g"}, set()),
    "affine": ("e / row_sum(e)", "t[h] * weight + c[h]", E, 1, {"c"}, {"t"}),
    "threshold": ("e / row_sum(e)", "0.0 if weight < 0.1 else weight", E, 0, set(), set()),
    "square": ("e / row_sum(e)", "weight * weight", E, 0, set(), set()),
    "root-of-squares": ("e / sqrt(row_sum(e * e))", "weight", E, 0, set(), set()),
    "signed": (
        "e / row_sum(e) - t[h] * f / row_sum(f)",
        "weight",
        E + "\nlet f = exp(-score - row_max(-score))",
        2,
        set(),
        {"t"},
    ),
    "two-sums": ("e * row_sum(sigmoid(score)) / row_sum(e)", "weight", E, 1, set(), set()),
    "integer-capture": ("sigmoid(score) * float(x[h])", "weight", E, 0, set(), set()),
    "constant": ("sigmoid(0.5)", "weight", E, 0, set(), set()),
}


@pytest.mark.parametrize("name", FORMS)
def test_sums_and_captures(name: str) -> None:
    normalizer, weight, lets, sums, by_pair, by_row = FORMS[name]
    found = derived(normalizer, weight, lets)
    assert len(found.sums) == sums
    assert {load.tensor for load, _ in found.dloads} == by_pair
    assert {load.tensor for load, _ in found.drows} == by_row
    assert any("one more pass" in note for note in found.notes) == (sums > 0)
    check(case_of(variant(normalizer, weight, lets, "kv_idx <= q_idx and q_idx != 4")), 1)


def test_a_weight_that_vanishes_does_not_hide_the_gradient_of_its_factor() -> None:
    check(case_of(variant("e / row_sum(e)", "weight * t[h]"), t=torch.zeros(2)), 1)
    check(case_of(variant("e / row_sum(e)", "t[h] * weight + c[h]"), t=torch.zeros(2)), 1)


@pytest.mark.parametrize("sink", [torch.tensor([-math.inf, 0.5]), torch.tensor([30.0, -30.0])])
def test_sinks_receive_what_flows_into_lse_on_dead_rows_too(sink: torch.Tensor) -> None:
    check(case_of(variant("softmax(sink = c[h])", mask="kv_idx < 4 and q_idx > 2"), c=sink), 1)


DIVISORS = (
    "max(score, 0.0)",
    "max(p[kv_idx], 0.0) * e",
    "max(p[kv_idx], 0.0) * max(score, 0.0)",
    "where(score > 9.0, e, 0.0)",
)


@pytest.mark.parametrize("value", DIVISORS)
@pytest.mark.parametrize("weight", ["weight", "weight + t[h]", "where(weight < 0.2, weight, 0.0)"])
def test_rows_whose_divisor_is_zero_have_gradients_of_zero(value: str, weight: str) -> None:
    program = variant("y / row_sum(y)", weight, E + f"\nlet y = {value}")
    check(case_of(program, p=-torch.ones(9)), 1)
    check(case_of(program, p=torch.linspace(-1.0, 1.0, 9)), 1)


POISON = {
    "where(score > 0.0, log(score), 1.0)",
    "where(score > 0.0, 1.0 / score, 1.0)",
    "where(score > 0.0, sqrt(score), 1.0)",
    "where(score > 9.0, exp(9000.0 * abs(score)) * score, 1.0)",
}


@pytest.mark.parametrize("value", sorted(POISON))
def test_branches_not_taken_are_not_met(value: str) -> None:
    tame = (
        f"let y = where(score > 0.0, {value}, 1.0)"
        if "exp" not in value
        else f"let y = where(score > 9.0, {value}, 1.0)"
    )
    check(case_of(variant("y / (row_sum(y * y) + 1.0)", lets=tame)), 1)
    check(case_of(variant("e / row_sum(e)", "where(kv_idx < 3, weight * log(float(3 - kv_idx)), weight)")), 1)


VARYING = {
    "exp(score - row_max(score))": "e",
    "e / row_sum(exp(score))": "e / row_sum(exp(score))",
    "e / (1.0 + row_sum(e))": "e / (1.0 + row_sum(e)) * t[h] * e",
    "e / (exp(-2.0 * row_max(score)) + row_sum(e * e))": "e / (exp(-2.0 * row_max(score)) + row_sum(e * e))",
    "temperature by key": "y / row_sum(y)",
}


@pytest.mark.parametrize("name", VARYING)
def test_weights_that_depend_on_a_maximum_are_refused(name: str) -> None:
    program = variant(VARYING[name], lets=E + "\nlet y = exp((score - row_max(score)) / p[kv_idx])")
    streaming = stream(program)
    assert not isinstance(streaming, Refusal)
    found = differentiate(program, streaming)
    assert isinstance(found, Refusal)
    (reason,) = found.reasons
    assert reason.code == "maximum-not-invariant"
    assert "row_max(score)" in reason.message
    assert reason.span is not None
    assert reason.help is not None


INVARIANT = (
    "e / sqrt(row_sum(e * e))",
    "e / row_sum(e ** 3.0) ** 0.3333333333333333",
    "e ** t[h] / row_sum(e) ** t[h]",
    "y / (exp(-row_max(score) / t[h]) + row_sum(y))",
    "e * row_sum(e) / (row_sum(e * e) + exp(-2.0 * row_max(score)))",
    "e / (row_sum(e) + sqrt(row_sum(e * e)))",
    "where(score > row_max(score) - 1.0, e, 0.0) / row_sum(where(score > row_max(score) - 1.0, e, 0.0))",
    "exp(score) / exp(row_max(score)) / row_sum(e)",
)


@pytest.mark.parametrize("normalizer", INVARIANT)
def test_weights_that_only_seem_to_depend_on_a_maximum_are_differentiated(normalizer: str) -> None:
    lets = E + "\nlet y = exp((score - row_max(score)) / t[h])"
    assert any("constant" in note for note in derived(normalizer, lets=lets).notes)
    check(case_of(variant(normalizer, lets=lets)), 1)


def test_float_captures_of_every_index_are_found_and_integers_are_not() -> None:
    found = derived("p[kv_idx] * sigmoid(score + p[q_idx] + c[h] * float(x[h]))")
    assert [print_expr(load) for load, _ in found.dloads] == ["p[kv_idx]", "p[q_idx]", "c[h]"]


LIBRARY = ("relu", "relu2", "taylor", "unnormalised", "sparsemax", "entmax15", "topk(3)", "prior(p[kv_idx])")
LIBRARY += tuple(f"{name}(c[h])" for name in ("softmax", "sigmoid", "temperature", "temperature_log_n", "signed"))


@pytest.mark.parametrize("normalizer", [*LIBRARY, "softmax_plus_one"])
@pytest.mark.parametrize("weight", ["weight", "t[h] * weight + g", "where(weight < 0.2, 0.0, weight)"])
def test_the_library_under_weight_mods(normalizer: str, weight: str) -> None:
    check(case_of(variant(normalizer, weight, mask="kv_idx <= q_idx + 2 and q_idx != 3")), 1)


# Row solves, against closed forms by sorting.


DEAD = -1e9
"""A score below every other; it has gradients that are numbers."""


def simplex(scores: torch.Tensor) -> torch.Tensor:
    """Sparsemax of rows."""
    ordered = scores.sort(-1, descending=True).values
    counts = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype)
    sums = ordered.cumsum(-1)
    support = (1 + counts * ordered > sums).sum(-1, keepdim=True)
    return (scores - (sums.gather(-1, support - 1) - 1) / support).clamp(min=0.0)


def apply(op: Op, *args: Expr | float) -> Expr:
    return build.apply(op, *(build.real(arg) if isinstance(arg, float) else arg for arg in args))


def rectified(value: Expr) -> Expr:
    return apply(Op.MAX, value, 0.0)


def sparse(total: Expr, shift: Expr | None = None) -> tuple[Expr, Expr]:
    """The weights max(s - shift - t, 0) that sum to a total, and their threshold."""
    score = S if shift is None else apply(Op.SUB, S, shift)
    top = build.row(Reduction.MAX, score)
    body = rectified(apply(Op.SUB, score, build.THRESHOLD))
    lower = apply(Op.SUB, apply(Op.SUB, top, total), 1.0)
    threshold = build.solve(body, total, lower, top)
    return rectified(apply(Op.SUB, score, threshold)), threshold


C = build.load("c", (build.H,), DType.F32)
ONE = build.real(1.0)


def scaled(scores: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Weights that sum to c: sparsemax of s / c, times c."""
    return simplex(scores / c[:, None, None]) * c[:, None, None]


SOLVED: dict[str, tuple[Callable[[], Expr], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "sparsemax": (lambda: sparse(ONE)[0], lambda s, c: simplex(s)),
    "sparsemax of shifted scores": (
        lambda: sparse(ONE, build.row(Reduction.MAX, S))[0],
        lambda s, c: simplex(s),
    ),
    "a captured total": (lambda: sparse(C)[0], scaled),
    "a sum after a root": (
        lambda: apply(
            Op.DIV,
            apply(Op.MUL, sparse(ONE)[0], sparse(ONE)[0]),
            build.row(Reduction.SUM, apply(Op.MUL, sparse(ONE)[0], sparse(ONE)[0])),
        ),
        lambda s, c: simplex(s) ** 2 / (simplex(s) ** 2).sum(-1, keepdim=True),
    ),
    "a root for a sum": (
        lambda: sparse(apply(Op.ADD, 0.5, build.row(Reduction.SUM, apply(Op.SIGMOID, S))))[0],
        lambda s, c: _with_total(s, 0.5 + torch.sigmoid(s).sum(-1, keepdim=True)),
    ),
    "a root and its factor": (
        lambda: apply(Op.MUL, C, sparse(ONE)[0]),
        lambda s, c: c[:, None, None] * simplex(s),
    ),
}


def _with_total(scores: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    return simplex(scores / total) * total


@pytest.mark.parametrize("name", SOLVED)
def test_row_solves(name: str) -> None:
    normalizer, by_hand = SOLVED[name]
    params = (TensorParam("c", DType.F32, ("H",)),)
    mask = parse("attention t { mask kv_idx <= q_idx + 2 and q_idx != 3 normalizer softmax() }")[0].mask
    program = Variant("solved", params, S, mask, normalizer(), build.WEIGHT)
    streaming = stream(program)
    assert not isinstance(streaming, Refusal)
    assert Kind.SOLVE in {statistic.kind for statistic in streaming.statistics}
    assert streaming.terms == ()
    backward = differentiate(program, streaming)
    assert isinstance(backward, Backward)

    c = torch.tensor([0.7, 1.3], dtype=torch.float64)
    case = case_of(program, c=c)
    call = called(case, *case.inputs(5, torch.float64), {"c": c})
    scores, sizes = call.scores.clone().requires_grad_(), c.clone().requires_grad_()
    live_rows = call.live.any(-1, keepdim=True)
    weight = by_hand(torch.where(call.live, scores, DEAD), sizes)
    weight = torch.where(call.live & live_rows, weight, 0.0)
    d_out = torch.randn(weight.shape[:-1] + call.v.shape[-1:], dtype=torch.float64)

    rows, _ = forward(call, streaming, [torch.arange(case.kv_len)])
    rows = kept(call, streaming, rows)
    assert_rows_close(torch.where(call.live, at(call, streaming.weight, rows), 0.0), weight, 1e-9)
    no_lse = torch.zeros(d_out.shape[:-1], dtype=torch.float64)
    d_scores, by_pair, by_row = gradients(call, backward, rows, d_out, no_lse)
    d_scores_, d_sizes = torch.autograd.grad(weight @ call.v, [scores, sizes], d_out, allow_unused=True)
    assert_rows_close(d_scores, torch.where(call.live, d_scores_, 0.0), PRECISE)
    if d_sizes is not None:
        found = captured(call, [*by_pair, *by_row], {"c": sizes})["c"]
        assert_rows_close(found[None], d_sizes[None], PRECISE)
