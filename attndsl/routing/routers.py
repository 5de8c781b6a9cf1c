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

from attndsl.diagnostics import CallError, fail
from attndsl.routing.keep import Kept, diagonal, local, sink
from attndsl.routing.router import Router, router
from attndsl.routing.selection import Selection, cumulative, threshold, top_k

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


def flexprefill(mass: float = 0.95, block: int = 128) -> Router:
    """FlexPrefill's query-aware heads: mean-pooled queries and keys, a softmax over each row of blocks, and the fewest
    blocks of a head that hold `mass` of all its rows; the first and the own blocks always.

    Its other pattern, columns and diagonals seen from the last queries, and the choice between the two are not here.
    """
    return router(block=(block, block), select=cumulative(mass, over="head"), keep=("sink", "diagonal"))


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
