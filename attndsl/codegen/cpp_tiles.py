"""The tile shape of C++ kernels: one for every processor, so that tables and results depend on none.

In: a plan. Out: queries and keys of a tile; `templates/cpp_tiles.h` has the same numbers.
"""

from __future__ import annotations

from attndsl.codegen.plan import KernelPlan

BLOCK = (64, 64)


def block_of(plan: KernelPlan) -> tuple[int, int]:
    """(queries, keys) of a tile of this plan."""
    return BLOCK
