"""What a user passes as `blocks=`, as the table of one call.

In: a `BlockTable`, torch's `BlockMask`, a router, and the call. Out: a `BlockTable` that fits the call.
"""

from __future__ import annotations

from typing import Any

from torch.nn.attention.flex_attention import BlockMask

from attndsl.diagnostics import CallError, fail
from attndsl.routing.router import Routing
from attndsl.routing.table import BlockTable
from attndsl.runtime.arguments import Call

KINDS = "a `BlockTable`, a torch `BlockMask` or a router"


def table_of_call(blocks: Any, call: Call, enable_gqa: bool) -> BlockTable:
    """The table for a call; a router is asked for the one of these q and k."""
    if isinstance(blocks, Routing):
        return blocks(call.q, call.k, scale=call.scale, enable_gqa=enable_gqa, q_offset=call.q_offset)
    table = _table(blocks)
    table.check_fits(call.batch, call.heads, call.q_len, call.kv_len, call.q.device)
    return table


def table_of_plan(blocks: Any, batch: int, heads: int, q_len: int, kv_len: int) -> BlockTable:
    """The table for a plan, which has lengths and no tensors."""
    if isinstance(blocks, Routing):
        message = "a plan has no q and k to route"
        raise fail(CallError, "router-without-tensors", message, None, help="pass the table: `blocks=route(q, k)`")
    table = _table(blocks)
    table.check_fits(batch, heads, q_len, kv_len)
    return table


def _table(blocks: Any) -> BlockTable:
    match blocks:
        case BlockTable():
            return blocks
        case BlockMask():
            return BlockTable.from_block_mask(blocks)
        case _:
            message = f"`blocks` is a {type(blocks).__name__}, expected {KINDS}"
            help_ = "make one: `ad.BlockTable(live, block=(64, 64))` from a bool map of blocks"
            raise fail(CallError, "bad-blocks", message, None, help=help_)
