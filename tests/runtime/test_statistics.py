"""What a call may be asked for beside its output."""

from __future__ import annotations

import torch

import attndsl as ad
from attndsl.runtime.statistics import wanted_statistics

STATISTIC = torch.zeros(1, 1, 3)


def test_everything_is_what_there_is() -> None:
    wanted = wanted_statistics(True)
    assert wanted is not None
    aux = wanted.of(None, STATISTIC, {})
    assert aux.lse is None
    assert aux.max_score is STATISTIC
    assert aux.entropy is None
    assert wanted.of(STATISTIC, STATISTIC, {"entropy": STATISTIC}).entropy is STATISTIC


def test_masses_come_in_the_order_they_were_asked_for() -> None:
    wanted = wanted_statistics([ad.aux.mass(lambda kv_idx: kv_idx < 4), "lse", ad.aux.mass(lambda kv_idx: kv_idx > 4)])
    assert wanted is not None
    found = {"mass_0": torch.zeros(1), "mass_1": torch.ones(1)}
    aux = wanted.of(STATISTIC, STATISTIC, found)
    assert aux.mass == (found["mass_0"], found["mass_1"])
    assert aux.max_score is None
