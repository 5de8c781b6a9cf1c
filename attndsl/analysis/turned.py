"""The classes of tiles seen from the keys: for every tile of keys, the query tiles that meet it."""

from __future__ import annotations

import numpy as np

from attndsl.analysis import runs
from attndsl.analysis.bands import TileRuns
from attndsl.analysis.classes import Classes
from attndsl.analysis.runs import Intervals, Runs


def turned(classes: Classes) -> Classes:
    """The same tiles, [B', H', Tq, Tk] become [B', H', Tk, Tq]. Lists every tile that is not empty."""
    batch, heads, rows, columns = classes.shape
    parts = list(classes.parts())
    needed, covered = (
        _turned([getattr(part, which) for part in parts], rows, columns) for which in ("needed", "covered")
    )
    whole = TileRuns(slice(0, batch * heads * columns), needed, covered, classes.exact)
    shape = (batch, heads, columns, rows)
    return Classes(shape, lambda: iter((whole,)), needed.count, covered.count, classes.exact)


def _turned(parts: list[Runs], rows: int, columns: int) -> Runs:
    nothing = np.zeros(0, np.int64)
    whole = runs.joined([Intervals(nothing, nothing, nothing), *parts])
    place, column = Runs(whole.row, whole.first, whole.last).places()
    row = place // rows * columns + column
    return runs.union(Intervals(row, place % rows, place % rows), rows)
