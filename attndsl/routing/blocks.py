"""Where the blocks of a call lie: the keys of every block, and how blocks stand to the positions of queries.

In: block shape, lengths, position of the first query. Out: `Blocks`, whose bool maps broadcast to [B', 1, query blocks,
key blocks].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """`query_tokens` and `key_tokens` [blocks, largest] are the tokens of every block, -1 where a block has fewer;
    `key_block` [kv_len] is the block of every key; `q_first`, `q_last` [B', query blocks] are the positions of the
    first and last query of every query block."""

    query_tokens: Tensor
    key_tokens: Tensor
    key_block: Tensor
    q_first: Tensor
    q_last: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """How many blocks of queries and of keys there are."""
        return len(self.query_tokens), len(self.key_tokens)

    def columns(self) -> Tensor:
        """The numbers of the key blocks."""
        return torch.arange(len(self.key_tokens), device=self.key_block.device)

    def own(self) -> tuple[Tensor, Tensor]:
        """The blocks of the first and the last query's own positions, as [B', 1, query blocks, 1].

        Where blocks are stretches of keys; beyond the keys there is no block, and the numbers say so.
        """
        return self._own(self.q_first), self._own(self.q_last)

    def diagonal(self) -> Tensor:
        """Blocks that hold the own position of some query of the block of queries."""
        first, last = self.own()
        return (self.columns() >= first) & (self.columns() <= last)

    def future(self) -> Tensor:
        """Blocks all of whose keys come after every query of the block of queries."""
        return self.columns() > self.own()[1]

    def _own(self, position: Tensor) -> Tensor:
        length = len(self.key_block)
        if length == 0:
            block = torch.full_like(position, -1)
        else:
            inside = self.key_block.long()[position.clamp(0, length - 1)]
            block = torch.where(position < 0, -1, torch.where(position < length, inside, len(self.key_tokens)))
        return block[:, None, :, None]


def blocks_of(
    block: tuple[int, int | Tensor], q_len: int, kv_len: int, q_offset: int | Tensor, device: torch.device
) -> Blocks:
    """The blocks of a call."""
    queries, keys = block
    query_tokens = stretches(q_len, queries, device)
    if isinstance(keys, Tensor):
        key_block = keys.to(device)
        key_tokens = members(key_block, int(keys.max()) + 1 if len(keys) else 0)
    else:
        key_block = torch.arange(kv_len, device=device) // keys
        key_tokens = stretches(kv_len, keys, device)
    start = torch.arange(len(query_tokens), device=device) * queries
    last = (start + queries).clamp(max=q_len) - 1
    offset = torch.as_tensor(q_offset, device=device).reshape(-1, 1).long()
    return Blocks(query_tokens, key_tokens, key_block, start + offset, last + offset)


def stretches(length: int, size: int, device: torch.device) -> Tensor:
    """The tokens of each block of `size` tokens in a row, [blocks, size]; -1 beyond the length."""
    tokens = torch.arange(-(-length // size) * size, device=device).view(-1, size)
    return torch.where(tokens < length, tokens, -1)


def members(block_of: Tensor, blocks: int) -> Tensor:
    """The tokens of each listed block in ascending order, [blocks, largest]; -1 where a block has fewer."""
    counts = torch.bincount(block_of.long(), minlength=blocks)
    order = torch.argsort(block_of, stable=True)
    starts = counts.cumsum(0) - counts
    places = torch.arange(int(counts.max()) if blocks else 0, device=block_of.device)
    at = (starts[:, None] + places).clamp(max=max(len(order) - 1, 0))
    found = order[at] if len(order) else at
    return torch.where(places < counts[:, None], found, -1)
