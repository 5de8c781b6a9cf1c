"""No pass changes what a program means: random programs, each pass alone and all of them, against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from strategies import Case, affine_masks, cases, mask_cases

from attndsl.analysis.bounds import key_range
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import PASSES, Pass, run_passes
from attndsl.reference import attend, live_pairs

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
EVERY_PASS = pytest.mark.parametrize("pass_", [pass_ for pass_, _ in PASSES], ids=lambda pass_: pass_.__name__)


def outputs(case: Case, variant: Variant) -> torch.Tensor:
    """The reference in float64, `lse` behind the output."""
    result = attend(variant, case.values, *case.inputs(dtype=torch.float64), enable_gqa=True, q_offset=case.q_offset)
    return torch.cat([result.out, result.max_score[..., None]], dim=-1)


@EVERY_PASS
@QUICK
@given(case=cases(max_programs=2, max_length=33, weights=True))
def test_pass_keeps_the_reference(pass_: Pass, case: Case) -> None:
    assert torch.equal(outputs(case, pass_(case.variant)), outputs(case, case.variant))


@QUICK
@given(case=cases(max_programs=2, max_length=33, weights=True))
def test_all_passes_keep_the_reference(case: Case) -> None:
    assert torch.equal(outputs(case, run_passes(case.variant)), outputs(case, case.variant))


@settings(QUICK, max_examples=300)
@given(case=mask_cases(max_programs=2, max_length=33, tensor_offsets=True))
def test_all_passes_keep_the_mask(case: Case) -> None:
    after = run_passes(case.variant)
    grid = {**case.grid, "batch": case.batch, "heads": case.q_heads}
    expected = live_pairs(case.variant, case.values, **grid)
    assert torch.equal(live_pairs(after, case.values, **grid).expand_as(expected), expected)


@settings(QUICK, max_examples=150)
@given(case=cases(max_programs=2, max_length=17, weights=True))
def test_the_end_result_is_stable(case: Case) -> None:
    once = run_passes(case.variant)
    assert run_passes(once) is once
    for pass_, _ in PASSES:
        assert pass_(once) is once


@settings(QUICK, max_examples=150)
@given(case=affine_masks(max_programs=2, max_length=33))
def test_affine_bounds_become_an_exact_key_range(case: Case) -> None:
    assert key_range(run_passes(case.variant).mask).is_exact
