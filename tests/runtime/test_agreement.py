"""Holding a kernel against the reference: what is off is found, NaN and infinities included."""

from __future__ import annotations

import pytest
import torch

from attndsl.diagnostics import VerifyError
from attndsl.runtime.agreement import TOLERANCE, check_agreement

INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equal_results_agree(dtype: torch.dtype) -> None:
    rows = torch.randn(2, 3, 5, 8).to(dtype)
    check_agreement("out", rows, rows.clone(), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_just_inside_and_just_outside_the_tolerance(dtype: torch.dtype) -> None:
    expected = torch.full((1, 1, 4), 3.0, dtype=torch.float64)
    check_agreement("lse", expected + 3.9 * TOLERANCE[dtype], expected, dtype)
    with pytest.raises(VerifyError, match="kernel's lse differs"):
        check_agreement("lse", expected + 4.1 * TOLERANCE[dtype], expected, dtype)


def test_one_element_of_many_is_found_and_named() -> None:
    expected = torch.zeros(2, 3, 70, 64)
    found = expected.clone()
    found[1, 2, 69, 63] = 0.01
    with pytest.raises(VerifyError, match="at batch 1, head 2, query 69"):
        check_agreement("out", found, expected, torch.float32)


@pytest.mark.parametrize("same", [INF, -INF, NAN])
def test_the_same_special_value_agrees(same: float) -> None:
    rows = torch.tensor([[[0.0, same]]])
    check_agreement("lse", rows, rows.clone(), torch.bfloat16)


@pytest.mark.parametrize(
    "found, expected", [(NAN, 0.0), (0.0, NAN), (INF, 0.0), (0.0, -INF), (INF, -INF), (NAN, INF), (-INF, NAN)]
)
def test_special_values_that_differ_do_not(found: float, expected: float) -> None:
    with pytest.raises(VerifyError, match="at batch 0, head 0, query 1"):
        check_agreement("lse", torch.tensor([[[0.0, found]]]), torch.tensor([[[0.0, expected]]]), torch.bfloat16)


def test_nothing_to_compare() -> None:
    check_agreement("out", torch.zeros(1, 2, 0, 8), torch.zeros(1, 2, 0, 8), torch.float32)
