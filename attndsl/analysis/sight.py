"""Tiles looked at more closely than ranges of whole tiles can: what is known of them, and how parts of them are seen.

In: a mask, a `Tiling`, tiles. Out: `Scene.truths`, the mask on boxes that are parts of the tiles, and `Sight`, what
these show of the tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attndsl.analysis.intervals import Evaluation
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Interval, Truth
from attndsl.ir.nodes import Expr

EMPTY, PARTIAL, FULL = 0, 1, 2
BOXES_AT_ONCE = 2**14
GRIDS_AT_ONCE = 2**11
"""Enough to drown the overhead, few enough to stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """Of tiles whether a live pair and whether a dead one can be there, and whether one was found: bool [2, tiles]."""

    can: Array
    has: Array

    @property
    def is_open(self) -> Array:
        """Tiles that may be empty, or full, for all that is known."""
        return np.asarray(self.can.all(axis=0) & ~self.has.all(axis=0))

    @property
    def classes(self) -> Array:
        """Empty, partial or full; what is open counts as partial."""
        live, dead = self.can
        return np.where(live, np.where(dead, PARTIAL, FULL), EMPTY)

    @staticmethod
    def none(tiles: int) -> Sight:
        """Nothing is known."""
        return Sight(np.ones((2, tiles), bool), np.zeros((2, tiles), bool))

    def joined(self, chosen: Array, found: Sight) -> Sight:
        """With what was found of the chosen tiles when they were looked at again."""
        can, has = self.can.copy(), self.has.copy()
        can[:, chosen] &= found.can
        has[:, chosen] |= found.has
        return Sight(can, has)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Tiles (b, h, row, column) under a mask; `evaluation` is the mask's over the call."""

    mask: Expr
    evaluation: Evaluation
    tiling: Tiling
    tiles: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.tiles[0])

    def only(self, chosen: Array | slice) -> Scene:
        return Scene(self.mask, self.evaluation, self.tiling, tuple(place[chosen] for place in self.tiles))

    @property
    def sides(self) -> tuple[Interval, Interval]:
        """The positions of the queries and the keys of each tile."""
        batch, _, row, column = self.tiles
        return self.tiling.sides(batch, row, column)

    def truths(self, tile: Array, queries: Interval, keys: Interval) -> tuple[Array, Array]:
        """Whether the mask can be true, and whether it can be false, on boxes that are parts of tiles: [boxes]."""
        can = np.empty((2, len(tile)), bool)
        for start in range(0, len(tile), BOXES_AT_ONCE):
            part = slice(start, start + BOXES_AT_ONCE)
            at = np.s_[None, None, None, part]
            sides = (Interval(side.lo[at], side.hi[at]) for side in (queries, keys))
            can[:, part] = self._seen(tile[part].reshape(1, 1, 1, -1), *sides)[:, 0, 0, 0]
        return can[0], can[1]

    def grids(self, tile: Array, queries: Array, keys: Array) -> tuple[Array, Array]:
        """The same of single pairs: in boxes, those of some queries [boxes, M] and keys [boxes, N], [boxes, M, N]."""
        can = np.empty((2, *queries.shape, keys.shape[1]), bool)
        for start in range(0, len(tile), GRIDS_AT_ONCE):
            part = slice(start, start + GRIDS_AT_ONCE)
            q, k = queries[None, part, :, None], keys[None, part, None, :]
            can[:, part] = self._seen(tile[part].reshape(1, -1, 1, 1), Interval(q, q), Interval(k, k))[:, 0]
        return can[0], can[1]

    def _seen(self, tile: Array, queries: Interval, keys: Interval) -> Array:
        """What the mask can be, true and false, where these arrays meet."""
        b, h = (place[tile] for place in self.tiles[:2])
        truth = self.evaluation.of(self.tiling.boxes(b, h, queries, keys))[self.mask]
        assert isinstance(truth, Truth)
        shape = np.broadcast_shapes(tile.shape, queries.lo.shape, keys.lo.shape)
        return np.stack([np.broadcast_to(can, shape) for can in (truth.can_be_true, truth.can_be_false)])
