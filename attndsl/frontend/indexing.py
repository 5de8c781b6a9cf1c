"""Index expressions as Python gives them, sorted into what torch applies at once and what waits for coordinates.

In: what stands between the brackets. Out: one entry for each dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attndsl.frontend.symbols import symbols_in

FULL = slice(None)


def entries(index: Any, rank: int) -> list[Any]:
    """An index as a list, `...` written out."""
    given = list(index) if isinstance(index, tuple) else [index]
    for position, item in enumerate(given):
        if item is Ellipsis:
            fill = [FULL] * max(0, rank - len(given) + 1)
            return [*given[:position], *fill, *given[position + 1 :]]
    return given


def is_full(item: Any) -> bool:
    """Whether an entry is `:`. By identity: symbols in a slice have no truth to compare by."""
    return isinstance(item, slice) and item.start is None and item.stop is None and item.step is None


def is_static(item: Any) -> bool:
    """Whether only torch knows what an entry means: slices with bounds and negative numbers need the sizes."""
    if isinstance(item, slice):
        return not is_full(item) and next(symbols_in(item), None) is None
    return type(item) is int and item < 0


def static_part(given: Sequence[Any]) -> tuple[Any, ...]:
    """What torch applies at once: the static entries, all else left as it is."""
    return tuple(item if is_static(item) else FULL for item in given)


def waiting_part(given: Sequence[Any]) -> list[Any]:
    """What is left after that: numbers took their dimension away, slices did not."""
    return [FULL if is_static(item) else item for item in given if not (type(item) is int and is_static(item))]
