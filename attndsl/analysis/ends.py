"""The ends of key ranges at single queries, and where queries must be told apart for these to move one way between.

In: a `KeyRange`, a `Tiling`, what the call knows. Out: a `Source`, which evaluates the range at the first and the last
query of many bands at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from attndsl.analysis.bounds import KeyRange
from attndsl.analysis.coverage import Cover, coverage
from attndsl.analysis.intervals import Box, Evaluation, Known, evaluate
from attndsl.analysis.order import Sought, sought
from attndsl.analysis.steady import conditions, move_one_way, steady_loads, turn_once
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Interval, Truth, Value
from attndsl.ir.nodes import Expr, Load
from attndsl.ir.types import Coordinate

FAR = 2**40
"""Beyond every key."""


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """Of many bands the keys that their first and their last query may see, and those that these certainly see.

    `limits` [4, 2, bands]: outer and inner lower ends, outer and inner upper ends, clipped to the keys of the call;
    an interval with lo > hi is empty. `steady`: no gate opens or closes inside the band; `gapless`: every key between
    the least and the greatest that a query of the band sees is seen by one of them.
    """

    limits: Array
    steady: Array
    gapless: Array

    def where(self, chosen: Array) -> Ends:
        return Ends(self.limits[:, :, chosen], self.steady[chosen], self.gapless[chosen])

    def joined(self, other: Ends) -> Ends:
        limits = np.concatenate([self.limits, other.limits], axis=2)
        flags = ((self.steady, other.steady), (self.gapless, other.gapless))
        return Ends(limits, *map(np.concatenate, flags))

    @property
    def seen_by_some(self) -> tuple[Array, Array]:
        return self.limits[0].min(axis=0), self.limits[2].max(axis=0)

    @property
    def seen_by_all(self) -> tuple[Array, Array]:
        return self.limits[1].max(axis=0), self.limits[3].min(axis=0)

    @property
    def seen_at_ends(self) -> tuple[Array, Array]:
        """What the first queries see, then what the last ones do."""
        return self.limits[1].ravel(), self.limits[3].ravel()

    @property
    def leave_no_gap(self) -> Array:
        """Bands known to be without a gap, or in which all queries share a key, or none sees any."""
        lo, _, hi, _ = self.limits
        shared, none = lo.max(axis=0) <= hi.min(axis=0), lo.min(axis=0) > hi.max(axis=0)
        return np.asarray((shared | none | self.gapless) & self.steady)

    @property
    def are_numbers(self) -> bool:
        """Whether what may be seen is what is seen."""
        lo, inner_lo, hi, inner_hi = self.limits
        return bool((lo == inner_lo).all() and (hi == inner_hi).all())


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A range ready to be evaluated. `searched` are bounds found among sorted elements; `steady` the loads along the
    queries that rarely change; `moves_one_way` says whether between those changes the ends do."""

    keys: KeyRange
    searched: tuple[Sought, ...]
    tiling: Tiling
    known: Known
    evaluation: Evaluation
    steady: frozenset[Load]
    moves_one_way: bool

    def cuts(self) -> Array:
        """Queries, counted through [B', H', Nq], at which a steady load changes."""
        return np.concatenate([np.zeros(0, np.int64), *map(self._changes, self.steady)])

    def ends(self, first: Array, last: Array) -> Ends:
        """The range at the first and at the last query of bands."""
        size = len(first)
        if (first == last).all():
            limits = self._limits(self.evaluation.of(_at(first, self.tiling)), size)
            return Ends(np.stack([limits, limits], axis=1), *np.full((2, size), True))
        values = self.evaluation.of(_at(np.concatenate([first, last]), self.tiling))
        limits = self._limits(values, 2 * size).reshape(4, 2, size)
        return Ends(limits, self._closed_alike(values, size), self._has_no_gap(values, size))

    def side(self, is_lower: bool) -> Iterator[tuple[Expr, bool]]:
        """The bounds of one side, and whether each falls where its expression rises."""
        for bound in self.keys.lower if is_lower else self.keys.upper:
            yield bound, False
        for found in self.searched:
            if found.is_lower is is_lower:
                yield found.value, found.order.falls

    def _limits(self, values: Mapping[Expr, Value], size: int) -> Array:
        """The limits of single queries, [4, queries]."""
        limits = np.empty((4, size), np.int64)
        limits[:2], limits[2:] = 0, self.tiling.kv_len - 1
        for is_lower, lo, hi in self._bounds(values, size):
            if is_lower:
                np.maximum(limits[:2], (lo, hi), out=limits[:2])
            else:
                np.minimum(limits[2:], (hi, lo), out=limits[2:])
        for gate in self.keys.gates:
            truth = _truth(values[gate])
            limits[2][~_flat(truth.can_be_true, size)] = -1
            limits[3][_flat(truth.can_be_false, size)] = -1
        if not self.keys.is_exact:
            limits[3] = -1
        return limits

    def _bounds(self, values: Mapping[Expr, Value], size: int) -> Iterator[tuple[bool, Array, Array]]:
        """Which side a bound is on, and its least and greatest value for each query."""
        for is_lower, bounds in ((True, self.keys.lower), (False, self.keys.upper)):
            for value in (_interval(values[bound]) for bound in bounds):
                yield is_lower, _clipped(value.lo, size), _clipped(value.hi, size)
        for bound in self.searched:
            value, rows = _interval(values[bound.value]), _row(bound.indices, bound.shape, values, size)
            ends = [bound.ends(_flat(end, size), rows) for end in (value.lo, value.hi)[: 1 if value.is_point else 2]]
            yield bound.is_lower, reduce(np.minimum, ends), reduce(np.maximum, ends)

    def _has_no_gap(self, values: Mapping[Expr, Value], size: int) -> Array:
        """Bands without a gap by the shape of the bounds."""
        cover = Cover.UNKNOWN if self.searched else coverage(replace(self.keys, residue=()))
        if cover is not Cover.WHERE_NOT_EMPTY:
            return np.full(size, cover is Cover.ALWAYS)
        bounds = (self.keys.lower, self.keys.upper)
        lower, upper = ([_clipped(_interval(values[end]).lo, 2 * size) for end in side] for side in bounds)
        return np.asarray((reduce(np.maximum, lower) <= reduce(np.minimum, upper))[:size])

    def _closed_alike(self, values: Mapping[Expr, Value], size: int) -> Array:
        """Bands at both ends of which every condition in the gates is the same."""
        alike = np.full(size, True)
        for condition in (condition for gate in self.keys.gates for condition in conditions(gate)):
            truth = _truth(values[condition])
            for can in (truth.can_be_true, truth.can_be_false):
                at_first, at_last = _flat(can, 2 * size).reshape(2, size)
                alike &= at_first == at_last
        return alike

    def _changes(self, load: Load) -> Array:
        """The queries at which a load differs from the one before."""
        tiling, summary = self.tiling, self.known.summaries[load.tensor]
        pairs, lead = np.arange(tiling.batch * tiling.heads), load.indices[:-1]
        values = evaluate(lead, _at(pairs * tiling.q_len, tiling), self.known) if lead else {}
        rows = _row(lead, summary.shape, values, len(pairs))
        starts = np.broadcast_to(tiling.q_offset[:, None], (tiling.batch, tiling.heads)).ravel()
        of_row, element = summary.changes()
        found = []
        for pair, row, start in zip(pairs.tolist(), rows.tolist(), starts.tolist(), strict=True):
            low, high = (int(np.searchsorted(of_row, row, side)) for side in ("left", "right"))
            query = element[low:high] - start
            found.append(query[(query > 0) & (query < tiling.q_len)] + pair * tiling.q_len)
        return np.concatenate(found)


