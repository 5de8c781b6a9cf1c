"""The threshold at which the sum of a row falls to a total: found to the last bit, differentiated as what it solves.

In: the sums of all rows as a function of their thresholds and of further values, a total, two ends. Out: a threshold
for each row, differentiable by autograd in the values and the total; the ends have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attndsl.guarded import gradients

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}

Sums = Callable[..., Tensor]
"""`sums(threshold, *values)`: one number for each row, `[B, H, Nq, 1]`, that never rises with the row's threshold."""


def solve_rows(
    sums: Sums, values: tuple[Tensor, ...], total: Tensor, lower: Tensor, upper: Tensor, live: Tensor
) -> Tensor:
    """The least threshold from `lower` to `upper` at which a row's sum is <= `total`, `upper` where none less will do.

    A row without a live key has `lower`.
    """
    with torch.no_grad():
        visible = live.any(-1, keepdim=True)
        ends = [end.expand(visible.shape) for end in (lower, upper, total)]
        found = torch.where(visible, _bisected(lambda at: sums(at, *values) <= total, ends[0], ends[1]), ends[0])
        for end in ends:
            found = torch.where(end.isnan(), torch.nan, found)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (total, *values)):
        result: Tensor = _Root.apply(sums, found, total, *values)  # type: ignore[no-untyped-call]
        return result
    return found


def _bisected(is_enough: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Tensor:
    """The least float from `lower` to `upper` that is enough, over integers in the order of the floats."""
    dtype = lower.dtype
    low, high = _to_integers(lower), _to_integers(upper)
    while bool((is_open := low < high).any()):
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, rounded down, of integers whose sum may not fit
        enough = is_enough(_float(middle, dtype))
        high = torch.where(is_open & enough, middle, high)
        low = torch.where(is_open & ~enough, middle + 1, low)
    return _float(high, dtype)


def _to_integers(value: Tensor) -> Tensor:
    """The bits of floats as integers, those of negative ones reversed: the order of integers is that of floats."""
    return _reversed_below_zero(value.contiguous().view(INTEGERS[value.dtype]))


def _float(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return _reversed_below_zero(bits).view(dtype)


def _reversed_below_zero(bits: Tensor) -> Tensor:
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


class _Root(torch.autograd.Function):
    """The root t of `sums(t, values) = total`: dt = (dtotal - sum of dsums by the values) / (dsums by t).

    Where the sums stand still at t, t does too. The gradient is a function of t, which is kept: it has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, sums: Sums, found: Tensor, total: Tensor, *values: Tensor) -> Tensor:
        root = found.clone()
        ctx.sums = sums
        ctx.save_for_backward(root, total, *values)
        return root

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()
        root, total, *values = ctx.saved_tensors
        needs_total, *needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            # Views: the derivatives are partial ones, though the root is made of the values.
            root = root.view_as(root) if again else root.detach().requires_grad_()
            values = [value.view_as(value) if again else value.detach() for value in values]
            for value, needs in zip(values, needed, strict=True):
                if needs and not again:
                    value.requires_grad_()
            at_root = ctx.sums(root, *values)
            (slope,) = gradients(at_root, [root], torch.ones_like(at_root), create_graph=again)
            moved = torch.where(slope == 0, 0.0, gradient / torch.where(slope == 0, 1.0, slope))
            wanted = [value for value, needs in zip(values, needed, strict=True) if needs]
            found = iter(gradients(at_root, wanted, -moved, create_graph=again) if wanted else ())
        by_total = moved.sum_to_size(total.shape) if needs_total else None
        return None, None, by_total, *(next(found) if needs else None for needs in needed)
