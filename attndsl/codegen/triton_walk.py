"""The walk of a query tile over its key tiles, as Triton: where it starts, what is full, where it ends.

In: a `KeyWalk` and the printer of its expressions. Out: a `WalkText`. One range is walked as it is; several are put in
ascending order and walked by one loop, each from where the one before ended; a table's records are walked by the same
loop. Every key tile is visited once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from attndsl.analysis.bounds import Strategy
from attndsl.analysis.coverage import Cover
from attndsl.analysis.monotone import Trend
from attndsl.codegen.triton_expr import LoadStyle, TritonPrinter
from attndsl.codegen.walk import KeyBound, KeyWalk, RangeWalk
from attndsl.ir import build
from attndsl.ir.nodes import Expr, postorder


class Ends(NamedTuple):
    """Names of the ends of a walk: partial tiles from lo, full ones from full_lo to full_hi, partial to hi."""

    lo: str
    full_lo: str
    full_hi: str
    hi: str

    def numbered(self, number: int) -> Ends:
        """The names of the ends of one of several ranges."""
        return Ends(*(f"{end}_{number}" for end in self))


@dataclass(frozen=True, slots=True)
class Frame:
    """How a kernel speaks of its walk.

    `own` is the coordinate of what a program keeps, `first` to `last` those of its tile; `walked` is what it meets,
    `some` and `every` say what meets some or all of it. What is walked has `length`, comes in tiles of `block`, and is
    `shift` away from the positions that bounds speak of. Partial tiles of a turn go up to `stop`;
    `turns` are the turns in the form that takes the fewest registers.
    """

    ends: Ends
    stop: str
    turns: str
    own: Expr
    walked: str
    some: str
    every: str
    first: str
    last: str
    first_value: str
    last_value: str
    length: str
    block: str
    shift: str


KEY_FRAME = Frame(
    ends=Ends("key_lo", "full_lo", "full_hi", "key_hi"),
    stop="key_stop",
    turns="range(2)",
    own=build.Q,
    walked="key",
    some="# Keys that some query of the tile sees.",
    every="# Keys that every query of the tile sees, in whole key tiles.",
    first="q_first",
    last="q_last",
    first_value="q_offset + tile * BLOCK_M",
    last_value="q_offset + tl.minimum(tile * BLOCK_M + BLOCK_M, q_len) - 1",
    length="kv_len",
    block="BLOCK_N",
    shift="",
)
"""A program keeps queries and walks keys."""

ROW_FRAME = Frame(
    ends=Ends("row_lo", "full_lo", "full_hi", "row_hi"),
    stop="row_stop",
    turns="tl.range(0, 2, disable_licm=True)",
    own=build.K,
    walked="query",
    some="# Queries that see some key of the tile.",
    every="# Queries that see every key of the tile, in whole query tiles.",
    first="k_first",
    last="k_last",
    first_value="tile * BLOCK_N",
    last_value="tl.minimum(tile * BLOCK_N + BLOCK_N, kv_len) - 1",
    length="q_len",
    block="BLOCK_M",
    shift=" - q_offset",
)
"""A program keeps keys and walks queries, by their row in the call: their position less the offset."""

INDENT = "    "

SHARE = ("split_lo", "split_hi")
"""The ends of what a program walks where several share a walk."""

SEEN_LO = "seen_lo"
"""The first position that takes part, before it is rounded down to a tile; the last is the one before the end."""


@dataclass(frozen=True, slots=True)
class WalkText:
    """The lines before and after the loops over tiles; `depth` loops are around these."""

    opening: tuple[str, ...]
    closing: tuple[str, ...] = ()
    depth: int = 0

    def then(self, *lines: str) -> WalkText:
        """More lines, inside of the loops there are."""
        return replace(self, opening=(*self.opening, *_indented(lines, self.depth)))

    def within(self, loop: str, first: tuple[str, ...] = (), last: tuple[str, ...] = ()) -> WalkText:
        """One more loop inside of those there are, and what it does first and last."""
        inner = self.depth + 1
        opening = (*self.then(loop).opening, *_indented(first, inner))
        return WalkText(opening, (*_indented(last, inner), *self.closing), inner)

    @property
    def is_open(self) -> bool:
        """Whether a loop stands right before those over tiles."""
        return self.opening[-1].endswith(":")

    def knows(self, name: str) -> bool:
        """Whether a name has a value before the loops over tiles."""
        return any(line.lstrip().startswith(f"{name} = ") for line in self.opening)


def _indented(lines: Iterable[str], depth: int) -> Iterator[str]:
    return (INDENT * depth + line for line in lines)


@dataclass(frozen=True, slots=True)
class WalkPrinter:
    """Prints walks. `program_names` are values known once a program, `own_names` also those of what it keeps.

    `guards_ranges`: a range may be empty. `stretch` are the ends of what is walked, where they are narrower than its
    length. `takes_turns`: partial tiles before the full ones and after them share a loop. `is_split`: programs share
    what is walked.
    """

    printer: TritonPrinter
    program_names: Mapping[Expr, str]
    own_names: Mapping[Expr, str]
    loads: LoadStyle
    guards_ranges: bool
    tells_seen: bool = True
    frame: Frame = KEY_FRAME
    stretch: tuple[str, str] | None = None
    takes_turns: bool = False
    is_split: bool = False

    def text(self, walk: KeyWalk) -> WalkText:
        """The lines of a walk."""
        text, stretch = self._ends(walk), self.stretch
        if self.is_split:
            text, stretch = text.then(*self._share(walk, text)), SHARE
        if stretch is not None:
            lo, hi = stretch
            known = (end for end in self.frame.ends if text.knows(end))
            text = text.then(*(f"{end} = tl.minimum(tl.maximum({end}, {lo}), {hi})" for end in known))
        return self._turns(text) if self.takes_turns else text

    def _share(self, walk: KeyWalk, text: WalkText) -> Iterator[str]:
        """The share of a program: of the tiles of the one range there is, else of all tiles."""
        (lo, _, _, hi), block = self.frame.ends, self.frame.block
        is_one = walk.strategy is not Strategy.TABLE and len(walk.ranges) <= 1
        first = lo if is_one and text.knows(lo) else "0"
        count = f"{hi if is_one else self.frame.length}{f' - {lo}' if first == lo else ''}"
        yield "# A program walks its share of them."
        yield f"share = tl.cdiv(tl.cdiv(tl.maximum({count}, 0), {block}), splits) * {block}"
        yield f"{SHARE[0]} = {f'{first} + ' if first == lo else ''}split * share"
        yield f"{SHARE[1]} = {SHARE[0]} + share"

    def _ends(self, walk: KeyWalk) -> WalkText:
        match walk.strategy:
            case Strategy.TABLE:
                return self._table()
            case Strategy.DENSE:
                lo, _, _, hi = self.frame.ends
                return WalkText((f"{lo} = 0", f"{hi} = {self.frame.length}"))
            case Strategy.CLOSED_FORM:
                before = (*self._first_and_last(walk), *self._ranges(walk))
                return WalkText(before) if len(walk.ranges) == 1 else self._several(walk, before)

    def _turns(self, text: WalkText) -> WalkText:
        """The same two loops twice: tiles are visited as they follow each other, and a third loop, with all that it
        would keep in registers, is not there."""
        (lo, full_lo, full_hi, hi), stop = self.frame.ends, self.frame.stop
        text = text.then(f"{stop} = tl.minimum({full_lo}, {hi})")
        return text.within(
            f"for turn in {self.frame.turns}:", last=(f"{lo}, {stop}, {full_lo} = {full_hi}, {hi}, {full_hi}",)
        )

    def _first_and_last(self, walk: KeyWalk) -> Iterator[str]:
        bounds = (bound for keys in walk.ranges for bound in (*keys.lower, *keys.upper))
        if any(bound.trend in (Trend.RISING, Trend.FALLING) for bound in bounds):
            yield f"{self.frame.first} = {self.frame.first_value}"
            yield f"{self.frame.last} = {self.frame.last_value}"

    def _ranges(self, walk: KeyWalk) -> Iterator[str]:
        is_one = len(walk.ranges) == 1
        for number, keys in enumerate(walk.ranges):
            ends = self.frame.ends if is_one else self.frame.ends.numbered(number)
            yield from self._range(keys, ends, is_one)
            if walk.has_full and not keys.has_full:
                yield f"{ends.full_lo} = {ends.lo}"
                yield f"{ends.full_hi} = {ends.lo}"

    def _range(self, keys: RangeWalk, ends: Ends, is_one: bool) -> Iterator[str]:
        """Union bounds limit the walk, intersection bounds its full part; both rounded to tiles."""
        lo, full_lo, full_hi, hi = ends
        length, block = self.frame.length, self.frame.block
        yield self.frame.some
        if keys.lower or keys.gates or not keys.has_full or not is_one:
            yield from self._bounded(lo, "0", "maximum", keys.lower, smallest=True)
        yield from self._bounded(hi, length, "minimum", keys.upper, smallest=False)
        if keys.has_full:
            yield self.frame.every
            yield from self._bounded(full_lo, "0", "maximum", keys.lower, smallest=False)
            yield from self._bounded(full_hi, length, "minimum", keys.upper, smallest=True)
        yield from self._gates(keys, ends)
        if keys.cover is Cover.WHERE_NOT_EMPTY and self.guards_ranges:
            yield "# A window is empty for all of the tile or for none."
            first, last = (self._moving(side) for side in (keys.lower, keys.upper))
            yield f"{hi} = tl.where({first} <= {last}, {hi}, {lo})"
        if self.tells_seen and keys.cover is not Cover.UNKNOWN and keys.lower and is_one:
            yield f"{SEEN_LO} = {lo}"
        if keys.lower:
            yield f"{lo} = {lo} // {block} * {block}"
        if keys.has_full:
            if keys.lower:
                yield f"{full_lo} = tl.maximum({lo}, tl.cdiv({full_lo}, {block}) * {block})"
            yield f"{full_hi} = tl.maximum({full_lo}, tl.maximum({full_hi}, 0) // {block} * {block})"

    def _bounded(self, name: str, limit: str, pick: str, bounds: tuple[KeyBound, ...], smallest: bool) -> Iterator[str]:
        """An end of a range: its limit, drawn in by every bound. Lower bounds are included, upper ends are not."""
        if not bounds:
            yield f"{name} = {limit}"
        past = self.frame.shift + (" + 1" if pick == "minimum" else "")
        for bound in bounds:
            yield f"{name} = tl.{pick}({limit}, {self._extreme(bound, smallest)}{past})"
            limit = name

    def _gates(self, keys: RangeWalk, ends: Ends) -> Iterator[str]:
        for gate in keys.gates:
            text = self.printer.named(gate, self.own_names, self.loads)
            some, every = text, text
            if self.frame.own in postorder(gate):
                some, every = (f"tl.{pick}(({text}).to(tl.int32)) != 0" for pick in ("max", "min"))
            yield f"{ends.hi} = tl.where({some}, {ends.hi}, {ends.lo})"
            if keys.has_full:
                yield f"{ends.full_hi} = tl.where({every}, {ends.full_hi}, 0)"

    def _moving(self, bounds: tuple[KeyBound, ...]) -> str:
        """The bound that moves with what the program keeps, where it is smallest."""
        return next(self._extreme(bound, smallest=True) for bound in bounds if bound.trend is not Trend.FLAT)

    def _extreme(self, bound: KeyBound, smallest: bool) -> str:
        """The least or greatest value of a bound over the tile a program keeps."""
        match bound.trend:
            case Trend.UNKNOWN:
                own = self.printer.named(bound.value, self.own_names, self.loads)
                return f"tl.{'min' if smallest else 'max'}({own})"
            case Trend.FLAT:
                return self.printer.named(bound.value, self.program_names, self.loads)
            case _:
                is_first = smallest is (bound.trend is Trend.RISING)
                names = {**self.program_names, self.frame.own: self.frame.first if is_first else self.frame.last}
                return self.printer.named(bound.value, names, self.loads)

    def _table(self) -> WalkText:
        first = "tl.load(Table_rows + table_row)"
        ends = (self.frame.ends.lo, self.frame.ends.full_lo, self.frame.ends.hi)
        return WalkText(("table_row = b * stride_tb + h * stride_th + tile",)).within(
            f"for record in range({first}, tl.load(Table_rows + table_row + 1)):",
            tuple(f"{end} = tl.load(Table + record * 3 + {place})" for place, end in enumerate(ends)),
        )

    def _several(self, walk: KeyWalk, before: tuple[str, ...]) -> WalkText:
        """Ranges in ascending order of their beginnings; each starts where those before it ended."""
        count, (lo, full_lo, full_hi, hi) = len(walk.ranges), self.frame.ends
        ends = (lo, full_lo, full_hi, hi) if walk.has_full else (lo, hi)
        ordered = () if walk.is_ordered else tuple(_ordered(count, ends))
        full = (f"{full_lo} = tl.maximum({full_lo}, {lo})", f"{full_hi} = tl.maximum({full_hi}, {full_lo})")
        return WalkText((*before, *ordered, "done = 0")).within(
            f"for part in range({count}):",
            (*_picked(ends, count), f"{lo} = tl.maximum({lo}, done)", *(full if walk.has_full else ())),
            (f"done = tl.maximum(done, tl.cdiv({hi}, {self.frame.block}) * {self.frame.block})",),
        )


def _picked(ends: tuple[str, ...], count: int) -> Iterator[str]:
    """The ends of the range of this part."""
    for end in ends:
        yield f"{end} = tl.where(part == 0, {end}_0, {end}_1)"
        yield from (f"{end} = tl.where(part == {number}, {end}_{number}, {end})" for number in range(2, count))


def _ordered(count: int, ends: tuple[str, ...]) -> Iterator[str]:
    """Neighbours exchanged until their beginnings ascend."""
    yield "# In ascending order of their beginnings."
    for last in range(count - 1, 0, -1):
        for at in range(last):
            yield f"late = {ends[0]}_{at} > {ends[0]}_{at + 1}"
            for end in ends:
                left, right = f"{end}_{at}", f"{end}_{at + 1}"
                yield f"{left}, {right} = tl.where(late, {right}, {left}), tl.where(late, {left}, {right})"
