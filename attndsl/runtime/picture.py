"""A picture of tiles for a terminal: queries downwards, keys to the right.

In: the classes of one (batch, head) as an int8 matrix. Out: lines of block characters, no wider than asked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MARKS = {0: "·", 1: "▒", 2: "█"}
LEGEND = f"{MARKS[2]} full  {MARKS[1]} partial  {MARKS[0]} empty"


def draw(classes: npt.NDArray[np.int8], columns: int = 64, rows: int = 32) -> list[str]:
    """One character for each tile, or for the tiles that share a cell: full or empty if all of them are."""
    if 0 in classes.shape:
        return []
    shrunk = _shrink(_shrink(classes, rows, axis=0), columns, axis=1)
    # Characters are twice as tall as wide.
    wide = 2 if shrunk.shape[1] <= columns // 2 else 1
    return ["".join(MARKS[int(cell)] * wide for cell in line) for line in shrunk]


def _shrink(classes: npt.NDArray[np.int8], limit: int, axis: int) -> npt.NDArray[np.int8]:
    size = classes.shape[axis]
    if size <= limit:
        return classes
    starts = np.arange(limit) * size // limit
    least = np.minimum.reduceat(classes, starts, axis=axis)
    most = np.maximum.reduceat(classes, starts, axis=axis)
    return np.where(least == most, least, np.int8(1))
