"""What a variant costs on given lengths, in words: what is skipped and why, and how the kernel computes the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attndsl.codegen.describe import describe
from attndsl.codegen.plan import Specialisation
from attndsl.compiler import Compilation
from attndsl.diagnostics import UnsupportedError
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.runtime.planner import BlockPlan, plan_blocks

BYTES = 2
"""Of an element of q, k, v and the output, as in bf16."""


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
        f"tiles: {_census(plan)}, {plan.nbytes} bytes of tables",
        f"work: {computed * flops / 1e9:.3g} GFLOP of {sum(counts.values()) * flops / 1e9:.3g} dense, "
        f"for each batch and head of the plan at head dim {head_dim}",
        *_order(compilation.source, plan, head_dim),
        "kernel:",
    ]
    try:
        kernel = compilation.kernel("forward", Specialisation(head_dim=head_dim, v_head_dim=head_dim))
    except UnsupportedError as error:
        lines.extend(f"  {line}" for line in str(error).splitlines())
    else:
        lines.extend(f"  {line}" for line in describe(kernel.plan).splitlines())
    return "\n".join(lines)


def _census(plan: BlockPlan) -> str:
    counts = plan.counts
    tiles = f"{counts['full']} full, {counts['partial']} partial, {counts['empty']} empty"
    return f"{tiles} ({plan.sparsity:.1%} skipped)"


def _order(source: Variant, plan: BlockPlan, head_dim: int) -> Iterator[str]:
    """What keeping tokens in tiles costs a call, and what the tiles would be without."""
    if source.order is None:
        return
    copied = 4 * source.order.length * head_dim * BYTES
    yield f"order: q, k, v and the output are copied once each to keep tokens in {source.order}:"
    yield f"  {copied} bytes read and as many written, for each batch and head at {BYTES} bytes an element"
    tiling = plan.tiling
    row_major = plan_blocks(
        run_passes(replace(source, order=None)),
        plan.values,
        tiling.q_len,
        tiling.kv_len,
        batch=tiling.batch,
        heads=tiling.heads,
        block=tiling.block,
        exact=plan.tiles.exact,
    )
    yield f"  tiles in row-major order: {_census(row_major)}"
