"""Tables of runs of key tiles, for masks that bounds alone do not describe.

In: the class of every tile of a call. Out: a `TileTable`: for each tile of queries its records, in ascending key order,
each a stretch of partial tiles and the stretch of full tiles that follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from attndsl.analysis import runs
from attndsl.analysis.bands import TileRuns
from attndsl.analysis.classes import Classes
from attndsl.analysis.runs import Intervals, Runs
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.turned import turned
from attndsl.analysis.values import Array
from attndsl.diagnostics import CallError, fail

MAX_RECORDS = 2**27
"""Records beyond which a table is refused: a gigabyte and a half."""


@dataclass(frozen=True, slots=True, eq=False)
class TileTable:
    """`records` int32 [R, 3]: the keys where partial tiles start, where full ones start, where these end. `rows` int32:
    the records of tile row r are `rows[r]` to `rows[r + 1]`, r = b * batch_stride + h * head_stride + query tile."""

    records: Tensor
    rows: Tensor
    batch_stride: int
    head_stride: int

    @property
    def nbytes(self) -> int:
        """Bytes the kernel reads."""
        return self.records.nbytes + self.rows.nbytes


def build_table(classes: Classes, tiling: Tiling, device: torch.device) -> TileTable:
    """The table of the tiles of a call; a full tile that overhangs the keys is walked as a partial one."""
    batch, heads, rows, _ = classes.shape
    parts = [_records(part, tiling) for part in classes.parts()]
    records = np.concatenate([np.zeros((0, 3), np.int32), *(found for found, _ in parts)])
    starts = np.zeros(batch * heads * rows + 1, np.int32)
    np.cumsum(np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in parts)]), out=starts[1:])
    found, rows_at = (torch.from_numpy(part).to(device) for part in (records, starts))
    return listed(found, rows_at, (batch, heads, rows))


def listed(records: Tensor, rows: Tensor, shape: tuple[int, int, int]) -> TileTable:
    """The table of these records over [B', H', query tiles], unless there are too many."""
    if len(records) > MAX_RECORDS:
        message = f"a table of {len(records)} runs of key tiles is too large, at most {MAX_RECORDS} are listed"
        help_ = "split the batch, or the heads, into several calls"
        raise fail(CallError, "table-too-large", message, None, help=help_)
    batch, heads, tiles = shape
    return TileTable(
        records, rows, batch_stride=heads * tiles if batch > 1 else 0, head_stride=tiles if heads > 1 else 0
    )


def build_turned_table(classes: Classes, tiling: Tiling, device: torch.device) -> TileTable:
    """The same from the keys: for each tile of keys the runs of query tiles, in rows of the call."""
    return build_table(turned(classes), turned_tiling(tiling), device)


def turned_tiling(tiling: Tiling) -> Tiling:
    """Queries and keys exchanged."""
    return replace(tiling, q_len=tiling.kv_len, kv_len=tiling.q_len, block=(tiling.block[1], tiling.block[0]))


def build_diagonals(classes: Classes, tiling: Tiling, device: torch.device) -> TileTable:
    """The tiles of each diagonal of square tiles that have live pairs: records [R] are tiles of queries.

    Diagonal n holds the tiles of queries t and of keys t - n + Tk - 1; row r is b * batch_stride + h * head_stride + n.
    """
    batch, heads, rows, columns = classes.shape
    count = max(rows + columns - 1, 0)
    nothing = np.zeros(0, np.int64)
    whole = runs.joined([Intervals(nothing, nothing, nothing), *(part.needed for part in classes.parts())])
    place, column = Runs(whole.row, whole.first, whole.last).places()
    tile = place % max(rows, 1)
    row = place // max(rows, 1) * count + tile - column + columns - 1
    order = np.argsort(row, kind="stable")
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row, minlength=batch * heads * count))])
    return TileTable(
        torch.from_numpy(tile[order].astype(np.int32)).to(device),
        torch.from_numpy(starts.astype(np.int32)).to(device),
        batch_stride=heads * count if batch > 1 else 0,
        head_stride=count if heads > 1 else 0,
    )


def _records(part: TileRuns, tiling: Tiling) -> tuple[Array, Array]:
    """The records of a stretch of tile rows, in keys, and how many each row has: a full run, led by what it touches."""
    full = part.covered
    if tiling.kv_len % tiling.block[1]:
        last = np.minimum(full.last, tiling.kv_tiles - 2)
        full = runs.union(Intervals(full.row, full.first, last), tiling.kv_tiles)
    needed, width = part.needed, tiling.kv_tiles + 1
    start, full_start = (some.row * width + some.first for some in (needed, full))
    end, full_end = (some.row * width + some.last + 1 for some in (needed, full))
    # Each full run is led by what lies between it and the full run before, or the start of its needed run; what lies
    # after the last one is a record of its own.
    owner = np.searchsorted(start, full_start, "right") - 1
    lead, rest = start[owner], start.copy()
    again = owner[1:] == owner[:-1]
    lead[1:][again] = full_end[:-1][again]
    rest[owner] = full_end
    tail = rest < end
    places = np.concatenate([(lead, full_start, full_end), (rest[tail], end[tail], end[tail])], axis=1)
    places = places[:, np.argsort(places[0])]
    row = places[0] // width
    keys = np.minimum((places - row * width) * tiling.block[1], tiling.kv_len).astype(np.int32).T.copy()
    return keys, np.bincount(row - part.rows.start, minlength=part.rows.stop - part.rows.start)


class Lists(Enum):
    """What a table lists: runs of key tiles for each tile of queries, of query tiles for each tile of keys, or the
    tiles on each diagonal."""

    KEYS = "keys"
    QUERIES = "queries"
    DIAGONALS = "diagonals"


TABLES: Mapping[Lists, Callable[[Classes, Tiling, torch.device], TileTable]] = {
    Lists.KEYS: build_table,
    Lists.QUERIES: build_turned_table,
    Lists.DIAGONALS: build_diagonals,
}
"""How each is built."""
