"""The key tiles a query tile visits: which, in what order, and which of them need the mask.

In: a mask after the passes and a strategy. Out: a `KeyWalk`, still expressions: printers turn it into loops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attndsl.analysis.bounds import Strategy, key_range, key_ranges
from attndsl.analysis.coverage import Cover, coverage
from attndsl.analysis.monotone import Trend, trend_in_query
from attndsl.ir.nodes import Expr
from attndsl.ir.rewrite import swapped


@dataclass(frozen=True, slots=True)
class KeyBound:
    """A bound on the key as a function of the query, and how it moves along the tile's rows."""

    value: Expr
    trend: Trend


@dataclass(frozen=True, slots=True)
class RangeWalk:
    """One range of keys as a query tile walks it, in ascending order: partial, full, partial tiles.

    Union bounds (a key some row of the tile sees) limit the walk; intersection bounds (a key every row sees) limit its
    full part. `has_full` is false where terms bound nothing: then every visited tile is partial.
    `cover` says whether every key between the union bounds is seen by some row of the tile.
    """

    lower: tuple[KeyBound, ...] = ()
    upper: tuple[KeyBound, ...] = ()
    gates: tuple[Expr, ...] = ()
    has_full: bool = True
    cover: Cover = Cover.UNKNOWN

    @property
    def has_left(self) -> bool:
        """Whether partial tiles may come before the full ones: nothing but a lower bound makes them so."""
        return self.has_full and bool(self.lower)


@dataclass(frozen=True, slots=True)
class KeyWalk:
    """The key tiles a query tile visits, each once, in ascending order.

    `ranges` are the closed forms, those without a lower bound first; a table or a dense walk has none.
    `ascending` says that later query tiles never see fewer keys, so they are launched first.
    """

    strategy: Strategy
    ranges: tuple[RangeWalk, ...]
    ascending: bool

    @property
    def has_left(self) -> bool:
        return any(keys.has_left for keys in self.ranges)

    @property
    def has_full(self) -> bool:
        return self.strategy is Strategy.TABLE or any(keys.has_full for keys in self.ranges)

    @property
    def seen_are_bounded(self) -> bool:
        """Whether the union bounds of the one range tell the keys some row sees from those none does."""
        return len(self.ranges) == 1 and self.ranges[0].cover is not Cover.UNKNOWN

    @property
    def is_ordered(self) -> bool:
        """Whether the ranges start in the order they stand in, whatever the query."""
        return sum(bool(keys.lower) for keys in self.ranges) <= 1 or len(self.ranges) == 1


def plan_walk(mask: Expr, strategy: Strategy) -> KeyWalk:
    """The key tiles to visit, from the bounds the mask puts on the key."""
    if strategy is Strategy.DENSE:
        return KeyWalk(strategy, (), ascending=False)
    conjunction = key_range(mask)
    upper = _key_bounds(conjunction.upper)
    ascending = bool(upper) and not conjunction.lower and all(bound.trend is Trend.RISING for bound in upper)
    if strategy is Strategy.TABLE:
        return KeyWalk(strategy, (), ascending)
    ranges = (
        RangeWalk(_key_bounds(keys.lower), _key_bounds(keys.upper), keys.gates, keys.is_exact, coverage(keys))
        for keys in key_ranges(mask)
    )
    return KeyWalk(strategy, tuple(sorted(ranges, key=lambda keys: bool(keys.lower))), ascending)


def plan_query_walk(transposed: Expr, strategy: Strategy) -> KeyWalk:
    """The query tiles a key tile meets: the same walk with queries and keys in each other's place.

    In: a transposed mask. Its bounds are turned back, so that they speak of the kernel's own key and bound a query.
    """
    walk = plan_walk(transposed, strategy)
    return replace(walk, ranges=tuple(map(_turned, walk.ranges)))


def _turned(keys: RangeWalk) -> RangeWalk:
    lower, upper = (
        tuple(replace(bound, value=swapped(bound.value)) for bound in side) for side in (keys.lower, keys.upper)
    )
    return replace(keys, lower=lower, upper=upper, gates=tuple(map(swapped, keys.gates)))


def _key_bounds(values: tuple[Expr, ...]) -> tuple[KeyBound, ...]:
    return tuple(KeyBound(value, trend_in_query(value)) for value in values)
