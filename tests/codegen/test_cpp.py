"""C++ kernels: their text, and streaming forms of every kind run against the same mathematics in torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from compare import assert_rows_close
from launches import inputs, variant
from torch import Tensor

import attndsl as ad
from attndsl.analysis.streaming import LSE, Kind, Statistic, Streaming, Term
from attndsl.codegen import cpp
from attndsl.codegen.cpp_tiles import BLOCK
from attndsl.codegen.plan import Emitted, KernelPlan, Specialisation, Target
from attndsl.compiler import Compilation
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.variant import Variant
from attndsl.loading import parse
from attndsl.reference import attend
from attndsl.runtime.arguments import Call, check_call
from attndsl.runtime.launch import Rows
from attndsl.runtime.native import launch as native
from attndsl.runtime.native.forward import Forward

CAUSAL = "mask kv_idx <= q_idx"


@ad.mask_mod
def causal(q_idx, kv_idx):
    return kv_idx <= q_idx


ONE = build.real(1.0)
M, GROWN, TOTAL = (build.row_value(name) for name in ("m_i", "m_new", "l_i"))
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float64: 1e-10}


def apply(op: Op, *args: Expr) -> Expr:
    return build.apply(op, *args)


def plan(text: str, dtype: str = "fp32", **spec: int | bool) -> KernelPlan:
    return planned(variant(text), replace(Specialisation(dtype, 16, 16, target=Target.CPP), **spec))


def planned(subject: Variant, spec: Specialisation) -> KernelPlan:
    return Compilation(subject).kernel("forward", spec).plan


def body(text: str) -> str:
    """The part of a module that belongs to its program."""
    return text[text.index("struct Arguments") :]


def test_a_plan_gives_the_same_bytes() -> None:
    assert cpp.emit(plan(CAUSAL)).text == cpp.emit(plan(CAUSAL)).text


def test_the_header_shows_the_program() -> None:
    text = cpp.emit(plan(CAUSAL)).text
    assert text.startswith("/* Attention forward, fp32, head dim 16")
    assert re.search(r"mask +kv_idx <= q_idx", text.split("*/")[0])


def test_expressions_stand_beside_their_source() -> None:
    assert "// <text>:1" in body(cpp.emit(plan(CAUSAL)).text)


def test_text_is_short_in_lines() -> None:
    assert max(map(len, cpp.emit(plan(CAUSAL)).text.splitlines())) <= 140


def test_bfloats_alone_have_matrix_registers() -> None:
    assert "MatrixProducts" in cpp.emit(plan(CAUSAL, "bf16")).text.replace("typedef MatrixProducts Products", "")
    assert "struct MatrixProducts" not in cpp.emit(plan(CAUSAL)).text


@pytest.mark.parametrize("name", ["double", "s", "struct", "row", "fetch", "LANES", "p"])
def test_names_of_users_do_not_clash(name: str) -> None:
    text = f"attention test({name}: int) {{ mask q_idx - kv_idx < {name} }}"
    q, k, v = inputs(q_len=70, head_dim=16)
    subject = variant(text)
    spec = Specialisation("fp32", 16, 16, fast=False, target=Target.CPP)
    rows = run(planned(subject, spec), check_call(subject, {name: 9}, q, k, v))
    assert_rows_close(rows.out, attend(subject, {name: 9}, q, k, v).out, 2e-4, name)


def run(plan: KernelPlan, call: Call) -> Rows:
    emitted = Emitted(plan, cpp.emit(plan))
    return Forward.of(call, emitted, native.tile_for(call, emitted.plan), None).rows(call)


def exponential(shift: Expr = M) -> Expr:
    return apply(Op.EXP, apply(Op.SUB, build.SCORE, shift))


MAXIMUM = Statistic("m_i", Kind.MAX, build.SCORE)
RESCALE = apply(Op.EXP, apply(Op.SUB, M, GROWN))
SUM = Statistic("l_i", Kind.SUM, exponential(), RESCALE)
LOG_SUM = apply(Op.ADD, M, apply(Op.LOG, TOTAL))


def sigmoid() -> Streaming:
    """No statistic at all."""
    weight = apply(Op.SIGMOID, build.SCORE)
    return Streaming((), (Term(ONE, weight),), weight, (), None)


def two_terms() -> Streaming:
    """Softmax plus a tenth of the score: two accumulators, one of them rescaled."""
    tenth = apply(Op.MUL, build.SCORE, build.real(0.1))
    terms = (Term(apply(Op.DIV, ONE, TOTAL), exponential(), RESCALE), Term(ONE, tenth))
    return Streaming(((MAXIMUM, SUM),), terms, build.WEIGHT, (), LOG_SUM)


def two_passes() -> Streaming:
    """Softmax squared: the weight needs the whole divisor first."""
    weight = apply(Op.MUL, exponential(LSE), exponential(LSE))
    return Streaming(((MAXIMUM, SUM),), (), weight, ("lse",), LOG_SUM)


def two_maxima() -> Streaming:
    """Exponentials of the score and of its negative, each below its own maximum."""
    low, low_grown, low_total = (build.row_value(name) for name in ("m_i_1", "m_new_1", "l_i_1"))
    negative = apply(Op.NEG, build.SCORE)
    falling = apply(Op.EXP, apply(Op.SUB, negative, low))
    fall = apply(Op.EXP, apply(Op.SUB, low, low_grown))
    statistics = (
        MAXIMUM,
        Statistic("m_i_1", Kind.MAX, negative),
        SUM,
        Statistic("l_i_1", Kind.SUM, falling, fall),
    )
    terms = (
        Term(apply(Op.DIV, ONE, TOTAL), exponential(), RESCALE),
        Term(apply(Op.DIV, build.real(-0.5), low_total), falling, fall),
    )
    return Streaming((statistics,), terms, build.WEIGHT, (), None)


def mean() -> Streaming:
    """The mean of the values: a sum without a maximum divides it."""
    count = Statistic("l_i", Kind.SUM, ONE)
    return Streaming(((count,),), (Term(apply(Op.DIV, ONE, TOTAL), ONE),), build.WEIGHT, (), None)


FORMS = {
    sigmoid: lambda s: torch.where(s == -torch.inf, 0, torch.sigmoid(s)),
    two_terms: lambda s: torch.softmax(s, -1) + torch.where(s == -torch.inf, 0, s * 0.1),
    two_passes: lambda s: torch.softmax(s, -1) ** 2,
    two_maxima: lambda s: torch.softmax(s, -1) - 0.5 * torch.softmax(torch.where(s == -torch.inf, s, -s), -1),
    mean: lambda s: (s != -torch.inf).double() / (s != -torch.inf).sum(-1, keepdim=True),
}


def expected(form: object, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    rows, keys = torch.arange(q.shape[2])[:, None] + offset, torch.arange(k.shape[2])
    weights = FORMS[form](scores.masked_fill(keys > rows, -torch.inf))  # type: ignore[index]
    return torch.nan_to_num(weights) @ v.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_of_streaming(form: object, dtype: torch.dtype) -> None:
    q, k, v = inputs(heads=2, q_len=BLOCK[0] + 9, kv_len=2 * BLOCK[1] + 5, head_dim=48, v_head_dim=40, dtype=dtype)
    own = plan(CAUSAL, native.DTYPES[dtype], head_dim=48, v_head_dim=40)
    derived = replace(own, streaming=form())  # type: ignore[operator]
    call = check_call(own.variant, {}, q, k, v, q_offset=50)
    rows = run(derived, call)
    assert_rows_close(rows.out, expected(form, q, k, v, 50), TOLERANCE[dtype], str(form))
    scores = (q.double() @ k.double().mT / 48**0.5).masked_fill(
        torch.arange(k.shape[2]) > torch.arange(q.shape[2])[:, None] + 50, -torch.inf
    )
    assert_rows_close(rows.max_score[..., None], scores.amax(-1, keepdim=True), TOLERANCE[dtype], "max_score")


@pytest.mark.parametrize("queries", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("form", [sigmoid, two_terms, two_maxima, mean], ids=lambda form: form.__name__)
def test_chunks_of_keys_are_merged(form: object, queries: int) -> None:
    keys = 4500
    q, k, v = inputs(q_len=queries, kv_len=keys, head_dim=32, v_head_dim=32)
    derived = replace(plan(CAUSAL, head_dim=32, v_head_dim=32), streaming=form())  # type: ignore[operator]
    call = check_call(derived.variant, {}, q, k, v, q_offset=keys - queries - 1)
    rows = run(derived, call)
    assert_rows_close(rows.out, expected(form, q, k, v, keys - queries - 1), 2e-4, str(form))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", [1, 4, 5, 17])
def test_few_queries_against_many_keys(queries: int, dtype: torch.dtype) -> None:
    keys = 4200
    q, k, v = inputs(heads=4, kv_heads=2, q_len=queries, kv_len=keys, head_dim=64, dtype=dtype)
    own = plan(CAUSAL, native.DTYPES[dtype], head_dim=64, v_head_dim=64)
    call = check_call(own.variant, {}, q, k, v, enable_gqa=True, q_offset=keys - queries)
    rows = run(own, call)
    exact = attend(own.variant, {}, q.double(), k.double(), v.double(), enable_gqa=True, q_offset=keys - queries)
    assert_rows_close(rows.out, exact.out, TOLERANCE[dtype], f"{queries} queries")
    assert exact.lse is not None
    assert_rows_close(rows.lse[..., None], exact.lse[..., None], TOLERANCE[dtype], "lse")


def test_the_number_of_threads_changes_no_bit() -> None:
    q, k, v = inputs(heads=2, q_len=2, kv_len=6000, head_dim=32)
    own = plan(CAUSAL, head_dim=32, v_head_dim=32)
    call = check_call(own.variant, {}, q, k, v, q_offset=5998)
    usual = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(own, call).out)
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_at_dead_keys_stays_unseen(dtype: torch.dtype) -> None:
    text = "mask kv_idx % 5 != 2 and kv_idx <= q_idx and q_idx - kv_idx < 40"
    q, k, v = inputs(q_len=150, kv_len=170, head_dim=32, dtype=dtype)
    dead = (torch.arange(170) % 5 == 2) | (torch.arange(170) >= 150)
    poisoned = [torch.where(dead[:, None], torch.nan, part) for part in (k, v)]
    attention = parse(f"attention test() {{ {text} }}").test
    clean = attention(q, k, v, backend="cpu")
    assert torch.equal(attention(q, *poisoned, backend="cpu"), clean)
    assert clean.isfinite().all()


def test_text_of_sparsemax(golden: Callable[..., None]) -> None:
    """What a module has of its own, a search for thresholds among it."""
    compilation = Compilation(ad.attention(mask_mod=causal, normalizer=ad.normalizers.sparsemax()).variant)
    emitted = compilation.kernel("forward", Specialisation("fp32", 64, 64, target=Target.CPP))
    golden(body(emitted.text), "cpp", name="sparsemax", suffix=".cpp")
