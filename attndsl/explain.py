"""What a variant costs on given lengths, in words: what is skipped and why, and how the kernel computes the rest."""

from __future__ import annotations

from attndsl.codegen.describe import describe
from attndsl.codegen.plan import Specialisation
from attndsl.compiler import Compilation
from attndsl.diagnostics import UnsupportedError
from attndsl.runtime.planner import BlockPlan


def explain(compilation: Compilation, plan: BlockPlan, head_dim: int) -> str:
    """The strategy with its reasons, the census of tiles, FLOPs, and the kernel's plan."""
    counts = plan.counts
    computed = counts["full"] + counts["partial"]
    block_q, block_kv = plan.tiling.block
    # Two products of 2 * D operations a pair, over B' * H' heads.
    flops = 4 * head_dim * block_q * block_kv
    lines = [
        f"{compilation.source.name}: {plan.strategy}",
        *(f"  {reason}" for reason in plan.reasons),
        f"tiles: {counts['full']} full, {counts['partial']} partial, {counts['empty']} empty "
        f"({plan.sparsity:.1%} skipped), {plan.nbytes} bytes of tables",
        f"work: {computed * flops / 1e9:.3g} GFLOP of {sum(counts.values()) * flops / 1e9:.3g} dense, "
        f"for each batch and head of the plan at head dim {head_dim}",
        "kernel:",
    ]
    try:
        kernel = compilation.kernel("forward", Specialisation(head_dim=head_dim, v_head_dim=head_dim))
    except UnsupportedError as error:
        lines.extend(f"  {line}" for line in str(error).splitlines())
    else:
        lines.extend(f"  {line}" for line in describe(kernel.plan).splitlines())
    return "\n".join(lines)
