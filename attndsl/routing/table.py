"""A block table: which blocks of keys the blocks of queries of one call may see.

In: a block map, lists of blocks, or FlexAttention's `BlockMask`. Out: a `BlockTable`, which `attn(..., blocks=table)`
intersects with the variant's mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter
from attndsl.routing.lists import check_lists, listed_blocks


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """`BlockTable(live, block=(64, 64))`: pair (b, h, i, j) is allowed where `live[b, h, i // 64, j // 64]` is true.

    `live` is a bool tensor [B or 1, H or 1, ceil(q_len / bq), ceil(kv_len / bk)]. i counts the queries of the call from
    0, whatever `q_offset` is; j counts keys. `bq = 1` routes every query on its own. Where blocks of keys are not
    stretches of keys, an int tensor [kv_len] takes the place of `bk`: the block of every key.

    A query that may see no block is a row without live keys: its output is 0. A table in which all are is no error.
    """

    live: Tensor
    block: tuple[int, int | Tensor]

    def __post_init__(self) -> None:
        reporter = Reporter(CallError)
        _check_live(reporter, self.live)
        check_block(reporter, self.block)
        reporter.check()

    @classmethod
    def from_indices(cls, indices: Tensor, counts: Tensor, block: tuple[int, int], kv_blocks: int) -> BlockTable:
        """From lists: query block (b, h, r) sees the blocks `indices[b, h, r, :counts[b, h, r]]` of `kv_blocks`.

        `indices` is an int tensor [B or 1, H or 1, query blocks, M], `counts` [B or 1, H or 1, query blocks]. What
        stands beyond the counts is ignored; a count may be 0. A block listed twice or out of range is an error.
        """
        check_lists(indices, counts, kv_blocks)
        return cls(listed_blocks(indices, counts, kv_blocks), block)

    @classmethod
    def from_block_mask(cls, block_mask: Any) -> BlockTable:
        """From torch's `BlockMask`: its partial and its full blocks alike.

        The lists alone are taken, its `mask_mod` is not: an attention intersects them with its own mask, in full
        blocks too. (`flex_attention` is where a `BlockMask` means all that it means in torch.)
        """
        bq, bk = block_mask.BLOCK_SIZE
        kv_blocks = -(-block_mask.seq_lengths[1] // bk)
        lists = [(block_mask.kv_indices, block_mask.kv_num_blocks)]
        if block_mask.full_kv_num_blocks is not None:
            lists.append((block_mask.full_kv_indices, block_mask.full_kv_num_blocks))
        tables = [cls.from_indices(indices, counts, (bq, bk), kv_blocks).live for indices, counts in lists]
        return cls(tables[0] if len(tables) == 1 else tables[0] | tables[1], (bq, bk))

    @property
    def kv_blocks(self) -> int:
        """How many blocks of keys the table has."""
        return self.live.shape[3]

    def check_fits(self, batch: int, heads: int, q_len: int, kv_len: int, device: torch.device | None = None) -> None:
        """Raise every reason why a call of these sizes (on that device) cannot use the table."""
        reporter = Reporter(CallError)
        bq, bk = self.block
        found = dict(zip(("batch", "heads", "query blocks", "key blocks"), self.live.shape, strict=True))
        bound = (
            f"`blocks` {tuple(self.live.shape)}: " + ", ".join(f"{what} {size}" for what, size in found.items()),
            f"the call: batch {batch}, heads {heads}, q_len {q_len}, kv_len {kv_len}; "
            f"blocks of {bq} queries and {f'{bk} keys' if isinstance(bk, int) else 'listed keys'}",
        )
        wanted = {"batch": {1, batch}, "heads": {1, heads}, "query blocks": {-(-q_len // bq)}}
        if isinstance(bk, int):
            wanted["key blocks"] = {-(-kv_len // bk)}
        unfit = [
            f"{what} {found[what]}, not {' or '.join(map(str, sorted(sizes)))}"
            for what, sizes in wanted.items()
            if found[what] not in sizes
        ]
        if unfit:
            reporter.error("table-shape", f"`blocks` does not fit the call: {'; '.join(unfit)}", None, *bound)
        if isinstance(bk, Tensor):
            _check_key_blocks(reporter, bk, kv_len, self.kv_blocks)
        for name, tensor in (("live", self.live), ("block[1]", bk)):
            if isinstance(tensor, Tensor) and device is not None and tensor.device != device:
                message = f"`{name}` of `blocks` is on {tensor.device}, q, k and v on {device}"
                reporter.error("mixed-devices", message, help="move it there and make the table again")
        reporter.check()

    def __repr__(self) -> str:
        bq, bk = self.block
        return f"BlockTable({list(self.live.shape)}, block=({bq}, {bk if isinstance(bk, int) else list(bk.shape)}))"


def check_block(reporter: Reporter, block: Any) -> None:
    """Report a block shape that is none."""
    if not (isinstance(block, tuple) and len(block) == 2):
        message = f"`block` is {block!r}, expected a pair (queries, keys)"
        reporter.error("bad-block", message, help="write `block=(64, 64)`")
        return
    bq, bk = block
    if isinstance(bk, Tensor):
        if bk.dim() != 1 or bk.is_floating_point() or bk.is_complex() or bk.dtype is torch.bool:
            message = f"the blocks of keys have dtype {bk.dtype}, shape {tuple(bk.shape)}, expected integers (kv_len,)"
            reporter.error("bad-block", message)
        bk = 1
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in (bq, bk)):
        reporter.error("bad-block", f"`block` is {block!r}, expected positive integers", help="write `block=(64, 64)`")


def _check_live(reporter: Reporter, live: Any) -> None:
    shape = "(batch or 1, heads or 1, query blocks, key blocks)"
    if not isinstance(live, Tensor):
        reporter.error("not-a-tensor", f"`live` is a {type(live).__name__}, expected a bool tensor {shape}")
        return
    if live.dim() != 4:
        reporter.error("table-rank", f"`live` has shape {tuple(live.shape)}, expected {shape}")
    if live.dtype is not torch.bool:
        help_ = "block numbers belong in `BlockTable.from_indices`; for 0 and 1 write `live.bool()`"
        reporter.error("table-dtype", f"`live` has dtype {live.dtype}, expected torch.bool", help=help_)


def _check_key_blocks(reporter: Reporter, key_blocks: Tensor, kv_len: int, kv_blocks: int) -> None:
    if len(key_blocks) != kv_len:
        message = f"`blocks` places {len(key_blocks)} keys in blocks, the call has {kv_len}"
        reporter.error("table-shape", message)
    if len(key_blocks) and not (int(key_blocks.min()) >= 0 and int(key_blocks.max()) < kv_blocks):
        message = f"`blocks` places keys in blocks {int(key_blocks.min())} to {int(key_blocks.max())} of {kv_blocks}"
        reporter.error("block-out-of-range", message)
