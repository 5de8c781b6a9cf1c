"""What masks over grids mean, written as loops over positions and lists: nothing here is shared with the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Place = tuple[int, ...]


def pairs(sizes: Sequence[int], sees: Callable[[Place, Place], bool]) -> Mask:
    """Bool [queries, keys] of a relation between places, tokens in row-major order."""
    places = list(product(*map(range, sizes)))
    return np.array([[sees(q, k) for k in places] for q in places])


def along_axes(sizes: Sequence[int], seen: Callable[[int, int], set[int]]) -> Mask:
    """The product over the axes; `seen(axis, i)` are the coordinates `i` sees along an axis."""
    tables = [[seen(axis, i) for i in range(size)] for axis, size in enumerate(sizes)]
    return pairs(sizes, lambda q, k: all(b in tables[axis][a] for axis, (a, b) in enumerate(zip(q, k, strict=True))))


def window_of(size: int, i: int, window: int, dilation: int = 1, stride: int = 1, causal: bool = False) -> set[int]:
    """The coordinates `i` sees along an axis of a neighbourhood."""
    own = [place for place in range(size) if (place - i) % dilation == 0]
    at = own.index(i)
    group = [n for n in range(len(own)) if n // stride == at // stride]
    if causal:
        end = min(group[0] + stride - 1, len(own) - 1)
        return {own[n] for n in range(max(end - window + 1, 0), end + 1) if n <= at}
    centre = min(group[0] + stride // 2, len(own) - 1)
    start = centre - window // 2
    while start < 0:
        start += 1
    while start + window > len(own):
        start -= 1
    return set(own[start : start + window])


def swin(size: int, window: int, shift: int, wrap: bool) -> list[set[int]]:
    """The windows of an axis cut at shift, shift + window, ..."""
    cuts = [0, *range(shift, size, window), size] if shift else [*range(0, size, window), size]
    windows = [set(range(a, b)) for a, b in pairwise(cuts)]
    if wrap and shift:
        windows = [windows[0] | windows[-1], *windows[1:-1]]
    return windows


def radial(frames: int, tokens: int, decay: float, block: int, adjacent: int, sink: bool) -> Mask:
    """The published rule, frame pair by frame pair, in floats."""
    mask = np.zeros((frames * tokens, frames * tokens), bool)
    for i, j, p, p2 in product(range(frames), range(frames), range(tokens), range(tokens)):
        distance = abs(i - j)
        length = 2 ** len(f"{tokens:b}") / 2 ** (len(f"{distance:b}") if distance else 0)
        width = tokens if distance == 0 else adjacent if distance == 1 else max(length * decay, block)
        kept = length >= block or distance % int(block / length) == 0
        mask[i * tokens + p, j * tokens + p2] = (abs(p - p2) <= width and kept) or (sink and j == 0)
    return mask
