"""A mask seen from the keys: which queries a key tile meets, for kernels that walk queries (gradients of k and v).

In: a variant in its source form. Out: its mask with queries and keys in each other's place, after the passes, so that
what bounds keys there (`analysis.bounds`) bounds queries here: `kv_idx <= q_idx` becomes `kv_idx >= q_idx`, read as
"the queries of a key start at the key". The two forms may visit different supersets of the live tiles; both visit all.
"""

from __future__ import annotations

from dataclasses import replace

from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.rewrite import swapped
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes


def transpose_mask(source: Variant) -> Expr:
    """The mask of the transposed problem, solved; from the source form, because a solved comparison hides the query.

    before: `mask q_idx - kv_idx < window and kv_idx // 64 <= q_idx // 64`
    after:  `mask kv_idx <= q_idx + window - 1 and kv_idx >= q_idx // 64 * 64`
    """
    # Conditions hidden in scores join the mask before comparisons are solved.
    written = run_passes(source, after="mask_dead_scores")
    mask_alone = replace(written, score=build.SCORE, weight=build.WEIGHT, mask=swapped(written.mask))
    return run_passes(mask_alone).mask
