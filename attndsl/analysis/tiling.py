"""The tiles and rows of a call as boxes for interval analysis.

In: lengths, tile shape, query offsets. Out: a `Box` whose arrays have one entry per tile (or per row), clipped to the
lengths: the last tile of a length is as short as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from attndsl.analysis.axes import axes_of
from attndsl.analysis.intervals import Box, whole
from attndsl.analysis.values import Array, Interval
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Axis, Coordinate


@dataclass(frozen=True, slots=True, eq=False)
class Tiling:
    """Tiles of `block` = (queries, keys); `q_offset` holds one offset, or one per batch."""

    batch: int
    heads: int
    q_len: int
    kv_len: int
    block: tuple[int, int]
    q_offset: Array

    @property
    def q_tiles(self) -> int:
        return -(-self.q_len // self.block[0])

    @property
    def kv_tiles(self) -> int:
        return -(-self.kv_len // self.block[1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.heads, self.q_tiles, self.kv_tiles)

    def reduced(self, mask: Expr) -> Tiling:
        """The tiling with one batch or head standing for all where the mask does not depend on them."""
        axes = axes_of(mask)
        offsets_matter = Axis.Q in axes and bool((self.q_offset != self.q_offset[:1]).any())
        by_batch = Axis.B in axes or offsets_matter
        return replace(
            self,
            batch=self.batch if by_batch else min(self.batch, 1),
            heads=self.heads if Axis.H in axes else min(self.heads, 1),
            q_offset=self.q_offset if offsets_matter else self.q_offset[:1],
        )

    @property
    def whole(self) -> Box:
        """All pairs, as one box in Python integers."""
        first, last = int(self.q_offset.min()), int(self.q_offset.max()) + self.q_len - 1
        return whole(
            {
                Coordinate.B: (0, self.batch - 1),
                Coordinate.H: (0, self.heads - 1),
                Coordinate.Q_IDX: (first, last),
                Coordinate.KV_IDX: (0, self.kv_len - 1),
                Coordinate.Q_LEN: (self.q_len, self.q_len),
                Coordinate.KV_LEN: (self.kv_len, self.kv_len),
            }
        )

    def sides(self, batch: Array, row: Array, column: Array) -> tuple[Interval, Interval]:
        """The positions of the queries and of the keys of tiles."""
        ends = ((row, self.block[0], self.q_len), (column, self.block[1], self.kv_len))
        (first, last), keys = ((at * size, np.minimum(at * size + size, length) - 1) for at, size, length in ends)
        offset = self.q_offset[batch] if len(self.q_offset) > 1 else self.q_offset[0]
        return Interval(first + offset, last + offset), Interval(*keys)

    def boxes(self, batch: Array, head: Array, queries: Interval, keys: Interval) -> Box:
        """Boxes of pairs by their sides, arrays of four dimensions."""
        return Box(
            {
                Coordinate.B: _points(batch),
                Coordinate.H: _points(head),
                Coordinate.Q_IDX: queries,
                Coordinate.KV_IDX: keys,
                Coordinate.Q_LEN: _points(np.full((1, 1, 1, 1), self.q_len)),
                Coordinate.KV_LEN: _points(np.full((1, 1, 1, 1), self.kv_len)),
            }
        )

    def tiles(self, rows: slice, columns: slice) -> Box:
        """The tiles of a stretch of tile rows and columns."""
        return self._box(
            _stretches(rows, self.block[0], self.q_len).reshape(2, 1, 1, -1, 1),
            _stretches(columns, self.block[1], self.kv_len).reshape(2, 1, 1, 1, -1),
        )

    def rows(self, start: int, stop: int) -> Box:
        """Single queries, each over all keys."""
        queries = np.arange(start, stop).reshape(1, 1, 1, -1, 1)
        return self._box(queries, np.array([0, self.kv_len - 1]).reshape(2, 1, 1, 1, 1))

    def _box(self, queries: Array, keys: Array) -> Box:
        offset = self.q_offset.reshape(-1, 1, 1, 1)
        first = queries[0] + offset
        positions = Interval(first, first if len(queries) == 1 else queries[1] + offset)
        batch, head = np.arange(self.batch).reshape(-1, 1, 1, 1), np.arange(self.heads).reshape(1, -1, 1, 1)
        return self.boxes(batch, head, positions, Interval(keys[0], keys[1]))


def _stretches(tiles: slice, size: int, length: int) -> Array:
    """First and last index of each tile, clipped to the length."""
    first = np.arange(tiles.start, tiles.stop) * size
    return np.stack([first, np.minimum(first + size, length) - 1])


def _points(array: Array) -> Interval:
    return Interval(array, array)
