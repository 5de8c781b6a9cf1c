"""Outputs of programs that shared the keys of a query tile, joined by the logs of their divisors.

In: an output and statistics of each part of each row. Out: those of the rows.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attndsl.runtime.interpreter import silent_arithmetic
from attndsl.runtime.launch import Rows


def combine(parts: Tensor, lse: Tensor, max_score: Tensor, splits: int, dtype: torch.dtype) -> Rows:
    """From parts `[B, H * splits, Nq, Dv]`, all float32, the rows of `[B, H, Nq, Dv]`."""
    batch, heads, q_len, width = parts.shape
    shape = (batch, heads // splits, q_len)
    out = parts.new_zeros((*shape, width), dtype=dtype)
    rows = {name: parts.new_empty(shape) for name in ("lse", "max_score")}
    if rows["lse"].numel():
        with torch.cuda.device_of(parts), nullcontext() if parts.is_cuda else silent_arithmetic():
            _kernel()[(rows["lse"].numel(),)](
                *(parts, lse, max_score, out, rows["lse"], rows["max_score"]),
                *(splits, q_len, width),
                BLOCK_D=1 << (width - 1).bit_length(),
                enable_fp_fusion=True,
            )
    return Rows(out, rows["lse"], rows["max_score"])


@cache
def _kernel() -> Any:
    """Imported when it is first run, for the sake of those who never do."""
    from attndsl.runtime.combining_kernel import combine_parts

    return combine_parts
