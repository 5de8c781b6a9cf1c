"""Block lists in emitted kernels: forward, and backward, where tiles are walked from the keys."""

from __future__ import annotations

from typing import Any

import flexing
import pytest
import torch
from compare import assert_rows_close
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, noop_mask

import attndsl as ad
from attndsl.integrations.block_masks import with_blocks
from attndsl.integrations.traces import traced

pytestmark = pytest.mark.interpreter

SIZES = (2, 2, 70, 90)


def causal(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return kv <= q


def by_head(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return q - kv < 9 * (h + 1)


def handmade(mask_mod: Any, counts: tuple[int, int], block: tuple[int, int], has_full: bool) -> BlockMask:
    shape = (*counts, *(-(-size // side) for size, side in zip(SIZES[2:], block, strict=True)))
    kind = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(2))
    kind[..., -1, :] = 0  # queries that see nothing
    full = flexing.ordered(kind == 2) if has_full else (None, None)
    return BlockMask.from_kv_blocks(
        *flexing.ordered(kind == 1), *full, BLOCK_SIZE=block, mask_mod=mask_mod, seq_lengths=SIZES[2:]
    )


@pytest.mark.parametrize(
    "block_mask",
    [
        create_block_mask(causal, None, None, *SIZES[2:], device="cpu", BLOCK_SIZE=32),
        handmade(causal, (1, 1), (16, 32), True),
        handmade(causal, (1, 1), (32, 32), False),
        handmade(noop_mask, (2, 1), (24, 40), True),
        handmade(by_head, (2, 2), (32, 16), True),
    ],
    ids=["implied", "full", "partial", "odd blocks", "all differ"],
)
def test_kernels_see_what_is_listed(block_mask: BlockMask) -> None:
    def score_mod(table: torch.Tensor) -> Any:
        return lambda score, b, h, q_idx, kv_idx: score + table[q_idx - kv_idx + 89]

    given = [*flexing.inputs(SIZES, dtype=torch.float32), flexing.normal(160, seed=4).requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in given]
    out, aux = ad.flex_attention(*given[:3], score_mod(given[3]), block_mask, return_aux=ad.AuxRequest(lse=True))
    wanted, lse, _ = flexing.dense(*exact[:3], score_mod(exact[3]), block_mask)
    assert_rows_close(out, wanted, 1e-5)
    assert_rows_close(aux.lse[..., None], lse[..., None], 1e-5)
    upstream = flexing.normal(*out.shape, seed=7)
    found = torch.autograd.grad(out, given, upstream)
    for one, other in zip(found, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        assert_rows_close(one, other, 1e-5)


def test_full_tiles_pay_no_mask() -> None:
    """Blocks listed as full beside partial ones: the plan has all three kinds, and the kernel a loop for each."""
    block_mask = handmade(causal, (1, 1), (32, 32), True)
    joined = with_blocks(traced(None, causal), block_mask, (1, 1, *SIZES[2:])).attention
    counts = joined.plan(*SIZES[2:], block=(32, 32)).counts
    assert counts["empty"] >= 3
    assert counts["full"] >= 2
    assert "full_blocks" in joined.source().split("# Full tiles")[0]
    assert "full_blocks" not in joined.source().split("# Full tiles")[1].split("\n\n")[0]
