"""The walk of a query tile over its key tiles, as Triton: where it starts, what is full, where it ends.

In: a `KeyWalk` and the printer of its expressions. Out: a `WalkText`. One range is walked as it is; several are put in
ascending order and walked by one loop, each from where the one before ended; a table's records are walked by the same
loop. Every key tile is visited once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from attndsl.analysis.axes import axes_of
from attndsl.analysis.bounds import Strategy
from attndsl.analysis.coverage import Cover
from attndsl.analysis.monotone import Trend
from attndsl.codegen.triton_expr import LoadStyle, TritonPrinter
from attndsl.codegen.walk import KeyBound, KeyWalk, RangeWalk
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Axis


class Ends(NamedTuple):
    """Names of the ends of a walk: partial tiles from key_lo, full ones from full_lo to full_hi, partial to key_hi."""

    key_lo: str = "key_lo"
    full_lo: str = "full_lo"
    full_hi: str = "full_hi"
    key_hi: str = "key_hi"

    def numbered(self, number: int) -> Ends:
        """The names of the ends of one of several ranges."""
        return Ends(*(f"{end}_{number}" for end in self))


ENDS = Ends()
SEEN_LO = "seen_lo"
"""The first key some query sees, before it is rounded down to a tile; the last is the one before `key_hi`."""


@dataclass(frozen=True, slots=True)
class WalkText:
    """`before` the loops; if there are several records, the loop over them, and what opens and closes each."""

    before: tuple[str, ...]
    loop: str = ""
    open: tuple[str, ...] = ()
    close: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WalkPrinter:
    """Prints walks. `program_names` are values known once a program, `row_names` also those of a query.

    `guards_ranges`: a range may be empty.
    """

    printer: TritonPrinter
    program_names: Mapping[Expr, str]
    row_names: Mapping[Expr, str]
    loads: LoadStyle
    guards_ranges: bool

    def text(self, walk: KeyWalk) -> WalkText:
        """The lines of a walk."""
        match walk.strategy:
            case Strategy.TABLE:
                return _table()
            case Strategy.DENSE:
                return WalkText(("key_lo = 0", "key_hi = kv_len"))
            case Strategy.CLOSED_FORM:
                before = (*self._first_and_last(walk), *self._ranges(walk))
                return WalkText(before) if len(walk.ranges) == 1 else _several(walk, before)

    def _first_and_last(self, walk: KeyWalk) -> Iterator[str]:
        bounds = (bound for keys in walk.ranges for bound in (*keys.lower, *keys.upper))
        if any(bound.trend in (Trend.RISING, Trend.FALLING) for bound in bounds):
            yield "q_first = q_offset + tile * BLOCK_M"
            yield "q_last = q_offset + tl.minimum(tile * BLOCK_M + BLOCK_M, q_len) - 1"

    def _ranges(self, walk: KeyWalk) -> Iterator[str]:
        for number, keys in enumerate(walk.ranges):
            ends = ENDS if len(walk.ranges) == 1 else ENDS.numbered(number)
            yield from self._range(keys, ends)
            if walk.has_full and not keys.has_full:
                yield f"{ends.full_lo} = {ends.key_lo}"
                yield f"{ends.full_hi} = {ends.key_lo}"

    def _range(self, keys: RangeWalk, ends: Ends) -> Iterator[str]:
        """Union bounds limit the walk, intersection bounds its full part; both rounded to key tiles."""
        lo, full_lo, full_hi, hi = ends
        yield "# Keys that some query of the tile sees."
        if keys.lower or keys.gates or not keys.has_full or ends is not ENDS:
            yield from self._bounded(lo, "0", "maximum", keys.lower, smallest=True)
        yield from self._bounded(hi, "kv_len", "minimum", keys.upper, smallest=False)
        if keys.has_full:
            yield "# Keys that every query of the tile sees, in whole key tiles."
            yield from self._bounded(full_lo, "0", "maximum", keys.lower, smallest=False)
            yield from self._bounded(full_hi, "kv_len", "minimum", keys.upper, smallest=True)
        yield from self._gates(keys, ends)
        if keys.cover is Cover.WHERE_NOT_EMPTY and self.guards_ranges:
            yield "# A window is empty for all queries of the tile or for none."
            first, last = (self._moving(side) for side in (keys.lower, keys.upper))
            yield f"{hi} = tl.where({first} <= {last}, {hi}, {lo})"
        if keys.cover is not Cover.UNKNOWN and keys.lower and ends is ENDS:
            yield f"{SEEN_LO} = {lo}"
        if keys.lower:
            yield f"{lo} = {lo} // BLOCK_N * BLOCK_N"
        if keys.has_full:
            if keys.lower:
                yield f"{full_lo} = tl.maximum({lo}, tl.cdiv({full_lo}, BLOCK_N) * BLOCK_N)"
            yield f"{full_hi} = tl.maximum({full_lo}, tl.maximum({full_hi}, 0) // BLOCK_N * BLOCK_N)"

    def _bounded(self, name: str, limit: str, pick: str, bounds: tuple[KeyBound, ...], smallest: bool) -> Iterator[str]:
        """An end of a range: its limit, drawn in by every bound. Lower bounds are included, upper ends are not."""
        if not bounds:
            yield f"{name} = {limit}"
        past = " + 1" if pick == "minimum" else ""
        for bound in bounds:
            yield f"{name} = tl.{pick}({limit}, {self._extreme(bound, smallest)}{past})"
            limit = name

    def _gates(self, keys: RangeWalk, ends: Ends) -> Iterator[str]:
        for gate in keys.gates:
            text = self.printer.named(gate, self.row_names, self.loads)
            some, every = text, text
            if Axis.Q in axes_of(gate):
                some, every = (f"tl.{pick}(({text}).to(tl.int32)) != 0" for pick in ("max", "min"))
            yield f"{ends.key_hi} = tl.where({some}, {ends.key_hi}, {ends.key_lo})"
            if keys.has_full:
                yield f"{ends.full_hi} = tl.where({every}, {ends.full_hi}, 0)"

    def _moving(self, bounds: tuple[KeyBound, ...]) -> str:
        """The bound that moves with the query, at the query where it is smallest."""
        return next(self._extreme(bound, smallest=True) for bound in bounds if bound.trend is not Trend.FLAT)

    def _extreme(self, bound: KeyBound, smallest: bool) -> str:
        """The least or greatest value of a bound over the rows of the tile."""
        match bound.trend:
            case Trend.UNKNOWN:
                rows = self.printer.named(bound.value, self.row_names, self.loads)
                return f"tl.{'min' if smallest else 'max'}({rows})"
            case Trend.FLAT:
                return self.printer.named(bound.value, self.program_names, self.loads)
            case _:
                first = smallest is (bound.trend is Trend.RISING)
                names = {**self.program_names, build.Q: "q_first" if first else "q_last"}
                return self.printer.named(bound.value, names, self.loads)


def _table() -> WalkText:
    return WalkText(
        before=("table_row = b * stride_tb + h * stride_th + tile",),
        loop="for record in range(tl.load(Table_rows + table_row), tl.load(Table_rows + table_row + 1)):",
        open=tuple(
            f"{end} = tl.load(Table + record * 3 + {place})"
            for place, end in enumerate((ENDS.key_lo, ENDS.full_lo, ENDS.key_hi))
        ),
    )


def _several(walk: KeyWalk, before: tuple[str, ...]) -> WalkText:
    """Ranges in ascending order of their first keys; each starts where those before it ended."""
    count = len(walk.ranges)
    ends = tuple(ENDS) if walk.has_full else (ENDS.key_lo, ENDS.key_hi)
    ordered = () if walk.is_ordered else tuple(_ordered(count, ends))
    full = ("full_lo = tl.maximum(full_lo, key_lo)", "full_hi = tl.maximum(full_hi, full_lo)")
    return WalkText(
        before=(*before, *ordered, "done = 0"),
        loop=f"for part in range({count}):",
        open=(*_picked(ends, count), "key_lo = tl.maximum(key_lo, done)", *(full if walk.has_full else ())),
        close=("done = tl.maximum(done, tl.cdiv(key_hi, BLOCK_N) * BLOCK_N)",),
    )


def _picked(ends: tuple[str, ...], count: int) -> Iterator[str]:
    """The ends of the range of this part."""
    for end in ends:
        yield f"{end} = tl.where(part == 0, {end}_0, {end}_1)"
        yield from (f"{end} = tl.where(part == {number}, {end}_{number}, {end})" for number in range(2, count))


def _ordered(count: int, ends: tuple[str, ...]) -> Iterator[str]:
    """Neighbours exchanged until the first keys ascend."""
    yield "# In ascending order of their first keys."
    for last in range(count - 1, 0, -1):
        for at in range(last):
            yield f"late = key_lo_{at} > key_lo_{at + 1}"
            for end in ends:
                left, right = f"{end}_{at}", f"{end}_{at + 1}"
                yield f"{left}, {right} = tl.where(late, {right}, {left}), tl.where(late, {left}, {right})"
