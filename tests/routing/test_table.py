"""Block tables: how they are made, and every way of making one wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import attndsl as ad

LIVE = torch.ones(2, 3, 4, 5, dtype=torch.bool)
INDICES = torch.tensor([[[[0, 2, 9], [1, 0, 2], [7, 7, 7]]]])
COUNTS = torch.tensor([[[2, 3, 0]]])


def test_lists_say_what_their_counts_cover() -> None:
    table = ad.BlockTable.from_indices(INDICES, COUNTS, (16, 16), 3)
    assert table.live.tolist() == [[[[True, False, True], [True, True, True], [False, False, False]]]]
    assert table.block == (16, 16)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
def test_random_lists_against_loops(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    orders = torch.stack([torch.randperm(6, generator=generator) for _ in range(2 * 3 * 4)]).view(2, 3, 4, 6)
    counts = torch.randint(0, 7, (2, 3, 4), generator=generator)
    table = ad.BlockTable.from_indices(orders.to(dtype), counts.to(dtype), (8, 8), 6)
    for b in range(2):
        for h in range(3):
            for row in range(4):
                listed = set(orders[b, h, row, : int(counts[b, h, row])].tolist())
                assert table.live[b, h, row].tolist() == [block in listed for block in range(6)]


@pytest.mark.parametrize("kv_blocks, most", [(0, 0), (0, 3), (5, 0)])
def test_lists_without_blocks_are_empty_rows(kv_blocks: int, most: int) -> None:
    indices = torch.zeros(1, 1, 2, most, dtype=torch.int64)
    table = ad.BlockTable.from_indices(indices, torch.zeros(1, 1, 2, dtype=torch.int64), (8, 8), kv_blocks)
    assert table.live.shape == (1, 1, 2, kv_blocks)
    assert not table.live.any()


@pytest.mark.parametrize("lengths", [(256, 256), (200, 300)])
def test_a_block_mask_gives_both_its_lists(lengths: tuple[int, int]) -> None:
    def window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < 100 + 50 * h)

    mask = create_block_mask(window, None, 2, *lengths, device="cpu", BLOCK_SIZE=(64, 32))
    table = ad.BlockTable.from_block_mask(mask)
    assert table.block == (64, 32)
    assert (table.live == mask.to_dense().bool()).all()
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_num_blocks.any()


def test_a_block_mask_without_full_blocks() -> None:
    mask = BlockMask.from_kv_blocks(torch.tensor([[[1, 2]]]), torch.tensor([[[[1, 0], [0, 1]]]]), BLOCK_SIZE=16)
    assert ad.BlockTable.from_block_mask(mask).live.tolist() == [[[[False, True], [True, True]]]]


def test_a_table_is_printed_by_its_shape() -> None:
    assert repr(ad.BlockTable(LIVE, (1, 64))) == "BlockTable([2, 3, 4, 5], block=(1, 64))"
    assert repr(ad.BlockTable(LIVE, (1, torch.zeros(9, dtype=torch.int64)))) == (
        "BlockTable([2, 3, 4, 5], block=(1, [9]))"
    )


def fits(table: ad.BlockTable, *sizes: int) -> Callable[[], Any]:
    return lambda: table.check_fits(*sizes)


def lists(indices: Any = INDICES, counts: Any = COUNTS, kv_blocks: Any = 3) -> Callable[[], Any]:
    return lambda: ad.BlockTable.from_indices(indices, counts, (16, 16), kv_blocks)


MISTAKES: dict[str, Callable[[], Any]] = {
    "live-not-a-tensor": lambda: ad.BlockTable([[True]], (16, 16)),  # type: ignore[arg-type]
    "live-rank-and-dtype": lambda: ad.BlockTable(torch.ones(4, 5), (16, 16)),
    "block-not-a-pair": lambda: ad.BlockTable(LIVE, 64),  # type: ignore[arg-type]
    "block-not-positive": lambda: ad.BlockTable(LIVE, (0, 64)),
    "key-blocks-of-floats": lambda: ad.BlockTable(LIVE, (1, torch.ones(9))),
    "lists-not-tensors": lists([0], 3, -1),
    "lists-of-floats": lists(INDICES.float(), COUNTS > 0),
    "lists-of-other-shapes": lists(INDICES, COUNTS[0]),
    "count-beyond-table": lists(counts=torch.tensor([[[2, 4, 0]]])),
    "count-negative": lists(counts=torch.tensor([[[2, -1, 0]]])),
    "block-out-of-range": lists(kv_blocks=2),
    "block-negative": lists(INDICES - 1),
    "duplicate-block": lists(torch.tensor([[[[0, 2, 9], [2, 0, 2], [7, 7, 7]]]])),
    "all-axes-mismatch": fits(ad.BlockTable(LIVE, (64, 32)), 4, 6, 300, 100),
    "key-blocks-of-another-length": fits(
        ad.BlockTable(torch.ones(1, 1, 9, 2, dtype=torch.bool), (1, torch.arange(9))), 1, 1, 9, 10
    ),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistake(mistake: str, golden: Callable[..., None]) -> None:
    with pytest.raises(ad.DiagnosticError) as error:
        MISTAKES[mistake]()
    golden(str(error.value), "routing")


def test_devices_are_compared() -> None:
    live = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    with pytest.raises(ad.DiagnosticError, match=r"mixed-devices.*on meta, q, k and v on cpu"):
        ad.BlockTable(live, (64, 64)).check_fits(1, 1, 64, 64, torch.device("cpu"))
    with pytest.raises(ad.DiagnosticError, match="mixed-devices"):
        ad.BlockTable.from_indices(INDICES.to("meta"), COUNTS, (64, 64), 3)
