"""Attentions called with block tables: the mask and the table, at any tile size, for calls, references and plans."""

from __future__ import annotations

import itertools
import os
from typing import Any

import dense
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import attndsl as ad
from attndsl.routing.join import joins_of

MASKS: dict[str, tuple[ad.Attention, Any]] = {
    "none": (ad.attention(), lambda q, k: torch.tensor(True)),
    "causal": (ad.attention(mask_mod=ad.masks.causal), lambda q, k: k <= q),
    "window": (ad.attention(mask_mod=ad.masks.sliding_window(window=37)), lambda q, k: (k <= q) & (q - k < 37)),
    "sink-or-window": (
        ad.attention(mask_mod=lambda b, h, q, k: (k <= q) & ((k < 4) | (q - k < 30))),
        lambda q, k: (k <= q) & ((k < 4) | (q - k < 30)),
    ),
    "band": (
        ad.attention(mask_mod=lambda b, h, q, k: (k >= q // 2) & (3 * k <= 2 * q + 20)),
        lambda q, k: (k >= q // 2) & (3 * k <= 2 * q + 20),
    ),
}


def random_map(sizes: tuple[int, int], lengths: tuple[int, int], block: tuple[int, int], share: float) -> Tensor:
    shape = (*sizes, *(-(-length // size) for length, size in zip(lengths, block, strict=True)))
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < share


def live_pairs(name: str, table: Tensor, block: tuple[int, int], lengths: tuple[int, int], offset: int = 0) -> Tensor:
    q, k = torch.arange(lengths[0])[:, None] + offset, torch.arange(lengths[1])
    return dense.pairs(table, block, lengths) & MASKS[name][1](q, k)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("block", [(1, 16), (16, 1), (32, 32), (7, 50), (200, 200)])
@pytest.mark.parametrize("name", sorted(MASKS))
def test_a_call_sees_the_mask_and_the_table(name: str, block: tuple[int, int], sizes: tuple[int, int]) -> None:
    lengths = (70, 90)
    q, k, v = (dense.normal(2, heads, n, 8, seed=n).double() for heads, n in ((4, 70), (2, 90), (2, 90)))
    table = random_map(sizes, lengths, block, 0.5)
    wanted = dense.attention(q, k, v, live_pairs(name, table, block, lengths))
    found = MASKS[name][0](q, k, v, enable_gqa=True, blocks=ad.BlockTable(table, block), backend="reference")
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0, 13, -5, torch.tensor([3, 40])])
def test_tables_count_the_queries_of_the_call(offset: int | Tensor) -> None:
    lengths, block = (33, 90), (8, 16)
    q, k, v = (dense.normal(2, 2, n, 8, seed=i).double() for i, n in enumerate((33, 90, 90)))
    table = random_map((2, 2), lengths, block, 0.6)
    offsets = offset.tolist() if isinstance(offset, Tensor) else [offset] * 2
    live = torch.cat([live_pairs("causal", table[i : i + 1], block, lengths, offsets[i]) for i in range(2)])
    blocks = ad.BlockTable(table, block)
    attn = MASKS["causal"][0]
    wanted = dense.attention(q, k, v, live)
    torch.testing.assert_close(attn.reference(q, k, v, q_offset=offset, blocks=blocks), wanted, rtol=1e-12, atol=1e-12)
    plan = attn.plan(*lengths, batch=2, heads=2, block=(16, 16), q_offset=offset, blocks=blocks)
    assert (plan.classes() == dense.tile_classes(live, (16, 16))).all()


@pytest.mark.parametrize("tile", [(16, 16), (32, 64), (128, 128), (30, 45)])
@pytest.mark.parametrize("block", [(1, 16), (16, 1), (32, 32), (7, 50), (1, 1)])
@pytest.mark.parametrize("name", sorted(MASKS))
def test_plans_are_exact(name: str, block: tuple[int, int], tile: tuple[int, int]) -> None:
    """Where the mask and the table cut through one tile, they may be true only apart: such a tile is empty."""
    lengths = (150, 170)
    for share in (0.02, 0.5, 0.98):
        table = random_map((1, 2), lengths, block, share)
        plan = MASKS[name][0].plan(*lengths, heads=2, block=tile, blocks=ad.BlockTable(table, block))
        wanted = dense.tile_classes(live_pairs(name, table, block, lengths), tile)
        assert (plan.classes() == wanted).all(), share


def test_plans_of_tables_meet_every_class() -> None:
    """The exactness above is no triviality: tiles are empty, partial and full, and some are empty only together."""
    table = random_map((1, 1), (150, 170), (32, 32), 0.6)
    plan = MASKS["causal"][0].plan(150, 170, block=(16, 16), blocks=ad.BlockTable(table, (32, 32)))
    assert min(plan.counts.values()) >= 5
    rows = torch.arange(64)[:, None] < 8
    apart = ad.BlockTable((rows & (torch.arange(4) == 1))[None, None], (1, 16))
    causal = MASKS["causal"][0].plan(64, block=(64, 16)).classes()
    assert causal[0, 0, 0, 1] == 1
    assert MASKS["none"][0].plan(64, block=(64, 16), blocks=apart).classes()[0, 0, 0, 1] == 1
    assert MASKS["causal"][0].plan(64, block=(64, 16), blocks=apart).classes()[0, 0, 0, 1] == 0


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_random_plans_are_exact(data: st.DataObject) -> None:
    lengths = data.draw(st.tuples(st.integers(1, 140), st.integers(1, 140)))
    block = data.draw(st.tuples(st.sampled_from((1, 3, 16, 20, 64)), st.sampled_from((1, 5, 16, 64, 100))))
    tile = data.draw(st.tuples(st.sampled_from((16, 24, 64)), st.sampled_from((16, 24, 64))))
    sizes = data.draw(st.tuples(st.sampled_from((1, 2)), st.sampled_from((1, 3))))
    name = data.draw(st.sampled_from(sorted(MASKS)))
    table = random_map(sizes, lengths, block, data.draw(st.sampled_from((0.05, 0.5, 0.95))))
    blocks = ad.BlockTable(table, block)
    plan = MASKS[name][0].plan(*lengths, batch=sizes[0], heads=sizes[1], block=tile, blocks=blocks)
    assert (plan.classes() == dense.tile_classes(live_pairs(name, table, block, lengths), tile)).all()


def test_an_empty_table_gives_zeros() -> None:
    q, k, v = (dense.normal(1, 2, 40, 8, seed=i).double() for i in range(3))
    blocks = ad.BlockTable(torch.zeros(1, 1, 5, 5, dtype=torch.bool), (8, 8))
    out, aux = MASKS["causal"][0](q, k, v, blocks=blocks, return_aux=True)
    assert (out == 0).all()
    assert (aux.lse == -torch.inf).all()


def test_keys_of_blocks_nobody_sees_never_show() -> None:
    q, k, v = (dense.normal(1, 1, 48, 8, seed=i).requires_grad_() for i in range(3))
    live = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])[None, None]
    live[..., 1] = False
    poison = torch.zeros(48, 1)
    poison[16:32] = torch.nan
    out = MASKS["none"][0].reference(q, k + poison, v + poison, blocks=ad.BlockTable(live, (16, 16)))
    clean = MASKS["none"][0].reference(q, k, v, blocks=ad.BlockTable(live, (16, 16)))
    assert (out == clean).all()
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_table_that_changes_is_read_again() -> None:
    q, k, v = (dense.normal(1, 1, 32, 8, seed=i).double() for i in range(3))
    live = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    table, attn = ad.BlockTable(live, (16, 16)), MASKS["none"][0]
    before = attn(q, k, v, blocks=table)
    assert attn.plan(32, block=(16, 16), blocks=table).counts["full"] == 4
    live[0, 0, 0, 1] = False
    after = attn(q, k, v, blocks=table)
    assert attn.plan(32, block=(16, 16), blocks=table).counts["full"] == 3
    torch.testing.assert_close(after, dense.attention(q, k, v, dense.pairs(live, (16, 16), (32, 32))))
    assert not torch.equal(before, after)


def test_one_compilation_serves_all_tables_of_a_layout() -> None:
    attn = ad.attention(mask_mod=ad.masks.sliding_window(window=8))
    q, k, v = (dense.normal(2, 2, 32, 8, seed=i).double() for i in range(3))
    joins = joins_of(attn._compilation)
    tables = [random_map(sizes, (32, 32), (8, 8), 0.5) for sizes in ((2, 2), (2, 2), (1, 2))]
    for live, subject in itertools.product(tables, (attn, attn.bind(window=9))):
        subject(q, k, v, blocks=ad.BlockTable(live, (8, 8)))
    assert joins_of(attn.bind(window=5)._compilation) is joins
    assert len(joins._joined) == 2


def test_names_of_users_are_left_alone() -> None:
    blocks = torch.tensor([True, False])

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return blocks[kv_idx // 16]

    attn = ad.attention(mask_mod=mask)
    q, k, v = (dense.normal(1, 1, 32, 8, seed=i).double() for i in range(3))
    live = torch.tensor([[True, True], [False, True]])[None, None]
    found = attn.reference(q, k, v, blocks=ad.BlockTable(live, (16, 16)))
    wanted = dense.attention(q, k, v, dense.pairs(live & blocks, (16, 16), (32, 32)))
    torch.testing.assert_close(found, wanted)


def test_key_blocks_by_a_tensor() -> None:
    ids = torch.tensor([0, 1, 0, 2, 1, 1, 2, 0, 0, 2])
    live = random_map((1, 2), (10, 3), (1, 1), 0.5)
    q, k, v = (dense.normal(1, 2, 10, 8, seed=i).double() for i in range(3))
    table = ad.BlockTable(live, (1, ids))
    found = MASKS["causal"][0].reference(q.double(), k.double(), v.double(), blocks=table)
    wanted = live[..., ids] & dense.causal(10, 10)
    torch.testing.assert_close(found, dense.attention(q, k, v, wanted))
    plan = MASKS["causal"][0].plan(10, heads=2, block=(4, 4), blocks=table, exact=True)
    assert (plan.classes() == dense.tile_classes(wanted, (4, 4))).all()


def test_a_block_mask_joins_our_mask_and_not_its_own() -> None:
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 96, 96, device="cpu", BLOCK_SIZE=32)
    q, k, v = (dense.normal(1, 1, 96, 8, seed=i).double() for i in range(3))
    found = MASKS["window"][0].reference(q, k, v, blocks=mask)
    torch.testing.assert_close(found, MASKS["window"][0].reference(q, k, v))
    unmasked = MASKS["none"][0].reference(q, k, v, blocks=mask)
    wanted = dense.attention(q, k, v, dense.pairs(mask.to_dense().bool(), (32, 32), (96, 96)))
    torch.testing.assert_close(unmasked, wanted)


def test_declarations_from_text_take_tables() -> None:
    text = ad.parse("attention local(window: int = 9) { mask abs(q_idx - kv_idx) <= window }").local
    q, k, v = (dense.normal(1, 1, 32, 8, seed=i).double() for i in range(3))
    table = random_map((1, 1), (32, 32), (8, 8), 0.5)
    near = (torch.arange(32)[:, None] - torch.arange(32)).abs() <= 9
    live = dense.pairs(table, (8, 8), (32, 32)) & near
    found = text(q=q, k=k, v=v, blocks=ad.BlockTable(table, (8, 8)))
    torch.testing.assert_close(found, dense.attention(q, k, v, live))
    plan = text.plan(32, block=(16, 16), blocks=ad.BlockTable(table, (8, 8)))
    assert (plan.classes() == dense.tile_classes(live, (16, 16))).all()


def test_explanations_name_the_table() -> None:
    table = ad.BlockTable(torch.ones(1, 1, 4, 4, dtype=torch.bool), (32, 32))
    text = str(MASKS["causal"][0].explain(128, blocks=table, block=(32, 32)))
    assert "blocks[0, 0, (q_idx - first_query) // 32, kv_idx // 32]" in text
    assert "6 full, 4 partial, 6 empty" in text


def test_what_is_no_table_is_refused() -> None:
    q, k, v = (dense.normal(1, 1, 32, 8, seed=i).double() for i in range(3))
    attn = MASKS["none"][0]
    with pytest.raises(ad.DiagnosticError, match=r"bad-blocks.*`blocks` is a Tensor"):
        attn(q, k, v, blocks=torch.ones(1))
    with pytest.raises(ad.DiagnosticError, match="router-without-tensors"):
        attn.plan(32, blocks=ad.routers.moba(8, 2))
    with pytest.raises(ad.DiagnosticError, match=r"table-shape.*query blocks 2, not 4"):
        attn(q, k, v, blocks=ad.BlockTable(torch.ones(1, 1, 2, 4, dtype=torch.bool), (8, 8)))
    with pytest.raises(ad.DiagnosticError, match=r"table-shape.*heads 3, not 1"):
        attn.plan(32, blocks=ad.BlockTable(torch.ones(1, 3, 4, 4, dtype=torch.bool), (8, 8)))


@pytest.mark.interpreter
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("name, block", [("none", (1, 16)), ("causal", (16, 32)), ("sink-or-window", (7, 50))])
@pytest.mark.parametrize("offset", [0, torch.tensor([5, 20])])
def test_kernels_see_the_mask_and_the_table(name: str, block: tuple[int, int], offset: int | Tensor) -> None:
    lengths = (70, 90)
    q, k, v = (dense.normal(2, heads, n, 16, seed=n) for heads, n in ((4, 70), (2, 90), (2, 90)))
    table = random_map((2, 4), lengths, block, 0.4)
    table[:, :, 1] = False
    offsets = offset.tolist() if isinstance(offset, Tensor) else [offset] * 2
    live = torch.cat([live_pairs(name, table[i : i + 1], block, lengths, offsets[i]) for i in range(2)])
    unseen = ~live.flatten(1, 2).any(1)[:, None, :, None]
    k, v = (tensor.masked_fill(unseen, torch.nan) for tensor in (k, v))
    blocks = ad.BlockTable(table, block)
    found = MASKS[name][0](q, k, v, enable_gqa=True, q_offset=offset, blocks=blocks, backend="triton")
    wanted = dense.attention(q, *(tensor.masked_fill(unseen, 0.0) for tensor in (k, v)), live)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
