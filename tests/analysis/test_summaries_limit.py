"""How large a captured tensor may be for boxes of it to be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from attndsl.analysis import summaries
from attndsl.analysis.summaries import ArraySummary
from attndsl.analysis.values import Interval


@pytest.mark.parametrize("dtype, told_apart", [(bool, True), (np.int64, False)])
def test_the_limit_is_one_of_bytes(monkeypatch: pytest.MonkeyPatch, dtype: type, told_apart: bool) -> None:
    monkeypatch.setattr(summaries, "MAX_WINDOWED", 512)
    array = np.zeros(256, dtype)
    array[200:] = 1
    lo = np.array([0, 100, 200]).reshape(1, 1, 1, 3)
    found = ArraySummary(array).range((Interval(lo, lo + 49),))
    exact = found.hi.shape == lo.shape and found.hi.flatten().tolist() == [0, 0, 1]
    assert exact is told_apart
    assert int(found.lo.min()) == 0
    assert int(found.hi.max()) == 1
