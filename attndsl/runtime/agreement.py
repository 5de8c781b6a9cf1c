"""Holding a kernel's result against the reference's."""

from __future__ import annotations

import torch
from torch import Tensor

from attndsl.diagnostics import VerifyError

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def check_agreement(what: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Raise when a row `(B, H, Nq)` or `(B, H, Nq, D)` is further off than rounding in a dtype explains."""
    found, expected = found.double(), expected.double()
    error = (found - expected).abs() / (1.0 + expected.abs())
    same = (found == expected) | (found.isnan() & expected.isnan())
    error = torch.where(same, 0.0, error.nan_to_num(torch.inf, torch.inf))
    if error.numel() == 0 or float(error.max()) <= TOLERANCE[dtype]:
        return
    b, h, q, *_ = (int(index) for index in (error == error.max()).nonzero()[0])
    raise VerifyError(
        f"the kernel's {what} differs from the reference by {float(error.max()):.2e}, relative to 1 + |x| "
        f"(allowed {TOLERANCE[dtype]:.0e}), at batch {b}, head {h}, query {q}"
    )
