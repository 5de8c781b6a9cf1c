"""Tokens kept in tiles: plans over tokens in storage, kernels on them, results in the order of the call."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from compare import assert_rows_close
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import interpreted
from torch import Tensor

import attndsl as ad
from attndsl.diagnostics import CallError
from attndsl.ir.order import GridOrder
from attndsl.library.grids import box_window, neighborhood, sliding_tiles
from attndsl.reference import live_pairs
from attndsl.runtime.order import from_storage, to_storage

Sizes = tuple[int, ...]


def grids(sizes: Sizes, tile: Sizes) -> tuple[ad.Grid, ad.Grid]:
    """A grid without and with tiles."""
    named = dict(zip("tyx"[-len(sizes) :], sizes, strict=True))
    return ad.grid(**named), ad.grid(**named, tile=tile)


def stored(order: GridOrder) -> Tensor:
    """The row-major position of every token in storage."""
    places = torch.arange(order.length).view(order.sizes)
    for axis, side in enumerate(order.tile):
        places = places.unfold(axis, side, side)
    return places.reshape(-1)


def classes(live: Tensor, block: tuple[int, int]) -> Tensor:
    """What every tile of a square of pairs is, counted pair by pair; lengths are multiples of the block."""
    tiles = live.unflatten(-2, (-1, block[0])).unflatten(-1, (-1, block[1]))
    return tiles.any(-1).any(-2).to(torch.int8) + tiles.all(-1).all(-2).to(torch.int8)


@pytest.mark.parametrize("sizes,tile", [((6, 8), (2, 4)), ((4, 6, 4), (2, 3, 2)), ((2, 2, 4, 6), (2, 1, 2, 3))])
def test_tokens_there_and_back(sizes: Sizes, tile: Sizes) -> None:
    order = GridOrder(sizes, tile)
    tokens = torch.randn(2, 3, order.length, 5)
    moved = to_storage(tokens, order)
    assert torch.equal(moved, tokens[:, :, stored(order)])
    assert torch.equal(from_storage(moved, order), tokens)
    rows = tokens.transpose(1, 3)[..., 0]
    assert torch.equal(from_storage(to_storage(rows, order), order), rows), "rows without a last dimension, any strides"
    assert to_storage(tokens[..., :0], order).shape == (2, 3, order.length, 0)


PLANS: list[tuple[Sizes, Sizes, Any]] = [
    ((16, 16), (4, 4), lambda g: neighborhood(g, 5)),
    ((16, 16), (4, 8), lambda g: neighborhood(g, (5, 7), dilation=(1, 2))),
    ((16, 16), (8, 2), lambda g: box_window(g, (3, 4))),
    ((8, 8, 8), (2, 4, 4), lambda g: neighborhood(g, (3, 5, 5))),
    ((8, 8, 8), (4, 4, 4), lambda g: neighborhood(g, (3, 4, 4), causal=(True, False, False))),
    ((8, 8, 8), (1, 4, 4), lambda g: box_window(g, 6)),
]


@pytest.mark.parametrize("sizes,tile,mask", PLANS)
@pytest.mark.parametrize("block", [(16, 16), (32, 32), (64, 32)])
def test_plans_in_storage_order_are_exact(sizes: Sizes, tile: Sizes, mask: Any, block: tuple[int, int]) -> None:
    plain, tiled = grids(sizes, tile)
    variant = ad.attention(mask_mod=mask(plain))
    subject = ad.attention(mask_mod=mask(tiled))
    length, order = plain.length, subject.variant.order
    assert order is not None
    values = subject._values()
    live = live_pairs(variant.variant, values, batch=1, heads=1, q_len=length, kv_len=length)
    assert torch.equal(live_pairs(subject.variant, values, batch=1, heads=1, q_len=length, kv_len=length), live)
    expected = classes(live[..., stored(order), :][..., stored(order)], block)
    assert torch.equal(subject.plan(length, block=block, exact=True).classes(), expected)
    found = subject.plan(length, block=block)
    assert torch.equal(found.classes(), expected), "without looking at pairs"
    assert found.reasons[0] == f"tokens are kept in {order}"


def test_a_tile_sees_fewer_tiles_than_a_row() -> None:
    plain, tiled = grids((64, 64), (8, 8))
    row_major, tile_major = (
        ad.attention(mask_mod=neighborhood(grid, 13)).plan(4096, block=(64, 64)).counts for grid in (plain, tiled)
    )
    # 13 rows of 64 each, against 3 x 3 tiles of 8 x 8, 2 along a border.
    assert row_major["empty"] == 4096 - 64 * 13
    assert tile_major["empty"] == 4096 - (2 * 2 + 6 * 3) ** 2


def test_sliding_tiles_are_full_or_empty() -> None:
    plain, tiled = grids((4, 16, 16), (2, 4, 8))
    row_major, tile_major = (
        ad.attention(mask_mod=sliding_tiles(grid, (2, 4, 8), (1, 3, 1))).plan(1024, block=(64, 64)).counts
        for grid in (plain, tiled)
    )
    assert tile_major == {"full": 2 * 4 * 2 * 3, "partial": 0, "empty": 16 * 16 - 48}
    assert row_major["full"] == 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data(), counts=st.tuples(*[st.integers(1, 3)] * 3), tile=st.tuples(*[st.integers(1, 4)] * 3))
def test_plans_in_storage_order_are_sound(data: st.DataObject, counts: Sizes, tile: Sizes) -> None:
    sizes = tuple(count * side for count, side in zip(counts, tile, strict=True))
    _, tiled = grids(sizes, tile)
    reach, start = data.draw(st.integers(0, 4)), data.draw(st.integers(-9, 40))
    order = GridOrder(sizes, tile)

    def mask(q_idx, kv_idx):  # type: ignore[no-untyped-def]
        near = abs(tiled(q_idx).x - tiled(kv_idx).x + tiled(q_idx).t) <= reach
        return near & (tiled(q_idx).y >= tiled(kv_idx).y) | (kv_idx - q_idx > start)

    subject, length = ad.attention(mask_mod=mask), tiled.length
    assert subject.variant.order == (order if order.moves else None)
    block = data.draw(st.tuples(st.sampled_from([4, 7, 16]), st.sampled_from([4, 9, 16])))
    live = live_pairs(subject.variant, subject._values(), batch=1, heads=1, q_len=length, kv_len=length)[0, 0]
    live = live[stored(order)][:, stored(order)]
    for (row, column), found in np.ndenumerate(subject.plan(length, block=block).classes()[0, 0].numpy()):
        pairs = live[row * block[0] :][: block[0], column * block[1] :][:, : block[1]]
        assert found != 0 or not pairs.any()
        assert found != 2 or pairs.all()


def test_explain(golden: Callable[..., None]) -> None:
    _, tiled = grids((64, 64), (8, 8))
    found = ad.attention(mask_mod=neighborhood(tiled, 13)).explain(4096, head_dim=64, block=(64, 64))
    assert found.nbytes["copies"] == 2 * 4 * 4096 * 64 * 2
    text = str(found)
    golden(text[: text.index("proofs")], "explain", name="token-order")


def test_only_whole_grids_are_called() -> None:
    _, tiled = grids((4, 6), (2, 3))
    subject = ad.attention(mask_mod=lambda q_idx, kv_idx: tiled(q_idx).x == tiled(kv_idx).x)
    q, k = torch.zeros(1, 1, 12, 4), torch.zeros(1, 1, 24, 4)
    with pytest.raises(CallError, match="all 24 of the grid, one for each query"):
        subject(q, k, k)
    with pytest.raises(CallError, match="so the first query is at position 0"):
        subject(k, k, k, q_offset=-1)
    with pytest.raises(CallError, match="one for each query"):
        subject.plan(12, 24)


def tensors(length: int, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, 4, length, 16), (2, 2, length, 16), (2, 2, length, 24))
    q, k, v = (torch.randn(shape, generator=generator, **how) for shape in shapes)
    return q, k, v


def documents(length: int) -> Any:
    doc = torch.arange(length) // 7
    bias = torch.linspace(-1, 1, length)

    def same(q_idx, kv_idx):  # type: ignore[no-untyped-def]
        return (doc[q_idx] == doc[kv_idx]) | (kv_idx + 5 <= q_idx)

    def score(score, h, q_idx, kv_idx):  # type: ignore[no-untyped-def]
        return score + bias[kv_idx] * (q_idx - kv_idx) / (h + 8)

    return same, score


class TestKernels:
    pytestmark = interpreted

    @pytest.mark.parametrize("sizes,tile", [((8, 12), (4, 4)), ((4, 4, 6), (2, 2, 3))])
    def test_neighbourhoods(self, sizes: Sizes, tile: Sizes) -> None:
        _, tiled = grids(sizes, tile)
        self.check(ad.attention(mask_mod=neighborhood(tiled, 3)), prod(sizes))

    def test_captured_tensors_and_scores_stay_with_their_positions(self) -> None:
        _, tiled = grids((8, 6), (4, 3))
        same, score = documents(48)

        def mask(q_idx, kv_idx):  # type: ignore[no-untyped-def]
            return same(q_idx, kv_idx) & (tiled(q_idx).y >= 2)

        self.check(ad.attention(mask_mod=mask, score_mod=score, normalizer=ad.normalizers.softmax()), 48)

    def test_a_variant_without_positions(self) -> None:
        self.check(ad.parse("attention a { grid g(y = 8, x = 6) tile (4, 3) }").a.bind(), 48)

    def test_tables_of_blocks_are_over_positions(self) -> None:
        _, tiled = grids((8, 8), (4, 4))
        subject = ad.attention(mask_mod=lambda q_idx, kv_idx: abs(tiled(q_idx).x - tiled(kv_idx).x) <= 2)
        live = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.6
        self.check(subject, 64, blocks=ad.BlockTable(live, (16, 16)))

    @staticmethod
    def check(subject: ad.Attention, length: int, **how: Any) -> None:
        assert subject.variant.order is not None
        q, k, v = tensors(length)
        out, aux = subject(q, k, v, enable_gqa=True, return_aux=True, backend="triton", **how)
        exact = [tensor.double() for tensor in (q, k, v)]
        expected, rows = subject.reference(*exact, enable_gqa=True, return_aux=True, **how)
        assert_rows_close(out, expected, 2e-4)
        assert_rows_close(aux.lse[..., None], rows.lse[..., None], 2e-4)
        assert_rows_close(aux.max_score[..., None], rows.max_score[..., None], 2e-4)
