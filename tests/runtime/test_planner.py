"""Plans against the mask: no live pair in an empty tile, no dead one in a full tile, exact wherever bounds are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import BLOCKS, Findings, check_closed_form, check_exact, check_sound, counted
from strategies import Case, affine_masks, affine_unions, mask_cases
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, create_mask

import attndsl as ad
from attndsl.analysis.bounds import key_ranges
from attndsl.analysis.monotone import Trend, trend_in_query
from attndsl.frontend import normalizers
from attndsl.frontend.builder import Builder
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import live_pairs
from attndsl.runtime.planner import plan_blocks

op = build.apply
number = build.integer
distance = op(Op.SUB, build.Q, build.K)
causal = op(Op.LE, build.K, build.Q)
CHUNKS = """
attention chunks(chunk: int, left: int, right: int) {
    require chunk >= 1, "`chunk` is at least 1"
    mask    q_idx // chunk - left <= kv_idx // chunk <= q_idx // chunk + right
}"""
TILES = st.sampled_from((*BLOCKS, (16, 16), (16, 16), (16, 16)))
"""Small tiles more often: most tiles that large ones leave are partial."""


@pytest.fixture(scope="module")
def findings() -> Iterator[Findings]:
    """The tiles all random tests of this file met: each class must be well represented, and well told."""
    seen = Findings()
    yield seen
    print(f"\n{seen}")
    if seen.programs > 500:
        seen.check(told=0.9)


@given(case=mask_cases(tensor_offsets=True, max_length=400), block=TILES)
@settings(max_examples=500, deadline=None)
def test_no_tile_is_skipped_or_unmasked_wrongly(findings: Findings, case: Case, block: tuple[int, int]) -> None:
    findings.add(*check_sound(case, block))


@given(case=mask_cases(tensor_offsets=True), block=st.sampled_from(BLOCKS))
@settings(max_examples=100, deadline=None)
def test_exact_plans_are_exact(case: Case, block: tuple[int, int]) -> None:
    check_exact(case, block)


@given(
    chunk=st.integers(1, 70),
    left=st.integers(0, 3),
    right=st.integers(0, 2),
    lengths=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    offset=st.integers(-50, 300),
    block=TILES,
)
@settings(max_examples=100, deadline=None)
def test_chunks_of_a_run_time_size_are_closed_forms(
    chunk: int, left: int, right: int, lengths: tuple[int, int], offset: int, block: tuple[int, int]
) -> None:
    """Whose ends move with the query, so that a plan looks at the first and the last query of tiles alone."""
    (variant,) = parse(CHUNKS)
    values = {"chunk": chunk, "left": left, "right": right}
    plan = plan_blocks(run_passes(variant), values, *lengths, block=block, q_offset=offset)
    truth = counted(
        live_pairs(variant, values, batch=1, heads=1, q_len=lengths[0], kv_len=lengths[1], q_offset=offset), block
    )
    assert plan.strategy == "closed_form"
    assert (plan.classes() == truth).all()
    assert all(trend_in_query(end) is Trend.RISING for keys in key_ranges(plan.variant.mask) for end in keys.lower)


@given(case=affine_masks(tensor_offsets=True, max_length=400), block=TILES)
@settings(max_examples=200, deadline=None)
def test_affine_conjunctions_are_closed_forms_and_exact(findings: Findings, case: Case, block: tuple[int, int]) -> None:
    findings.add(*check_closed_form(case, block))


@given(case=affine_unions(tensor_offsets=True, max_length=400), block=TILES)
@settings(max_examples=200, deadline=None)
def test_disjunctions_of_affine_bounds_are_closed_forms_and_exact(
    findings: Findings, case: Case, block: tuple[int, int]
) -> None:
    findings.add(*check_closed_form(case, block))


@given(case=mask_cases(max_programs=2), block=st.sampled_from(BLOCKS))
@settings(max_examples=60, deadline=None)
def test_a_mask_and_its_opposite_see_nothing_a_mask_or_its_opposite_everything(
    case: Case, block: tuple[int, int]
) -> None:
    sizes = {"batch": case.batch, "heads": case.q_heads, "block": block, "q_offset": case.q_offset}
    mask = case.variant.mask
    for operation, class_ in ((Op.AND, "empty"), (Op.OR, "full")):
        both = replace(case.variant, mask=op(operation, mask, op(Op.NOT, mask)))
        plan = plan_blocks(run_passes(both), case.values, case.q_len, case.kv_len, **sizes)
        assert plan.counts[class_] == sum(plan.counts.values())


def test_an_analysis_that_calls_every_tile_partial_is_found_out() -> None:
    """It is sound: what finds it out is the share of tiles it tells."""
    seen = Findings()
    for truth in (torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1, 2])):
        seen.add(torch.ones_like(truth), truth)
    with pytest.raises(AssertionError, match="told 0%"):
        seen.check(told=0.9)
    lopsided = Findings()
    lopsided.add(torch.tensor([0] * 9 + [1]), torch.tensor([0] * 9 + [1]))
    with pytest.raises(AssertionError, match="90% empty"):
        lopsided.check(told=0.0)


def program(mask: Expr, *params: Param) -> Variant:
    return run_passes(Variant("v", params, build.SCORE, mask, normalizers.softmax(Builder()), build.WEIGHT))


def ids(at: Expr) -> Expr:
    return build.load("ids", (at,), DType.I64)


IDS = TensorParam("ids", DType.I64, ("N",))
WINDOW = op(Op.AND, causal, op(Op.LT, distance, number(70)))
SAME_CHUNK = op(Op.EQ, op(Op.FLOORDIV, build.Q, number(48)), op(Op.FLOORDIV, build.K, number(48)))
HEAD_WINDOW = op(Op.AND, causal, op(Op.LT, distance, op(Op.SHL, number(16), build.H)))
NAMED: dict[str, tuple[Expr, tuple[Param, ...]]] = {
    "everything": (build.TRUE, ()),
    "nothing": (build.FALSE, ()),
    "causal": (causal, ()),
    "window": (WINDOW, ()),
    "symmetric": (op(Op.LE, op(Op.ABS, distance), number(33)), ()),
    "chunks": (SAME_CHUNK, ()),
    "heads": (HEAD_WINDOW, ()),
    "documents": (op(Op.EQ, ids(build.Q), ids(build.K)), (IDS,)),
    "causal-documents": (op(Op.AND, causal, op(Op.EQ, ids(build.Q), ids(build.K))), (IDS,)),
    "scattered": (op(Op.EQ, build.K, op(Op.MOD, op(Op.MUL, build.Q, number(37)), number(101))), ()),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("lengths", [(300, 300), (257, 130), (1, 300), (130, 1), (129, 257)])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_masks_are_exact_without_looking(name: str, lengths: tuple[int, int], block: tuple[int, int]) -> None:
    """An analysis that called every tile partial would pass the random tests; it fails here."""
    mask, params = NAMED[name]
    q_len, kv_len = lengths
    values = {"ids": torch.arange(max(lengths)) // 40} if params else {}
    variant = program(mask, *params)
    live = live_pairs(variant, values, batch=2, heads=3, q_len=q_len, kv_len=kv_len)
    plan = plan_blocks(variant, values, q_len, kv_len, batch=2, heads=3, block=block)
    found, truth = torch.broadcast_tensors(plan.classes(), counted(live, block))
    assert (found == truth).all()


@pytest.mark.parametrize("comparison", [Op.LE, Op.GE])
def test_a_bound_known_only_as_a_range_is_neither_skipped_nor_full_too_far(comparison: Op) -> None:
    some = op(Op.TO_INT, op(Op.MUL, op(Op.SIN, op(Op.TO_FLOAT, build.Q)), build.real(300.0)))
    bound = op(Op.MIN, op(Op.MAX, some, number(40)), number(200))
    variant = program(op(comparison, build.K, bound))
    truth = counted(live_pairs(variant, {}, batch=1, heads=1, q_len=400, kv_len=300), (16, 16))
    plan = plan_blocks(variant, {}, 400, 300, block=(16, 16))
    found = plan.classes()
    # Nothing is known between 40 and 200; outside, everything.
    assert (found[..., 13:] == truth[..., 13:]).all()
    assert (found[..., :2] == truth[..., :2]).all()
    assert (found[..., 3:12] == 1).all()
    assert not plan.tiles.exact
    assert plan.reasons[-1] == "tiles that ranges cannot decide count as partial"
    assert (plan_blocks(variant, {}, 400, 300, block=(16, 16), exact=True).classes() == truth).all()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_butterfly_is_exact_on_aligned_lengths(block: tuple[int, int]) -> None:
    variant = program(op(Op.LE, op(Op.BIT_LENGTH, op(Op.BIT_XOR, build.Q, build.K)), number(6)))
    truth = counted(live_pairs(variant, {}, batch=1, heads=1, q_len=256, kv_len=512), block)
    assert (plan_blocks(variant, {}, 256, 512, block=block).classes() == truth).all()


def test_batches_and_heads_count_only_where_the_mask_looks_at_them() -> None:
    sizes = {"batch": 2, "heads": 3}
    assert plan_blocks(program(causal), {}, 256, 256, **sizes).classes().shape == (1, 1, 2, 2)
    assert plan_blocks(program(HEAD_WINDOW), {}, 256, 256, **sizes).classes().shape == (1, 3, 2, 2)
    assert plan_blocks(program(causal), {}, 256, 256, q_offset=torch.tensor([0, 9]), **sizes).classes().shape[0] == 2
    assert plan_blocks(program(causal), {}, 256, 256, q_offset=torch.tensor([9, 9]), **sizes).classes().shape[0] == 1


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
def test_empty_lengths_have_no_tiles(lengths: tuple[int, int]) -> None:
    plan = plan_blocks(program(causal), {}, *lengths)
    assert plan.counts == {"full": 0, "partial": 0, "empty": 0}
    assert plan.sparsity == 0.0
    assert plan.classes().numel() == 0
    assert "0 full, 0 partial, 0 empty" in str(plan)


def test_a_long_window_is_counted_without_a_matrix() -> None:
    variant = program(
        op(Op.AND, causal, op(Op.LT, distance, build.scalar("w", DType.I64))), ScalarParam("w", DType.I64)
    )
    length, window = 2**20, 1024
    plan = plan_blocks(variant, {"w": window}, length, length)
    tiles, wide = length // 128, window // 128
    # A row of tiles needs its own, `wide` before it, and covers all of these but the two at the ends.
    needed = sum(min(row, wide) + 1 for row in range(tiles))
    covered = sum(min(row, wide - 1) for row in range(tiles))
    assert plan.counts == {"full": covered, "partial": needed - covered, "empty": tiles**2 - needed}
    assert plan.nbytes == 0
    assert plan.strategy == "closed_form"


def test_strategies_and_reasons_say_what_was_found() -> None:
    plan = plan_blocks(program(WINDOW), {}, 300, 300)
    assert plan.reasons == ("keys start at `q_idx - 69`", "keys end at `q_idx`")
    stride = program(op(Op.EQ, op(Op.MOD, distance, number(3)), number(0)))
    plan = plan_blocks(stride, {}, 300, 300)
    assert plan.strategy == "dense"
    assert len(plan.reasons) == 1
    assert "does not bound the key" in plan.reasons[0]
    assert plan_blocks(program(build.TRUE), {}, 9, 9).reasons == ("nothing is masked",)


@pytest.mark.parametrize("mask", [WINDOW, HEAD_WINDOW, op(Op.EQ, op(Op.MOD, distance, number(3)), number(0))])
def test_block_masks_agree_with_flex_attention(mask: Expr) -> None:
    variant = program(mask)
    plan = plan_blocks(variant, {}, 300, 290, heads=2, q_offset=7, exact=True)
    found = plan.block_mask()
    live = live_pairs(variant, {}, batch=1, heads=2, q_len=300, kv_len=290, q_offset=7)
    mask_mod: Callable[..., Tensor] = found.mask_mod
    assert (create_mask(mask_mod, 1, 2, 300, 290, device="cpu") == live).all()
    wanted = create_block_mask(mask_mod, 1, 2, 300, 290, device="cpu")
    assert (found.to_dense() == wanted.to_dense()).all()
    assert (found.full_kv_num_blocks == wanted.full_kv_num_blocks).all()


def test_captured_tensors_that_change_length() -> None:
    doc = torch.arange(200, dtype=torch.int32) // 37
    subject = ad.attention(mask_mod=ad.masks.document(doc=doc))
    subject.plan(200, block=(16, 16))
    doc.resize_(100)
    with pytest.raises(ad.DiagnosticError) as caught:
        subject.plan(200, block=(16, 16))
    assert {diagnostic.code for diagnostic in caught.value.diagnostics} == {"index-out-of-bounds"}
    for longer in (torch.arange(100) // 9, torch.arange(300) // 50):
        doc.data = longer.int()
        fresh = ad.attention(mask_mod=ad.masks.document(doc=doc.clone()))
        length = len(longer)
        assert torch.equal(subject.plan(length, block=(16, 16)).classes(), fresh.plan(length, block=(16, 16)).classes())


@pytest.mark.parametrize("text", ["q_idx * kv_idx < 8589934592", "q_idx * kv_idx % 7 < 3", "q_idx * q_idx > kv_idx"])
def test_products_beyond_32_bits_do_not_wrap(text: str) -> None:
    (variant,) = parse(f"attention a {{ mask {text} }}")
    start = 2**31 - 40
    plan = plan_blocks(run_passes(variant), {}, 100, 90, block=(16, 16), q_offset=start)
    truth = counted(live_pairs(variant, {}, batch=1, heads=1, q_len=100, kv_len=90, q_offset=start), (16, 16))
    assert (plan.classes() == truth).all()


def test_a_router_that_selects_nothing() -> None:
    q = torch.randn(1, 2, 64, 8, generator=torch.Generator().manual_seed(0))
    route = ad.router(block=(16, 16), select=ad.routers.threshold(torch.inf), keep=(), causal=False)
    table = route(q, q)
    assert not table.live.any()
    subject = ad.attention(mask_mod=ad.masks.causal)
    assert subject.plan(64, heads=2, block=(16, 16), blocks=table).counts == {"full": 0, "partial": 0, "empty": 2 * 16}
    assert not subject.reference(q, q, q, blocks=route).any()