def prepare(keys: KeyRange, tiling: Tiling, known: Known) -> Source:
    """The range with what of its residue is a search among sorted elements turned into bounds."""
    solved = {term: sought(term, known.summaries, tiling.kv_len) for term in keys.residue}
    rest = replace(keys, residue=tuple(term for term in keys.residue if not solved[term]))
    searched = tuple(bound for bounds in solved.values() for bound in bounds)
    roots = (*rest.lower, *rest.upper, *rest.gates, *(node for bound in searched for node in bound.roots))
    steady = steady_loads(roots, tiling.batch * tiling.heads * tiling.q_len, known)
    found = Source(rest, searched, tiling, known, Evaluation(roots, tiling.whole, known), steady, moves_one_way=False)
    sides = (move_one_way(found.side(is_lower), steady) for is_lower in (True, False))
    return replace(found, moves_one_way=all(sides) and turn_once(keys.gates, steady))


def _at(query: Array, tiling: Tiling) -> Box:
    """Single queries, counted through [B', H', Nq]."""
    pair = query // tiling.q_len
    batch = pair // tiling.heads
    offset = tiling.q_offset[batch] if len(tiling.q_offset) > 1 else tiling.q_offset[0]
    points = {Coordinate.B: batch, Coordinate.H: pair % tiling.heads, Coordinate.Q_IDX: query % tiling.q_len + offset}
    lengths = {Coordinate.Q_LEN: np.array(tiling.q_len), Coordinate.KV_LEN: np.array(tiling.kv_len)}
    keys = (np.full((1, 1, 1, 1), key) for key in (0, tiling.kv_len - 1))
    ranges = {name: point.reshape(1, 1, 1, -1) for name, point in (points | lengths).items()}
    return Box({**{name: Interval(point, point) for name, point in ranges.items()}, Coordinate.KV_IDX: Interval(*keys)})


def _row(indices: tuple[Expr, ...], shape: tuple[int, ...], values: Mapping[Expr, Value], size: int) -> Array:
    """Which row along the last axis the indices before it choose."""
    row = np.zeros(size, np.int64)
    for index, count in zip(indices, shape, strict=False):
        place = np.minimum(np.maximum(_flat(_interval(values[index]).lo, size), 0), count - 1)
        row = row * count + place.astype(np.int64)
    return row


def _clipped(end: Array, size: int) -> Array:
    return np.minimum(np.maximum(_flat(end, size), -FAR), FAR).astype(np.int64, copy=False)


def _flat(array: Array, size: int) -> Array:
    flat = array.reshape(-1)
    return flat if flat.size == size else np.broadcast_to(flat, size)


def _interval(value: Value) -> Interval:
    assert isinstance(value, Interval)
    return value


def _truth(value: Value) -> Truth:
    assert isinstance(value, Truth)
    return value
