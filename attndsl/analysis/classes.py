"""What every tile is: empty, partial or full.

In: bounds and residue of a mask, a `Tiling`, what the call knows. Out: `RunClasses` where bounds decide everything,
kept as runs of tiles, and `MatrixClasses` where tiles are told one by one. Sound always; `exact` says that partial
tiles truly are partial.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from attndsl.analysis.bounds import KeyRange, key_range, key_ranges
from attndsl.analysis.cells import split_tables, with_tables
from attndsl.analysis.intervals import Known, evaluate
from attndsl.analysis.pieces import look_closer
from attndsl.analysis.rows import RowRuns, row_runs
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.unions import union_classes
from attndsl.analysis.values import Array, Truth
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op

TILES_AT_ONCE = 2**18


class TileClass(IntEnum):
    EMPTY = 0
    PARTIAL = 1
    FULL = 2


@dataclass(frozen=True, slots=True, eq=False)
class RunClasses:
    """Tiles as the runs of stretches of tile rows: memory grows with the length, not with its square."""

    shape: tuple[int, int, int, int]
    stretches: tuple[tuple[slice, RowRuns], ...]

    @property
    def exact(self) -> bool:
        return all(runs.exact for _, runs in self.stretches)

    @property
    def counts(self) -> dict[str, int]:
        needed = sum(int((runs.last - runs.first + 1).sum()) for _, runs in self.stretches)
        full = sum(int(np.maximum(runs.full_last - runs.full_first + 1, 0).sum()) for _, runs in self.stretches)
        return _census(full, needed, self.shape)

    def matrix(self) -> Array:
        """int8 [B', H', Tq, Tk]."""
        classes = np.zeros(self.shape, np.int8)
        batch, heads, _, columns = self.shape
        for rows, runs in self.stretches:
            found = runs.needed(columns).astype(np.int8) + runs.covered(columns)
            classes[:, :, rows] = found.reshape(batch, heads, -1, columns)
        return classes


@dataclass(frozen=True, slots=True, eq=False)
class MatrixClasses:
    """Tiles one by one."""

    classes: Array
    exact: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.classes.shape

    @property
    def counts(self) -> dict[str, int]:
        full = int((self.classes == TileClass.FULL).sum())
        return _census(full, int(np.count_nonzero(self.classes)), self.shape)

    def matrix(self) -> Array:
        return self.classes


Classes = RunClasses | MatrixClasses


def classify(mask: Expr, tiling: Tiling, known: Known) -> Classes:
    """Every tile by its bounds, then, where the mask says more than bounds, by interval analysis of the rest."""
    if 0 in tiling.shape:
        return MatrixClasses(np.zeros(tiling.shape, np.int8), exact=True)
    rest, tables = split_tables(mask)
    if tables is not build.TRUE:
        alone = classify(rest, tiling.reduced(rest), known).matrix()
        return MatrixClasses(with_tables(alone, rest, tables, tiling, known), exact=False)
    ranges = key_ranges(mask)
    if len(ranges) > 1 and all(keys.is_exact for keys in ranges):
        return _classify_union(ranges, tiling, known)
    bounds = key_range(mask)
    stretches = row_runs(bounds, tiling, known)
    if bounds.is_exact:
        return RunClasses(tiling.shape, tuple(stretches))
    classes = np.zeros(tiling.shape, np.int8)
    for rows, runs in stretches:
        _classify_residue(classes[:, :, rows], bounds, tiling, known, rows, runs)
    look_closer(classes, mask, tiling, known)
    return MatrixClasses(classes, exact=False)


def _classify_union(ranges: tuple[KeyRange, ...], tiling: Tiling, known: Known) -> MatrixClasses:
    classes = np.zeros(tiling.shape, np.int8)
    all_exact = True
    for rows, found, exact in union_classes(ranges, tiling, known):
        classes[:, :, rows] = found
        all_exact &= exact
    return MatrixClasses(classes, all_exact)


def _classify_residue(
    classes: Array, bounds: KeyRange, tiling: Tiling, known: Known, rows: slice, runs: RowRuns
) -> None:
    """Fill the classes of some tile rows, looking only at the tiles the bounds leave."""
    columns = tiling.kv_tiles
    needed = runs.needed(columns).reshape(classes.shape)
    covered = runs.covered(columns).reshape(classes.shape)
    residue = build.conjunction(bounds.residue)
    below = (build.apply(Op.GE, build.K, end) for end in bounds.lower)
    above = (build.apply(Op.LE, build.K, end) for end in bounds.upper)
    assume = (*below, *above, *bounds.gates)
    for part, band in _bands(needed):
        tiles = tiling.tiles(slice(rows.start + part.start, rows.start + part.stop), band)
        truth = evaluate((residue,), tiles, known, assume)[residue]
        assert isinstance(truth, Truth)
        possible = needed[:, :, part, band] & truth.can_be_true
        certain = covered[:, :, part, band] & ~truth.can_be_false
        classes[:, :, part, band] = np.where(possible, np.where(certain, TileClass.FULL, TileClass.PARTIAL), 0)


def _bands(needed: Array) -> Iterator[tuple[slice, slice]]:
    """Stretches of tile rows with the band of columns they need, a bounded number of tiles each."""
    batch, heads, rows, columns = needed.shape
    step = max(1, min(rows, TILES_AT_ONCE // max(1, batch * heads * columns)))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        used = np.flatnonzero(needed[:, :, part].any(axis=(0, 1, 2)))
        if used.size:
            yield part, slice(int(used[0]), int(used[-1]) + 1)


def _census(full: int, needed: int, shape: tuple[int, ...]) -> dict[str, int]:
    return {"full": full, "partial": needed - full, "empty": int(np.prod(shape)) - needed}
