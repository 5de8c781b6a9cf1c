"""What the pairs of a tile hold in registers beside their scores.

In: a `KernelPlan`. Out: how many captured numbers and how many operations a pair has of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from attndsl.analysis.axes import axes_below
from attndsl.codegen.coarse import coarse_reads
from attndsl.codegen.placement import Scope, scope_of
from attndsl.codegen.plan import KernelPlan
from attndsl.ir.nodes import Apply, Expr, Load
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis


def pair_reads(plan: KernelPlan) -> int:
    """The captured numbers that are read for every pair, each with an address of its own. A read whose place is read
    along the walk counts as one: both are in flight at once."""
    axes, coarse = axes_below(*_roots(plan)), coarse_reads(_roots(plan)) if plan.spec.fast else {}
    reads = (node for node in axes if isinstance(node, Load) and node not in coarse)
    return sum(scope_of(axes[node]) is Scope.TILE or _is_indirect(node, axes) for node in reads)


def pair_operations(plan: KernelPlan) -> int:
    """The operations made for every pair."""
    axes = axes_below(*_roots(plan))
    return sum(isinstance(node, Apply) and scope_of(axes[node]) is Scope.TILE for node in axes)


def _roots(plan: KernelPlan) -> tuple[Expr, ...]:
    return (plan.mask, plan.score, *(part.integrand for part in plan.maxima), *plan.pair_values)


def _is_indirect(load: Load, axes: Mapping[Expr, frozenset[Axis]]) -> bool:
    """Whether the place of a read along the keys is read along them too."""
    return any(isinstance(node, Load) and Axis.K in axes[node] for node in postorder(*load.indices))
