"""Plans against the mask: no live pair in an empty tile, no dead one in a full tile, exact wherever bounds are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from census import Census
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Case, affine_masks, mask_cases
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from attndsl.analysis.bounds import key_range
from attndsl.frontend import normalizers
from attndsl.frontend.builder import Builder
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import live_pairs
from attndsl.runtime.planner import BlockPlan, plan_blocks

BLOCKS = ((16, 16), (64, 64), (128, 128), (128, 64), (64, 256))
op = build.apply
number = build.integer
distance = op(Op.SUB, build.Q, build.K)
causal = op(Op.LE, build.K, build.Q)


def counted(live: Tensor, block: tuple[int, int]) -> Tensor:
    """The classes of tiles by looking at every pair."""
    rows, columns = (-(-length // size) for length, size in zip(live.shape[-2:], block, strict=True))
    classes = torch.zeros(*live.shape[:2], rows, columns, dtype=torch.int8)
    for row in range(rows):
        for column in range(columns):
            stretch = live[:, :, row * block[0] : (row + 1) * block[0], column * block[1] : (column + 1) * block[1]]
            pairs = stretch.flatten(2)
            classes[:, :, row, column] = torch.where(pairs.all(-1), 2, pairs.any(-1).long()).to(torch.int8)
    return classes


def planned(case: Case, block: tuple[int, int], exact: bool = False) -> tuple[BlockPlan, Tensor, Tensor]:
    """The plan of a random case, its classes, and the true ones."""
    where = {"batch": case.batch, "heads": case.q_heads, "q_offset": case.q_offset}
    program = run_passes(case.variant)
    plan = plan_blocks(program, case.values, case.q_len, case.kv_len, block=block, exact=exact, **where)
    truth = counted(live_pairs(case.variant, case.values, **case.grid), block)
    assert plan.counts == {
        name: int((plan.classes() == at).sum()) for at, name in enumerate(("empty", "partial", "full"))
    }
    return plan, *torch.broadcast_tensors(plan.classes(), truth)


@pytest.fixture(scope="module")
def census() -> Iterator[Census]:
    """The tiles all random tests of this file met: each kind must be well represented."""
    seen = Census()
    yield seen
    print(f"\n{seen}")
    assert seen.programs < 100 or min(seen.shares.values()) >= 0.2


@given(case=mask_cases(tensor_offsets=True), block=st.sampled_from(BLOCKS))
@settings(max_examples=250, deadline=None)
def test_no_tile_is_skipped_or_unmasked_wrongly(census: Census, case: Case, block: tuple[int, int]) -> None:
    _, found, truth = planned(case, block)
    assert not ((found == 0) & (truth != 0)).any()
    assert not ((found == 2) & (truth != 2)).any()
    census.add(live_pairs(case.variant, case.values, **case.grid))


@given(case=mask_cases(tensor_offsets=True, max_length=129), block=st.sampled_from(BLOCKS))
@settings(max_examples=100, deadline=None)
def test_exact_plans_are_exact(case: Case, block: tuple[int, int]) -> None:
    _, found, truth = planned(case, block, exact=True)
    assert (found == truth).all()


@given(case=affine_masks(tensor_offsets=True), block=st.sampled_from(BLOCKS))
@settings(max_examples=150, deadline=None)
def test_affine_conjunctions_are_closed_forms_and_exact(census: Census, case: Case, block: tuple[int, int]) -> None:
    plan, found, truth = planned(case, block)
    assert plan.strategy == "closed_form"
    assert key_range(plan.variant.mask).is_exact
    assert (found == truth).all()
    census.add(live_pairs(case.variant, case.values, **case.grid))


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
    half = op(Op.TO_INT, op(Op.MUL, op(Op.TO_FLOAT, build.Q), build.real(0.5)))
    bound = op(Op.MIN, op(Op.MAX, half, number(40)), number(200))
    variant = program(op(comparison, build.K, bound))
    truth = counted(live_pairs(variant, {}, batch=1, heads=1, q_len=400, kv_len=300), (16, 16))
    plan = plan_blocks(variant, {}, 400, 300, block=(16, 16))
    found = plan.classes()
    # Nothing is known between 40 and 200; outside, everything.
    assert (found[..., 13:] == truth[..., 13:]).all()
    assert (found[..., :2] == truth[..., :2]).all()
    assert (found[..., 3:12] == 1).all()
    assert not plan.tiles.exact
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
    assert "does not bound the key" in plan.reasons[0]
    assert "count as partial" in plan.reasons[1]
    assert plan_blocks(program(build.TRUE), {}, 9, 9).reasons == ("nothing is masked",)


def test_a_picture_shows_the_classes_it_has_room_for() -> None:
    lines = str(plan_blocks(program(WINDOW), {}, 320, 320, block=(64, 64), heads=2)).splitlines()
    assert lines[0] == "v: 320 x 320 in tiles of 64 x 64, closed_form"
    assert lines[2:7] == ["▒▒········", "▒▒▒▒······", "▒▒▒▒▒▒····", "··▒▒▒▒▒▒··", "····▒▒▒▒▒▒"]
    long = str(plan_blocks(program(HEAD_WINDOW), {}, 20_000, 20_000, heads=2)).splitlines()
    assert max(map(len, long)) <= 80
    assert len(long) <= 40
    assert "shown: batch 0 of 1, head 0 of 2" in long


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
