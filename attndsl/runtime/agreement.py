"""Holding a kernel's result against the reference's, and weights against what weights may be."""

from __future__ import annotations

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, VerifyError, fail
from attndsl.ir import build
from attndsl.ir.variant import Variant

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


def check_weights(variant: Variant, scores: Tensor, weights: Tensor, q_offset: int | Tensor = 0) -> None:
    """Raise when a weight is not finite in a row whose scores are; `[B, H, Nq, Nk]`, scores -inf at dead pairs."""
    sound = (scores.isfinite() | (scores == -torch.inf)).all(-1, keepdim=True)
    bad = ~weights.isfinite() & sound
    if not bad.any():
        return
    b, h, q, k = (int(index) for index in bad.nonzero()[0])
    offset = int(torch.as_tensor(q_offset).reshape(-1).expand(weights.shape[0])[b])
    edited = variant.weight is not build.WEIGHT
    raise fail(
        CallError,
        "weight-not-finite",
        f"the weight is {float(weights[b, h, q, k])} where all scores of the row are finite",
        variant.origins.first(variant.weight if edited else variant.normalizer),
        f"it is so at batch {b}, head {h}, query {q + offset}, key {k}, where the score is "
        f"{float(scores[b, h, q, k])!r}, and at {int(bad.sum()) - 1} more pair(s)",
        help="guard what divides, takes a root or a logarithm, or grows: `where(x > 0.0, log(x), 0.0)`",
    )
