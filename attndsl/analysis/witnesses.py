"""Tiles that ranges leave open, settled by pairs: each is cut up until a live pair and a dead one are found in it, or
shown not to be there.

In: tiles under a mask over integers. Out: a `Sight`. A tile with many pairs of both kinds shows them among the few that
are looked at first; only one that has few of a kind is cut far. Small boxes are looked at pair by pair, so cutting
comes to an end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attndsl.analysis.sight import Scene, Sight
from attndsl.analysis.values import Array, Interval

PARTS = 4
"""A box is cut into this many along each axis."""
QUERIES = np.array([0.0, 0.17, 0.29, 0.41, 0.58, 0.69, 0.83, 1.0])
KEYS = np.array([0.0, 0.13, 0.26, 0.44, 0.54, 0.72, 0.87, 1.0])
"""Where in a box the queries and the keys lie that are looked at together; of a small one all are. They are not evenly
spaced: pairs that repeat at a distance (dilation, rows of a grid) are neither all missed nor all hit."""
CORNERS = np.array([0.0, 1.0])
"""What is looked at first: most boundaries leave some corner on the other side."""
SAMPLES = len(QUERIES)
MAX_BOXES = 2**15
"""Boxes of one size that are looked at: the tiles of those beyond stay open."""
SPREAD = np.array([0.0, 0.62, 0.24, 0.85, 0.47, 0.09, 0.71, 1.0])
"""Where in its eighth of a side each sample lies: the ends of the side, and no two as far from the start as each other.
Pairs that repeat at a distance (dilation, rows of a grid) are not all missed, or all hit."""


@dataclass(frozen=True, slots=True, eq=False)
class _Boxes:
    """Boxes of pairs; `tile` says which tile each is a part of, `q` and `k` are positions."""

    tile: Array
    q: Interval
    k: Interval

    def where(self, chosen: Array | slice) -> _Boxes:
        q, k = (Interval(side.lo[chosen], side.hi[chosen]) for side in (self.q, self.k))
        return _Boxes(self.tile[chosen], q, k)

    @property
    def are_small(self) -> Array:
        """Boxes of which every pair is a sample."""
        return np.asarray((self.q.hi - self.q.lo < SAMPLES) & (self.k.hi - self.k.lo < SAMPLES))

    def cut(self) -> _Boxes:
        """The parts of the boxes; those of a box stay together."""
        q, k = _parts(self.q), _parts(self.k)
        box, row, column = np.nonzero((q.lo <= q.hi)[:, :, None] & (k.lo <= k.hi)[:, None, :])
        rows, columns = Interval(q.lo[box, row], q.hi[box, row]), Interval(k.lo[box, column], k.hi[box, column])
        return _Boxes(self.tile[box], rows, columns)


def settle(scene: Scene) -> Sight:
    """What the tiles are; nothing in their mask may be computed with floats."""
    boxes = _Boxes(np.arange(len(scene)), *scene.sides)
    has, left = np.zeros((2, len(scene)), bool), np.zeros(len(scene), bool)
    _sampled(scene, boxes, (CORNERS, CORNERS), has)
    boxes = _open(boxes, has)
    while len(boxes.tile):
        left[boxes.tile[MAX_BOXES:]] = True
        boxes = boxes.where(slice(0, MAX_BOXES))
        are_small, doubtful = boxes.are_small, _sampled(scene, boxes, (QUERIES, KEYS), has)
        left[boxes.tile[are_small & doubtful]] = True
        boxes = _open(boxes.where(~are_small), has).cut()
        live, dead = scene.truths(boxes.tile, boxes.q, boxes.k)
        _note(has, boxes.tile, ~dead, ~live)
        boxes = _open(boxes.where(live & dead), has)
    return Sight(has | left, has)


def _sampled(scene: Scene, boxes: _Boxes, places: tuple[Array, Array], has: Array) -> Array:
    """Look at samples of boxes; those of which some sample can be both live and dead."""
    live, dead = scene.grids(boxes.tile, *map(_samples, (boxes.q, boxes.k), places))
    _note(has, boxes.tile, *(np.asarray(some.any(axis=(1, 2))) for some in (live & ~dead, dead & ~live)))
    return np.asarray((live & dead).any(axis=(1, 2)))


def _note(has: Array, tile: Array, live: Array, dead: Array) -> None:
    has[0, tile[live]] = True
    has[1, tile[dead]] = True


def _open(boxes: _Boxes, has: Array) -> _Boxes:
    """Boxes of tiles in which one kind of pairs was not found yet."""
    return boxes.where(~(has[0] & has[1])[boxes.tile])


def _parts(side: Interval) -> Interval:
    """Stretches cut into at most `PARTS`, [stretches, PARTS]; lo > hi where one has fewer elements than that."""
    ends = side.lo[:, None] + np.arange(PARTS + 1) * (side.hi - side.lo + 1)[:, None] // PARTS
    return Interval(ends[:, :-1], ends[:, 1:] - 1)


def _samples(side: Interval, places: Array) -> Array:
    """Positions in stretches, [stretches, places]; every one of a stretch that has no more."""
    length, count = (side.hi - side.lo + 1)[:, None], len(places)
    some = np.where(length > count, (places * length).astype(np.int64), np.arange(count))
    return np.asarray(side.lo[:, None] + np.minimum(some, length - 1))
