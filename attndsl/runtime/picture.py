"""Pictures of tiles: queries downwards, keys to the right.

In: the tiles of a call, as runs. Out: cells, each standing for one tile or for several that share it, and lines of
block characters for a terminal. Tiles are never written down one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from attndsl.analysis.classes import Classes
from attndsl.analysis.runs import Runs
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array

MARKS = {0: "·", 1: "▒", 2: "█"}
LEGEND = f"{MARKS[2]} full  {MARKS[1]} partial  {MARKS[0]} empty"
ALONE = (32, 64)
TOGETHER = (16, 32)
"""Lines and columns of one picture, and of each of several."""
MAX_PICTURES = 4
MAX_COMPARED = 64
"""Pairs of batch and head that are looked at for pictures that differ."""
RULED = 8
"""Lines between one that says which query it starts at and the next."""
OVERLAPS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """`cells` int8 [rows, columns]: 0 empty, 1 partial or mixed, 2 full; `pairs`: the (batch, head)s that look so.

    `edges`: the tile rows and the tile columns at which cells begin, and where the last ones end.
    """

    cells: Array
    edges: tuple[Array, Array]
    pairs: tuple[tuple[int, int], ...]

    def title(self, shape: tuple[int, ...]) -> str:
        """Which batches and heads it shows, of how many."""
        kinds = zip(("batch", "head"), ("batches", "heads"), shape, zip(*self.pairs, strict=True), strict=False)
        return ", ".join(_listed(one, many, sorted(set(which))) for one, many, size, which in kinds if size > 1)


def draw(tiles: Classes, tiling: Tiling) -> list[str]:
    """Lines for a terminal: the pictures that differ, up to a few, with the tokens along their edges."""
    if 0 in tiles.shape:
        return []
    several = tiles.shape[0] * tiles.shape[1] > 1
    found = list(pictures(tiles, TOGETHER if several else ALONE))
    lines = []
    for picture in found[:MAX_PICTURES]:
        lines += [picture.title(tiles.shape)] if several else []
        lines += _framed(picture, tiling)
    return [*lines, *_notes(tiles, found)]


def pictures(tiles: Classes, limit: tuple[int, int]) -> Iterator[Picture]:
    """The pictures that differ, each no larger than `limit`, of the first batches and heads."""
    batch, heads = tiles.shape[:2]
    seen: dict[bytes, tuple[Array, list[tuple[int, int]]]] = {}
    for pair in range(min(batch * heads, MAX_COMPARED)):
        drawn = cells(tiles, pair, limit)
        seen.setdefault(drawn.tobytes(), (drawn, []))[1].append(divmod(pair, heads))
    rows, columns = (_edges(size, most) for size, most in zip(tiles.shape[2:], limit, strict=True))
    for drawn, pairs in seen.values():
        yield Picture(drawn, (rows, columns), tuple(pairs))


def cells(tiles: Classes, pair: int, limit: tuple[int, int]) -> Array:
    """The tiles of one batch and head, b * H' + h, shrunk to at most `limit` rows and columns."""
    rows, columns = tiles.shape[2:]
    row_edges, column_edges = (_edges(size, most) for size, most in zip((rows, columns), limit, strict=True))
    counts = np.zeros((2, len(row_edges) - 1, len(column_edges) - 1), np.int64)
    for part in tiles.parts():
        for count, runs in zip(counts, (part.needed, part.covered), strict=True):
            _count(count, _of_pair(runs, pair, rows), row_edges, column_edges)
    needed, covered = counts
    area = np.diff(row_edges)[:, None] * np.diff(column_edges)
    return np.where(needed == 0, 0, np.where(covered == area, 2, 1)).astype(np.int8)


def _of_pair(runs: Runs, pair: int, rows: int) -> Runs:
    mine = runs.row // rows == pair
    return Runs(runs.row[mine] % rows, runs.first[mine], runs.last[mine])


def _count(count: Array, runs: Runs, row_edges: Array, column_edges: Array) -> None:
    """Add to every cell the tiles of the runs that lie in it."""
    step = max(1, OVERLAPS_AT_ONCE // count.shape[1])
    lines = np.searchsorted(row_edges, runs.row, "right") - 1
    for start in range(0, len(lines), step):
        part = slice(start, start + step)
        first, last = runs.first[part, None], runs.last[part, None]
        overlap = np.minimum(last + 1, column_edges[1:]) - np.maximum(first, column_edges[:-1])
        np.add.at(count, lines[part], np.maximum(overlap, 0))


def _edges(size: int, limit: int) -> Array:
    """Where cells of equally many tiles begin, and where the last one ends."""
    return np.append(np.arange(0, size, -(-size // limit)), size)


def _framed(picture: Picture, tiling: Tiling) -> Iterator[str]:
    """The cells with the first and the last key above them and queries beside some of them."""
    cells = picture.cells
    # Characters are twice as tall as wide.
    wide = 2 if cells.shape[1] <= ALONE[1] // 2 else 1
    starts = picture.edges[0] * tiling.block[0]
    margin, width = len(str(tiling.q_len)), cells.shape[1] * wide
    yield f"{'':{margin}} 0{tiling.kv_len:>{max(width - 1, len(str(tiling.kv_len)) + 1)}} keys"
    for at, line in enumerate(cells):
        label = str(starts[at]) if at % RULED == 0 else ""
        yield f"{label:>{margin}} " + "".join(MARKS[int(cell)] * wide for cell in line)
    yield f"{tiling.q_len:>{margin}} queries"


def _notes(tiles: Classes, found: list[Picture]) -> Iterator[str]:
    batch, heads, rows, columns = tiles.shape
    drawn = found[0].cells.shape
    yield LEGEND
    if drawn != (rows, columns):
        yield f"a cell stands for several of the {rows} x {columns} tiles; where these differ it is partial"
    if batch * heads > MAX_COMPARED:
        yield f"of {batch * heads} batches and heads the first {MAX_COMPARED} were looked at"
    if len(found) > MAX_PICTURES:
        yield f"{len(found) - MAX_PICTURES} more differ from these"


def _listed(one: str, many: str, numbers: list[int]) -> str:
    """`head 0`, `heads 0 to 5`, `heads 0, 2, 4`, `heads 0, 2, 4, ...`: enough to know which."""
    if len(numbers) == 1:
        return f"{one} {numbers[0]}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{many} {numbers[0]} to {numbers[-1]}"
    return f"{many} {', '.join(map(str, numbers[:6]))}" + (", ..." if len(numbers) > 6 else "")
