"""Kernels in words, for the heads of modules."""

from __future__ import annotations

from attndsl.codegen.plan import KernelPlan

_TITLES = {
    "forward": "forward",
    "row_outputs": "sums of the rows",
    "backward": "backward, gradients of q, k and v",
    "backward_rows": "backward, sums over the rows",
    "backward_dq": "backward, gradient of q",
    "backward_dkv": "backward, gradients of k and v",
    "backward_diagonal": "backward, gradients by the distance of query and key",
    "backward_pairs": "backward, gradients of pairs",
}


def title_of(plan: KernelPlan) -> str:
    """What a kernel computes."""
    return _TITLES.get(plan.kernel, "statistics of the rows")
