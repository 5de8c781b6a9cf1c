"""How close is close: the largest error of each row, never an average over rows."""

from __future__ import annotations

import torch
from torch import Tensor


def row_errors(actual: Tensor, expected: Tensor) -> Tensor:
    """The largest error in each row (the last axis), in float64, relative to the row's largest value where that is
    above 1. Equal infinities are no error; a NaN anywhere is an infinite one.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    error = torch.where(actual == expected, 0.0, (actual - expected).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
    if error.shape[-1] == 0:
        return error.new_zeros(error.shape[:-1])
    scale = torch.where(expected.isfinite(), expected.abs(), 0.0).amax(-1).clamp(min=1.0)
    return error.amax(-1) / scale


def assert_rows_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Every row within the tolerance; the failure shows the worst row and the text of `what`."""
    errors = row_errors(actual, expected)
    if errors.numel() == 0 or bool((errors <= tolerance).all()):
        return
    worst = tuple(int(index) for index in torch.unravel_index(errors.argmax(), errors.shape))
    bad = int((errors > tolerance).sum())
    raise AssertionError(
        f"{bad} of {errors.numel()} rows are off by more than {tolerance:g}; row {worst} is off by "
        f"{float(errors[worst]):.3g}\n  actual   {actual[worst]}\n  expected {expected[worst]}\n{what}"
    )
