"""What a call skips: the class of every tile, counted, drawn, exported.

In: a variant after the passes, the values of its parameters, lengths and tile shape. Out: a `BlockPlan`. Where bounds
on the key decide everything no tile is stored, and counting costs O(queries).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attndsl.analysis.bounds import KeyRange, Strategy, choose_strategy, key_ranges
from attndsl.analysis.classes import Classes, classify
from attndsl.analysis.intervals import Known
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array
from attndsl.ir.nodes import Expr
from attndsl.ir.variant import Variant
from attndsl.runtime.dense_tiles import look_at_pairs, on_device, pairs
from attndsl.runtime.known import Value, known_values
from attndsl.runtime.picture import draw
from attndsl.runtime.requirements import check_requirements
from attndsl.runtime.tables import build_table


@dataclass(frozen=True, slots=True, eq=False)
class BlockPlan:
    """Tiles of one call: 0 empty, 1 partial, 2 full, over [B', H', Tq, Tk]."""

    walk: Strategy
    reasons: tuple[str, ...]
    variant: Variant
    values: Mapping[str, Value]
    tiling: Tiling
    tiles: Classes

    @property
    def strategy(self) -> str:
        """ "closed_form", "table" or "dense": how a kernel knows which tiles to visit."""
        return self.walk.value

    @property
    def counts(self) -> dict[str, int]:
        """How many tiles are full, partial and empty."""
        return self.tiles.counts

    @property
    def sparsity(self) -> float:
        """The share of tiles that are skipped; 0 when there are none."""
        counts = self.counts
        return counts["empty"] / max(1, sum(counts.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of tables a kernel reads: closed forms have none, and a dense walk needs none."""
        if self.walk is not Strategy.TABLE:
            return 0
        return build_table(self.tiles, self.tiling, torch.device("cpu")).nbytes

    def classes(self) -> Tensor:
        """int8 [B', H', Tq, Tk]; B' and H' are 1 where the mask does not depend on them."""
        return torch.from_numpy(self.tiles.matrix())

    def block_mask(self) -> Any:
        """The plan as FlexAttention's `BlockMask`, partial and full blocks listed apart."""
        from torch.nn.attention.flex_attention import BlockMask

        classes = self.classes()
        full = classes == 2
        # A block that overhangs a length is not full for FlexAttention, whose full blocks are not clipped.
        full[:, :, self.tiling.q_len // self.tiling.block[0] :] = False
        full[..., self.tiling.kv_len // self.tiling.block[1] :] = False
        return BlockMask.from_kv_blocks(
            *_listed((classes != 0) & ~full),
            *_listed(full),
            BLOCK_SIZE=self.tiling.block,
            mask_mod=self._mask_mod(),
            seq_lengths=(self.tiling.q_len, self.tiling.kv_len),
        )

    def _mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        mask, tiling = self.variant.mask, self.tiling
        offsets = torch.from_numpy(tiling.q_offset)

        def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            offset = offsets.to(q_idx.device)
            position = q_idx + (offset[b] if len(offset) > 1 else offset[0])
            values = on_device(self.values, q_idx.device)
            return pairs(mask, values, (b, h, position, kv_idx), (tiling.q_len, tiling.kv_len))

        return mask_mod

    def plot(self, path: str | Path) -> None:
        """Write the picture to a file, PNG or SVG by its suffix; needs matplotlib, the extra `plot`."""
        # Its dependency is an extra, and drawing needs nothing else of what a plan needs.
        from attndsl.runtime.plot import plot

        plot(self, Path(path))

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        size = f"{self.tiling.q_len} x {self.tiling.kv_len} in tiles of {self.tiling.block[0]} x {self.tiling.block[1]}"
        lines = [f"{self.variant.name}: {size}, {self.strategy}", f"{counts}; sparsity {self.sparsity:.1%}"]
        return "\n".join([*lines, *draw(self.tiles, self.tiling)])


def plan_blocks(
    variant: Variant,
    values: Mapping[str, Value],
    q_len: int,
    kv_len: int,
    *,
    batch: int = 1,
    heads: int = 1,
    block: tuple[int, int] = (128, 128),
    q_offset: int | Tensor = 0,
    exact: bool = False,
    known: Known | None = None,
) -> BlockPlan:
    """Classify every tile. `exact` looks pair by pair at the tiles that analysis leaves open.

    `known` hands in what the caller keeps of the values (summaries of captured tensors).
    """
    check_requirements(variant, values, q_len, kv_len, q_offset)
    offsets = offsets_of(q_offset)
    tiling = Tiling(batch, heads, q_len, kv_len, block, offsets).reduced(variant.mask)
    known = known_values(variant, values) if known is None else known
    tiles = classify(variant.mask, tiling, known)
    if exact and not tiles.exact:
        host = on_device(values, torch.device("cpu"))
        tiles = tiles.settled(lambda open_: (look_at_pairs(variant.mask, host, tiling, open_), True))
    strategy = choose_strategy(variant.mask)
    if strategy is Strategy.TABLE and tiles.counts["partial"] == prod(tiling.shape):
        strategy = Strategy.DENSE
    return BlockPlan(strategy, _reasons(variant.mask, tiles.exact), variant, values, tiling, tiles)


def offsets_of(q_offset: int | Tensor) -> Array:
    """One, or one for each batch."""
    if isinstance(q_offset, Tensor):
        return np.asarray(q_offset.to("cpu", torch.int64).reshape(-1).numpy())
    return np.array([q_offset], np.int64)


@lru_cache(maxsize=256)
def _reasons(mask: Expr, is_exact: bool) -> tuple[str, ...]:
    """What was found, in the words of the program."""
    ranges = key_ranges(mask)
    reasons = [reason for keys in ranges for reason in _of_range(keys)]
    if len(ranges) > 1:
        reasons.insert(0, f"a union of {len(ranges)} ranges of keys")
    if not reasons:
        reasons.append("nothing is masked")
    if not is_exact:
        reasons.append("tiles that ranges cannot decide count as partial")
    return tuple(reasons)


def _of_range(keys: KeyRange) -> list[str]:
    return [
        *(f"keys start at `{_text(end)}`" for end in keys.lower),
        *(f"keys end at `{_text(end)}`" for end in keys.upper),
        *(f"only rows where `{_text(gate)}`" for gate in keys.gates),
        *(f"`{_text(rest)}` does not bound the key: decided tile by tile from ranges" for rest in keys.residue),
    ]


def _text(expr: Expr) -> str:
    from attndsl.ir.printer import print_expr

    return print_expr(expr).replace("\n", "; ")


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and their columns in ascending order followed by the others."""
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1).to(torch.int32), order.to(torch.int32)
