"""What every tile is: empty, partial or full.

In: a mask, a `Tiling`, what the call knows. Out: `Classes`, kept as runs of tiles and never as a matrix: what bounds
say is counted tile row by tile row, and interval analysis of the rest looks at large tiles first. Sound always; `exact`
says that partial tiles truly are partial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache, partial
from math import prod

import numpy as np

from attndsl.analysis import runs
from attndsl.analysis.bands import TileRuns, tile_runs
from attndsl.analysis.bounds import is_decidable, key_ranges
from attndsl.analysis.cells import split_tables, with_tables
from attndsl.analysis.ends import Source, prepare
from attndsl.analysis.intervals import Evaluation, Known
from attndsl.analysis.periods import periods_of
from attndsl.analysis.pieces import look_at
from attndsl.analysis.quadtree import Found, explore
from attndsl.analysis.runs import Intervals, Runs
from attndsl.analysis.sight import Scene, Sight
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array
from attndsl.analysis.witnesses import settle
from attndsl.diagnostics import CallError, fail
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, substitute

MAX_MATRIX = 2**28
"""Tiles beyond which they are not written down one by one."""
MAX_KEPT = 2**20
"""Tile rows beyond which the runs of a closed form are computed again whenever they are asked for."""
MAX_CLOSER = 2**20
"""Partial tiles up to which each is looked at more closely."""
MAX_ROWS = 2**26
"""Tile rows, batches and heads included, that are counted at all."""
MAX_RESIDUE_ROWS = 2**22
"""Those of which runs of a mask that bounds do not describe are kept."""


Places = tuple[Array, ...]
"""Tiles as (b, h, row, column)."""


class TileClass(IntEnum):
    EMPTY = 0
    PARTIAL = 1
    FULL = 2


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """The tiles [B', H', Tq, Tk] as runs of stretches of tile rows; `by_bounds`: bounds alone say what they are."""

    shape: tuple[int, int, int, int]
    parts: Callable[[], Iterator[TileRuns]]
    needed: int
    full: int
    exact: bool
    by_bounds: bool = False

    @property
    def counts(self) -> dict[str, int]:
        return {"full": self.full, "partial": self.needed - self.full, "empty": prod(self.shape) - self.needed}

    def matrix(self) -> Array:
        """int8 [B', H', Tq, Tk]."""
        tiles = prod(self.shape)
        if tiles > MAX_MATRIX:
            message = f"{tiles} tiles are too many to list one by one, at most {MAX_MATRIX} are"
            help_ = "ask for `counts`, or for larger tiles with `block=`"
            raise fail(CallError, "too-many-tiles", message, None, help=help_)
        batch, heads, rows, columns = self.shape
        matrix = np.zeros((batch * heads * rows, columns), np.int8)
        for part in self.parts():
            matrix[part.rows] = part.needed.matrix(part.rows, columns).view(np.int8)
            matrix[part.rows] += part.covered.matrix(part.rows, columns).view(np.int8)
        return matrix.reshape(self.shape)

    def partial(self) -> tuple[Array, Array]:
        """Row, counted through [B', H', Tq], and column of every partial tile."""
        rows, columns = zip(*(_partial(part, self.shape[3]).places() for part in self.parts()), strict=True)
        return np.concatenate(rows), np.concatenate(columns)

    def settled(self, look: Callable[[Places], tuple[Array, bool]]) -> Classes:
        """The same with the classes of partial tiles looked up anew; `look` says too whether these are exact."""
        return _kept(self.shape, (_relooked(part, self.shape, look) for part in self.parts()))


def classify(mask: Expr, tiling: Tiling, known: Known) -> Classes:
    """Every tile by its bounds, then, where the mask says more than bounds, by interval analysis of the rest."""
    if 0 in tiling.shape:
        return Classes(tiling.shape, lambda: iter(()), 0, 0, exact=True, by_bounds=True)
    _refuse_more(tiling.batch * tiling.heads * tiling.q_tiles, MAX_ROWS)
    mask = with_numbers(mask, known)
    rest, tables = split_tables(mask)
    if tables is not build.TRUE:
        alone = classify(rest, tiling.reduced(rest), known).matrix()
        return of_matrix(with_tables(alone, rest, tables, tiling, known))
    ranges = key_ranges(mask)
    sources = tuple(prepare(keys, tiling, known) for keys in ranges)
    if all(source.keys.is_exact for source in sources):
        return _of_ranges(tiling, partial(tile_runs, sources, tiling))
    return _with_residue(mask, sources, tiling, known)


def of_matrix(classes: Array) -> Classes:
    """Tiles given one by one, int8 [B', H', Tq, Tk]."""
    batch, heads, rows, columns = classes.shape
    flat = classes.reshape(-1, columns)
    needed, full = (_single(*np.nonzero(flat >= least)) for least in (TileClass.PARTIAL, TileClass.FULL))
    sets = (runs.union(needed, columns), runs.union(full, columns))
    whole = TileRuns(slice(0, batch * heads * rows), *sets, False)
    return _kept((batch, heads, rows, columns), iter((whole,)))


def with_numbers(mask: Expr, known: Known) -> Expr:
    """The mask with the integers of the call in it: divisors and factors that are numbers say more."""
    return _substituted(mask, tuple(known.scalars.items())) if known.scalars else mask


@lru_cache(maxsize=256)
def _substituted(mask: Expr, scalars: tuple[tuple[str, int | float], ...]) -> Expr:
    values = dict(scalars)
    nodes = (node for node in postorder(mask) if isinstance(node, Scalar) and node.dtype.is_int)
    return substitute(mask, {node: build.integer(int(values[node.name])) for node in nodes})


def _of_ranges(tiling: Tiling, parts: Callable[[], Iterator[TileRuns]]) -> Classes:
    if tiling.batch * tiling.heads * tiling.q_tiles <= MAX_KEPT:
        return replace(_kept(tiling.shape, parts()), by_bounds=True)
    needed, full, exact = 0, 0, True
    for part in parts():
        needed, full, exact = needed + part.needed.count, full + part.covered.count, exact and part.exact
    return Classes(tiling.shape, parts, needed, full, exact, by_bounds=True)


def _kept(shape: tuple[int, int, int, int], parts: Iterator[TileRuns]) -> Classes:
    kept = tuple(parts)
    needed, full = sum(part.needed.count for part in kept), sum(part.covered.count for part in kept)
    return Classes(shape, lambda: iter(kept), needed, full, all(part.exact for part in kept))


def _refuse_more(rows: int, most: int, why: str = "") -> None:
    if rows > most:
        message = f"{rows} rows of tiles, counted over batches and heads that differ, are too many{why}"
        help_ = f"at most {most} are planned: ask for larger tiles with `block=`, or plan fewer heads at once"
        raise fail(CallError, "too-many-tiles", message, None, help=help_)


def _with_residue(mask: Expr, sources: tuple[Source, ...], tiling: Tiling, known: Known) -> Classes:
    rows, columns = slice(0, tiling.batch * tiling.heads * tiling.q_tiles), tiling.kv_tiles
    _refuse_more(rows.stop, MAX_RESIDUE_ROWS, " for a mask that bounds on the key do not describe")
    if len(sources) == 1:
        found = _of_conjunction(sources[0], tiling, known, rows)
    else:
        within = _joined(tile_runs(sources, tiling))
        tree = explore(mask, (), within.needed.hull(rows.stop), tiling, known)
        needed = runs.intersection(tree.possible, within.needed, columns)
        covered = runs.union(runs.joined((tree.certain, within.covered)), columns)
        found = TileRuns(rows, needed, runs.intersection(covered, needed, columns), exact=False)
    classes = _kept(tiling.shape, iter((found,)))
    return (
        classes.settled(partial(_closer, mask, tiling, known)) if classes.counts["partial"] <= MAX_CLOSER else classes
    )


def _closer(mask: Expr, tiling: Tiling, known: Known, tiles: Places) -> tuple[Array, bool]:
    """Tiles looked at piece by piece, and where that leaves any open, pair by pair."""
    scene = Scene(mask, Evaluation((mask,), tiling.whole, known), tiling, tiles)
    sight = look_at(scene) if periods_of(mask) else Sight.none(len(scene))
    if is_decidable(mask):
        sight = sight.joined(sight.is_open, settle(scene.only(sight.is_open)))
    return sight.classes, not sight.is_open.any()


def _of_conjunction(source: Source, tiling: Tiling, known: Known, rows: slice) -> TileRuns:
    """What bounds leave, where the residue can be true there; full where bounds cover and it cannot be false."""
    bounds = replace(source, keys=replace(source.keys, residue=()))
    within = _joined(tile_runs((bounds,), tiling))
    below = (build.apply(Op.GE, build.K, end) for end in source.keys.lower)
    above = (build.apply(Op.LE, build.K, end) for end in source.keys.upper)
    assume = (*below, *above, *source.keys.gates)
    residue = build.conjunction(source.keys.residue)
    tree: Found = explore(residue, assume, within.needed.hull(rows.stop), tiling, known)
    pairs = ((tree.possible, within.needed), (tree.certain, within.covered))
    needed, covered = (runs.intersection(one, other, tiling.kv_tiles) for one, other in pairs)
    return TileRuns(rows, needed, covered, exact=False)


def _joined(parts: Iterator[TileRuns]) -> TileRuns:
    """All stretches as one."""
    kept = tuple(parts)
    joined = [runs.joined(some) for some in ([part.needed for part in kept], [part.covered for part in kept])]
    needed, covered = (Runs(some.row, some.first, some.last) for some in joined)
    return TileRuns(slice(0, kept[-1].rows.stop), needed, covered, all(part.exact for part in kept))


def _partial(part: TileRuns, columns: int) -> Runs:
    return runs.difference(part.needed, part.covered, columns)


def _relooked(
    part: TileRuns, shape: tuple[int, int, int, int], look: Callable[[Places], tuple[Array, bool]]
) -> TileRuns:
    row, column = _partial(part, shape[3]).places()
    if not row.size:
        return replace(part, exact=True)
    _, heads, rows, columns = shape
    pair = row // rows
    classes, exact = look((pair // heads, pair % heads, row % rows, column))
    chosen = [classes >= least for least in (TileClass.PARTIAL, TileClass.FULL)]
    joined = [runs.joined((part.covered, _single(row[some], column[some]))) for some in chosen]
    needed, full = (runs.union(some, columns) for some in joined)
    return TileRuns(part.rows, needed, full, exact)


def _single(row: Array, column: Array) -> Intervals:
    """Tiles one by one."""
    return Intervals(row, column, column)
