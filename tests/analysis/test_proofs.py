"""Proofs are sound: in a call in which their facts hold, what they claim is so; and ordinary calls fulfil the facts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Case, affine_masks, cases, mask_cases
from torch import Tensor

from attndsl.analysis.obligations import call_box
from attndsl.analysis.proofs import Condition, Proof, row_proofs
from attndsl.frontend.parse import parse
from attndsl.ir.printer import print_expr
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import attend, live_pairs
from attndsl.runtime.grants import Grants, grants_of
from attndsl.runtime.known import known_values, layouts

NAMED = """
attention full() { score score }
attention causal() { mask kv_idx <= q_idx }
attention window(window: int) { mask kv_idx <= q_idx and q_idx - kv_idx < window }
attention sinks_and_window(window: int, sink: int) {
    mask kv_idx <= q_idx and (kv_idx < sink or q_idx - kv_idx < window)
}
attention prefix(length: int tensor[B]) { mask kv_idx <= q_idx or kv_idx < length[b] }
attention documents(doc: int tensor[N]) { mask kv_idx <= q_idx and doc[q_idx] == doc[kv_idx] }
attention dilated(window: int, dilation: int) {
    mask kv_idx <= q_idx and q_idx - kv_idx < window * dilation and (q_idx - kv_idx) % dilation == 0
}
attention chunked(chunk: int) { mask kv_idx <= q_idx and kv_idx // chunk == q_idx // chunk }
attention bottom_right() { mask kv_idx <= q_idx + kv_len - q_len }
attention band(radius: int) { mask abs(q_idx - kv_idx) <= radius }
attention soft_cap(cap: float) { score cap * tanh(score / cap) }
attention scaled(factor: float) { score score * factor - 3.0 * float(q_idx - kv_idx) }
attention even_window(half: int) { mask kv_idx <= q_idx and q_idx - kv_idx < 2 * half }
attention piled(height: float) { score height * tanh(score) + height }
attention strictly_causal() { mask kv_idx < q_idx }
attention some_heads() { mask h < 4 and kv_idx <= q_idx }
attention late_queries(first: int) { mask kv_idx <= q_idx and q_idx >= first }
attention learnt(bias: tensor[H]) { score score + bias[h] }
attention logarithm() { score log(score) }
attention huge() { score score * 1e30 }
"""
VARIANTS = {variant.name: variant for variant in parse(NAMED)}
ONE_LENGTH = ("full", "causal", "window", "sinks_and_window", "prefix", "documents", "dilated", "chunked", "band")
SOMETIMES_EMPTY = ("strictly_causal", "some_heads", "late_queries", "learnt", "logarithm", "huge")


def proofs(name: str) -> tuple[Proof, ...]:
    program = run_passes(VARIANTS[name])
    return row_proofs(program.mask, program.score)


def grants(
    variant: Variant,
    values: dict[str, int | float | Tensor],
    *,
    batch: int = 1,
    heads: int = 1,
    q_len: int = 8,
    kv_len: int = 8,
    q_offset: int | Tensor = 0,
) -> Grants:
    program, offsets = run_passes(variant), torch.as_tensor(q_offset)
    box = call_box(batch, heads, q_len, kv_len, (int(offsets.min()), int(offsets.max())))
    return grants_of(program, box, known_values(program, values), layouts(program, values), 1.0)


def granted(found: Grants) -> list[str]:
    """The claims whose facts hold in a call."""
    every = row_proofs(found.program.mask, found.program.score)
    return [proof.claim.value for proof in every if all(map(found.holds, proof.facts))]


def check(variant: Variant, values: dict[str, int | float | Tensor], **call: int | Tensor) -> list[str]:
    """Hold the claims granted in a call against its live pairs."""
    claims = granted(grants(variant, values, **call))
    sizes = {"batch": 1, "heads": 1, "q_len": 8, "kv_len": 8, **call}
    live = live_pairs(variant, values, **sizes)
    if "every query has a live key" in claims:
        assert bool(live.any(-1).all())
    if "every query sees key 0" in claims:
        assert bool(live[..., :1].any(-1).all())
    return claims


@settings(max_examples=400, deadline=None)
@given(mask_cases(tensor_offsets=True))
def test_random_masks(case: Case) -> None:
    check(case.variant, case.values, **case.grid)


@settings(max_examples=400, deadline=None)
@given(affine_masks(tensor_offsets=True))
def test_random_bounds(case: Case) -> None:
    check(case.variant, case.values, **case.grid)


@settings(max_examples=150, deadline=None)
@given(cases(max_programs=2, max_length=33))
def test_no_row_of_scores_that_are_proven_finite_is_minus_infinity(case: Case) -> None:
    if granted(grants(case.variant, case.values, **case.grid)):
        q, k, v = case.inputs()
        rows = attend(case.variant, case.values, q, k, v, enable_gqa=True, q_offset=case.q_offset)
        assert not bool((rows.max_score == -torch.inf).any())


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(name for name, variant in VARIANTS.items() if not variant.tensors)),
    st.tuples(*[st.integers(-2, 5)] * 2),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(-3, 12)),
)
def test_named_masks_at_every_edge(name: str, numbers: tuple[int, int], sizes: tuple[int, int, int]) -> None:
    variant = VARIANTS[name]
    # Nothing divides by 0.
    least = {"chunk": 1, "dilation": 1, "cap": 1}
    given = zip(variant.scalars, numbers, strict=False)
    values = {param.name: number or least.get(param.name, 0) for param, number in given}
    q_len, kv_len, q_offset = sizes
    check(variant, values, q_len=q_len, kv_len=kv_len, q_offset=q_offset)


@pytest.mark.parametrize("name", ONE_LENGTH)
@pytest.mark.parametrize("length", [1, 7, 300])
def test_ordinary_calls_fulfil_the_facts(name: str, length: int) -> None:
    variant = VARIANTS[name]
    tensors = {param.name: torch.zeros(length, dtype=torch.int64) for param in variant.tensors}
    values = {**{param.name: 1 for param in variant.scalars}, **tensors}
    found = grants(variant, values, q_len=length, kv_len=length)
    assert found.fast
    assert granted(found)
    decoding = grants(variant, values, q_len=1, kv_len=length, q_offset=length - 1)
    assert decoding.fast
    assert granted(decoding)


@pytest.mark.parametrize("name", SOMETIMES_EMPTY)
def test_nothing_is_proven_of_rows_that_are_sometimes_empty(name: str) -> None:
    """So that these keep their fast kernel, guards and all."""
    assert proofs(name) == ()


def test_facts_tell_the_calls_with_empty_rows_exactly() -> None:
    """One range of keys: its facts hold if and only if no row is empty."""
    windows = [
        ("window", {"window": 2}),
        ("window", {"window": 0}),
        ("even_window", {"half": 1}),
        ("even_window", {"half": 0}),
    ]
    for name, values in [*windows, ("causal", {}), ("bottom_right", {})]:
        variant = VARIANTS[name]
        for q_len, kv_len, q_offset in ((5, 5, 0), (5, 3, 0), (5, 4, 0), (3, 5, 2), (3, 5, 4), (5, 0, 0), (2, 5, 0)):
            call = {"q_len": q_len, "kv_len": kv_len, "q_offset": q_offset}
            live = live_pairs(variant, values, batch=1, heads=1, **call)
            claims = granted(grants(variant, values, **call))
            assert ("every query has a live key" in claims) is bool(live.any(-1).all()), (name, call)


def test_a_call_without_queries_has_no_empty_row() -> None:
    assert granted(grants(VARIANTS["causal"], {}, q_len=0))


def test_a_negative_offset_or_no_keys_take_the_general_kernel() -> None:
    assert not grants(VARIANTS["causal"], {}, q_offset=-1).fast
    assert not grants(VARIANTS["full"], {}, kv_len=0).fast
    assert not grants(VARIANTS["window"], {"window": 0}).fast


@pytest.mark.parametrize(
    "cap, fast",
    [(50.0, True), (-50.0, True), (1e38, True), (2e38, True), (1e39, False), (math.inf, False), (math.nan, False)],
)
def test_a_factor_that_leaves_float32_makes_scores_infinite(cap: float, fast: bool) -> None:
    assert grants(VARIANTS["soft_cap"], {"cap": cap}).fast is fast
    assert grants(VARIANTS["scaled"], {"factor": 1e20}).fast is False
    assert grants(VARIANTS["scaled"], {"factor": -2.0}).fast
    assert grants(VARIANTS["piled"], {"height": cap}).fast is (fast and abs(cap) < 2e38)


def test_facts(golden: Callable[..., None]) -> None:
    """What is proven of each named variant, how, and on which facts."""
    lines = []
    for name in VARIANTS:
        lines.append(name)
        for proof in proofs(name):
            facts = [fact.value if isinstance(fact, Condition) else print_expr(fact) for fact in proof.facts]
            lines += [f"  {proof.claim.value}: {proof.why}", *(f"    {fact}" for fact in facts)]
    golden("\n".join(lines), "proofs")
