"""Positions become those tokens have in storage, where a variant keeps them tile by tile."""

from __future__ import annotations

from dataclasses import replace

from attndsl.ir import build
from attndsl.ir.rewrite import substituted
from attndsl.ir.variant import Variant


def permute_tokens(variant: Variant) -> Variant:
    """Carry out the order of tokens: `q_idx` and `kv_idx` count tokens in storage, and nothing is left to permute.

    before: `grid g(y = 8, x = 8) tile (4, 4)` and `mask g(q_idx).x == 0`
    after:  `mask q_idx // 16 % 2 * 4 + q_idx % 4 == 0`
    """
    if variant.order is None:
        return variant
    stored = variant.order.stored(build.Q) | variant.order.stored(build.K)
    moves = substituted(variant.roots, stored)
    return replace(
        variant.map(moves.__getitem__),
        origins=variant.origins.moved(moves),
        requirements=variant.demands,
        order=None,
    )
