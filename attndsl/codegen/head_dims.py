"""Head dimensions as columns of tiles: sizes of matrix products are powers of two, head dims need not be.

In: a head dim. Out: its `Columns`. One that is a power of two is computed at once; 96 is computed as 64 and 32, with a
tile of q, k, v and every accumulator for each, and their products summed; one that two pieces do not make smaller is
padded to the next power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

LEAST = 16
"""The fewest columns a matrix product takes."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A stretch of the columns of a head dim, `width` from `start`; those from `limit` on are padding.

    `suffix` tells the names of its tiles from those of others: `k_0`, `k_1`.
    """

    start: int
    width: int
    limit: int
    suffix: str = ""

    @property
    def arange(self) -> str:
        """The columns, as Triton."""
        own = f"tl.arange(0, {self.width})"
        return f"{self.start} + {own}" if self.start else own

    @property
    def is_padded(self) -> bool:
        return self.start + self.width > self.limit


@cache
def columns_of(head_dim: int) -> tuple[Columns, ...]:
    """The pieces a head dim is computed in, widest first."""
    most = padded(head_dim)
    rest = padded(head_dim - most // 2)
    if head_dim < 2 * LEAST or most // 2 + rest >= most:
        return (Columns(0, most, head_dim),)
    return (Columns(0, most // 2, head_dim, "_0"), Columns(most // 2, rest, head_dim, "_1"))


def computed(head_dim: int) -> int:
    """The columns a head dim is computed in, padding included."""
    return sum(columns.width for columns in columns_of(head_dim))


def padded(size: int) -> int:
    """The power of two that holds a size, at least what a matrix product takes."""
    return max(LEAST, 1 << (size - 1).bit_length())
