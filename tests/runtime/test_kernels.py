"""Random programs through their kernels, against the reference in float64."""

from __future__ import annotations

from census import Census
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from launches import INTERPRETING, check_case, on_kernels
from strategies import Case, affine_masks, cases

from attndsl.reference import live_pairs

pytestmark = on_kernels

# Shrinking takes minutes where every step is interpreted or compiled; a failure is short enough to read as it is.
RANDOM = settings(deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
SMALL = {"max_programs": 2, "max_length": 65 if INTERPRETING else 200, "tensor_offsets": True}
"""Lengths on both sides of the edges of some tiles, which are 16 wide where kernels are interpreted, else 64."""


def test_random_programs() -> None:
    census = Census()

    @seed(4)
    @settings(RANDOM, max_examples=50 if INTERPRETING else 60)
    @given(cases(**SMALL))
    def run(case: Case) -> None:
        live = live_pairs(case.variant, case.values, **case.grid)
        assume(census.wants(live))
        census.add(live)
        check_case(case)

    run()
    print(census)
    assert min(census.shares.values()) >= 0.2, str(census)


@seed(0)
@settings(RANDOM, max_examples=15 if INTERPRETING else 20)
@given(affine_masks(**SMALL))
def test_random_bounds(case: Case) -> None:
    check_case(case)
