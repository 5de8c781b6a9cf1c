"""Ready-made routers, and the pieces `router` is given.

In: the parameters of a published method. Out: a `Router`. Each is a few words of `router`; where a method is more than
its selection, the docstring says what is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter, fail
from attndsl.routing.keep import Kept, diagonal, local, sink
from attndsl.routing.lines import FlexPrefill, VerticalSlash
from attndsl.routing.router import Router, router
from attndsl.routing.selection import Selection, check_mass, cumulative, threshold, top_k
from attndsl.routing.table import check_block

__all__ = [
    "cumulative",
    "diagonal",
    "flexprefill",
    "local",
    "moba",
    "quest",
    "seer",
    "sink",
    "threshold",
    "top_k",
    "vertical_slash",
    "vmoba",
]


def moba(block: int, top_k: int) -> Router:
    """MoBA: every query sees its own block of keys and the `top_k - 1` past blocks whose mean key it scores highest.

    For use with a causal mask, which holds inside the own block: `ad.attention(mask_mod=ad.masks.causal)`.
    """
    if not isinstance(top_k, int) or top_k < 1:
        raise fail(CallError, "bad-selection", f"`top_k` counts the query's own block: at least 1, got {top_k!r}")
    return router(block=(1, block), select=_best(top_k - 1))


def quest(page: int, top_k: int, *, causal: bool = True) -> Router:
    """Quest: every query sees the `top_k` pages with the largest bound on a key's score, and its own page if causal.

    The bound is over the least and greatest coordinate of the page's keys: no key of the page scores higher.
    """
    return router(block=(1, page), score="bound", select=_best(top_k), causal=causal)


def flexprefill(mass: float = 0.95, block: int = 128, *, divergence: float = 0.1) -> FlexPrefill:
    """FlexPrefill: for each head either pooled blocks or vertical and slash lines, by what its last queries look at.

    Pooled blocks: mean-pooled queries and keys, a softmax over each row of blocks, and the fewest blocks of a head that
    hold `mass` of all its rows; the first and the own blocks always. Lines: `vertical_slash(mass, block)`.

    A head takes pooled blocks where their estimate for the last `block` queries (the softmax over the mean keys of the
    blocks, of the mean of these queries) is close to what the blocks get: where the square root of the Jensen-Shannon
    divergence of the two, in natural logarithms, is below `divergence`. 0 always takes lines, 1 always pooled blocks.
    For use with a causal mask. The published budgets (a least and a most number of blocks) are not here.
    """
    if not isinstance(divergence, int | float) or isinstance(divergence, bool) or not divergence >= 0:
        raise fail(CallError, "bad-selection", f"`divergence` is {divergence!r}, expected a number, at least 0")
    pooled = router(block=(block, block), select=cumulative(mass, over="head"), keep=("sink", "diagonal"))
    return FlexPrefill(pooled, vertical_slash(mass, block), float(divergence))


def vertical_slash(mass: float = 0.95, block: int = 128) -> VerticalSlash:
    """Vertical and slash lines: keys that every later query sees, and distances at which every query sees its key.

    The last `block` queries attend causally to all keys, in float32; vertical lines are the fewest keys that hold
    `mass` of that attention, slash lines the fewest distances between query and key that do, ties to the earlier key
    and to the shorter distance. A block of `block` queries sees every block of `block` keys that a line runs through
    inside of the two, whole, and always the first block and its own; blocks in the future are never taken. So lines are
    rounded outwards to blocks. For use with a causal mask, which holds inside the own block.
    """
    reporter = Reporter(CallError)
    check_block(reporter, (block, block))
    reporter.check()
    check_mass(mass)
    return VerticalSlash(float(mass), block)


def seer(
    gates: Tensor | Callable[[Tensor, Tensor], Tensor],
    select: Selection,
    *,
    block: tuple[int, int] = (64, 64),
    keep: str | Kept | Iterable[str | Kept] | None = None,
    causal: bool = True,
) -> Router:
    """SeerAttention: the gates of a learned network as scores, `[B or 1, H or 1, query blocks, key blocks]`, or a
    function of (q, k) that computes them. Gates are compared with `select` as they are: apply a softmax yourself."""
    return router(block=block, score=gates, select=select, keep=keep, causal=causal)


def vmoba(shape: Sequence[int], block: Sequence[int], mass: float) -> Router:
    """VMoBA: tokens on a grid (time, height, width, or fewer), flattened with the last axis fastest; keys in boxes of
    `block` tokens; every query sees its own box and those that the head's largest gates lead to.

    A gate is a query's product with a box's mean key; gates of a batch and head are mapped to 0..1, and the largest
    taken until they hold `mass` of the sum. `block=(bt, H, W)` cuts slabs of time, `(T, bh, bw)` columns of space,
    `(bt, bh, bw)` boxes; a box at the border is as large as what is left.
    """
    sizes = (*shape, *block)
    if len(shape) != len(block) or not shape or not all(isinstance(size, int) and size > 0 for size in sizes):
        message = f"`shape` {tuple(shape)} and `block` {tuple(block)} are not sizes of the same axes"
        raise fail(CallError, "bad-block", message, help="write `vmoba((8, 32, 32), (2, 8, 8), mass=0.9)`")
    keys = _stretch(shape, block)
    boxes: int | Tensor = box_of_tokens(shape, block) if keys is None else keys
    select = cumulative(mass, over="head", weights="minmax")
    return router(block=(1, boxes), select=select, keep=("diagonal",), causal=False)


def box_of_tokens(shape: Sequence[int], block: Sequence[int]) -> Tensor:
    """The box of every token of a grid, boxes and tokens counted with the last axis fastest."""
    places = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    columns = [(place // size, -(-length // size)) for place, size, length in zip(places, block, shape, strict=True)]
    return reduce(lambda box, column: box * column[1] + column[0], columns, torch.zeros(())).long().flatten()


def _stretch(shape: Sequence[int], block: Sequence[int]) -> int | None:
    """The length of a box where boxes are stretches of tokens: all axes but the first are cut nowhere."""
    whole = all(size >= length for size, length in zip(block[1:], shape[1:], strict=True))
    return block[0] * math.prod(shape[1:]) if whole else None


_best = top_k
"""`top_k` under a name that parameters of that name do not hide."""
