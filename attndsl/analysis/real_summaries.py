"""The smallest and largest element of a captured float tensor over a box of indices, and whether one is NaN.

In: float32 or float64 elements as a numpy array. Out: `RealSummary.range`. Floats are summarised as integers of the
same order: their bits, with those behind the sign turned over where the sign is set.
"""

from __future__ import annotations

import numpy as np

from attndsl.analysis.reals import NEVER, Reals, outwards
from attndsl.analysis.summaries import ArraySummary
from attndsl.analysis.values import Array, Interval


class RealSummary:
    """The summary of an array at hand; keep it as long as the array keeps its values."""

    def __init__(self, array: Array) -> None:
        nan = np.isnan(array)
        self._integer = np.dtype(f"i{array.dtype.itemsize}")
        self._nan = ArraySummary(nan) if nan.any() else None
        least, greatest = (
            (array, array) if self._nan is None else (np.where(nan, end, array) for end in (np.inf, -np.inf))
        )
        self._least = ArraySummary(_ordered(least.view(self._integer)))
        self._greatest = self._least if self._nan is None else ArraySummary(_ordered(greatest.view(self._integer)))

    def range(self, indices: tuple[Interval, ...]) -> Reals:
        """The elements the indices can reach. Indices out of bounds reach nothing."""
        least = self._least.range(indices)
        if self._nan is None:
            return outwards(self._floats(least.lo), self._floats(least.hi), NEVER)
        greatest, nan = self._greatest.range(indices).hi, self._nan.range(indices).hi != 0
        return outwards(self._floats(least.lo), self._floats(greatest), nan)

    def _floats(self, ordered: Array) -> Array:
        floats = _ordered(ordered.astype(self._integer)).view(f"f{self._integer.itemsize}")
        return np.asarray(floats, np.float64)


def _ordered(bits: Array) -> Array:
    """The bits of floats as integers in the order of the floats, and back."""
    return np.asarray(bits ^ ((bits >> (8 * bits.dtype.itemsize - 1)) & np.iinfo(bits.dtype).max))
