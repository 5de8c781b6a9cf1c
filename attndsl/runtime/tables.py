"""Tables of runs of key tiles, for masks that bounds alone do not describe.

In: the class of every tile of a call. Out: a `TileTable`: for each tile of queries its records, in ascending key order,
each a stretch of partial tiles and the stretch of full tiles that follows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attndsl.analysis.classes import TileClass
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array


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


def build_table(classes: Array, tiling: Tiling, device: torch.device) -> TileTable:
    """The table of int8 classes [B', H', Tq, Tk]; a full tile that overhangs the keys is walked as a partial one."""
    batch, heads, rows, columns = classes.shape
    flat = np.array(classes, np.int8).reshape(-1, columns)
    if columns and tiling.kv_len % tiling.block[1]:
        flat[:, -1] = np.minimum(flat[:, -1], TileClass.PARTIAL)
    starts, records = _records(flat)
    keys = np.minimum(records * tiling.block[1], tiling.kv_len).astype(np.int32)
    return TileTable(
        torch.from_numpy(keys).to(device),
        torch.from_numpy(starts.astype(np.int32)).to(device),
        batch_stride=heads * rows if batch > 1 else 0,
        head_stride=rows if heads > 1 else 0,
    )


def _records(classes: Array) -> tuple[Array, Array]:
    """Where each row's records start, and the records in tiles: a full run, led by the partial run it touches."""
    rows, columns = classes.shape
    padded = np.zeros((rows, columns + 2), np.int8)
    padded[:, 1:-1] = classes
    row, at = np.nonzero(padded[:, 1:] != padded[:, :-1])
    kind = padded[row, at + 1]
    used = kind != TileClass.EMPTY
    # A run ends where the next change of its row is; the change to the padding closes the last one.
    end = np.append(at[1:], 0)[used]
    row, start, kind = row[used], at[used], kind[used]
    full = kind == TileClass.FULL
    touches = (row[1:] == row[:-1]) & (start[1:] == end[:-1])
    leads = np.append(touches & full[1:], False) & ~full
    led = np.append(False, leads[:-1])
    first = np.where(led, np.append(0, start[:-1]), start)
    records = np.stack([first, np.where(full, start, end), end], axis=1)[~leads]
    starts = np.searchsorted(row[~leads], np.arange(rows + 1))
    return starts, records
