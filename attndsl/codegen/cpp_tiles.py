"""The tile shape of C++ kernels: by default one for every processor, so that tables and results depend on none.

In: a plan. Out: queries and keys of a tile, which the text of a kernel is written for.
"""

from __future__ import annotations

from attndsl.codegen.plan import KernelPlan

BLOCK = (64, 64)
"""Scores of a tile and what they are made of stay in the first cache, and products fill four vectors of queries."""


def block_of(plan: KernelPlan) -> tuple[int, int]:
    """(queries, keys) of a tile of this plan."""
    return BLOCK if plan.spec.block is None else plan.spec.block
