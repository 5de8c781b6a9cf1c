"""The walk of a query tile over its key tiles, as C++: the stretches of keys it visits, in ascending order.

In: a `KeyWalk` and the printer of its expressions. Out: lines that call `stretch(lo, full_lo, full_hi, hi)` for each:
partial tiles from `lo`, full ones from `full_lo` to `full_hi`, partial ones to `hi`. Every key tile is visited once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.analysis.bounds import Strategy
from attndsl.analysis.coverage import Cover
from attndsl.analysis.monotone import Trend
from attndsl.codegen.cpp_expr import CppPrinter
from attndsl.codegen.triton_expr import LoadStyle
from attndsl.codegen.triton_walk import KEY_FRAME, Ends
from attndsl.codegen.walk import KeyBound, KeyWalk, RangeWalk
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Scalar
from attndsl.ir.rewrite import substitute
from attndsl.ir.types import Axis, DType


@dataclass(frozen=True, slots=True)
class CppWalk:
    """Prints walks. `program_names` are values known once a query tile, `row_names` also those of a vector of queries.

    `row` is the line that gives the values of a vector of queries their names. `guards_ranges`: a range may be empty.
    """

    printer: CppPrinter
    program_names: Mapping[Expr, str]
    row_names: Mapping[Expr, str]
    row: str
    loads: LoadStyle
    guards_ranges: bool

    def lines(self, walk: KeyWalk) -> Iterator[str]:
        """The lines of a walk."""
        match walk.strategy:
            case Strategy.TABLE:
                yield "const int64_t table_row = b * stride_tb + h * stride_th + tile;"
                yield "for (int64_t record = Table_rows[table_row]; record < Table_rows[table_row + 1]; record++) {"
                yield "    const int32_t* ends = Table + record * 3;"
                yield "    stretch(ends[0], ends[1], ends[2], ends[2]);"
                yield "}"
            case Strategy.DENSE:
                yield "stretch(0, kv_len, kv_len, kv_len);"
            case Strategy.CLOSED_FORM:
                yield from self._closed(walk)

    def _closed(self, walk: KeyWalk) -> Iterator[str]:
        bounds = [bound for keys in walk.ranges for bound in (*keys.lower, *keys.upper)]
        if any(bound.trend in (Trend.RISING, Trend.FALLING) for bound in bounds):
            yield "const integer q_first = q_offset + tile * BLOCK_M;"
            yield "const integer q_last = q_offset + min(integer(tile * BLOCK_M + BLOCK_M), q_len) - 1;"
        single = len(walk.ranges) == 1
        for number, keys in enumerate(walk.ranges):
            ends = KEY_FRAME.ends if single else KEY_FRAME.ends.numbered(number)
            yield from self._range(keys, ends)
            if not keys.has_full:
                yield f"const integer {ends.full_lo} = {ends.hi}, {ends.full_hi} = {ends.hi};"
        if single:
            yield f"stretch({', '.join(KEY_FRAME.ends)});"
            return
        listed = ", ".join("{" + ", ".join(KEY_FRAME.ends.numbered(number)) + "}" for number in range(len(walk.ranges)))
        yield f"Stretch parts[] = {{{listed}}};"
        if not walk.is_ordered:
            yield "in_order(parts);"
        yield "// Each starts where those before it ended."
        yield "integer done = 0;"
        yield "for (const Stretch& part : parts) {"
        yield "    const integer lo = max(part.lo, done), full_lo = max(part.full_lo, lo);"
        yield "    stretch(lo, full_lo, max(part.full_hi, full_lo), part.hi);"
        yield "    done = max(done, (part.hi + BLOCK_N - 1) / BLOCK_N * BLOCK_N);"
        yield "}"

    def _range(self, keys: RangeWalk, ends: Ends) -> Iterator[str]:
        """Union bounds limit the walk, intersection bounds its full part; both rounded to key tiles."""
        lo, full_lo, full_hi, hi = ends
        yield "// Keys that some query of the tile sees."
        yield from self._bounded(lo, "0", "max", keys.lower, smallest=True)
        yield from self._bounded(hi, "kv_len", "min", keys.upper, smallest=False)
        if keys.has_full:
            yield "// Keys that every query of the tile sees, in whole key tiles."
            yield from self._bounded(full_lo, "0", "max", keys.lower, smallest=False)
            yield from self._bounded(full_hi, "kv_len", "min", keys.upper, smallest=True)
        yield from self._gates(keys, ends)
        if keys.cover is Cover.WHERE_NOT_EMPTY and self.guards_ranges:
            yield "// A window is empty for all queries of the tile or for none."
            first, last = (self._moving(side) for side in (keys.lower, keys.upper))
            yield f"if ({first} > {last}) {hi} = {lo};"
        if keys.lower:
            yield f"{lo} = {lo} / BLOCK_N * BLOCK_N;"
        if keys.has_full:
            if keys.lower:
                yield f"{full_lo} = max({lo}, integer(({full_lo} + BLOCK_N - 1) / BLOCK_N * BLOCK_N));"
            yield f"{full_hi} = max({full_lo}, integer(max({full_hi}, 0) / BLOCK_N * BLOCK_N));"

    def _bounded(self, name: str, limit: str, pick: str, bounds: tuple[KeyBound, ...], smallest: bool) -> Iterator[str]:
        """An end of a range: its limit, drawn in by every bound. Lower bounds are included, upper ends are not."""
        past = " + 1" if pick == "min" else ""
        yield f"integer {name} = {limit};"
        for bound in bounds:
            yield f"{name} = {pick}({name}, integer({self._extreme(bound, smallest)}{past}));"

    def _gates(self, keys: RangeWalk, ends: Ends) -> Iterator[str]:
        for gate in keys.gates:
            if Axis.Q in axes_of(gate):
                rows = self._of_rows(gate)
                some, every = f"any_row(w.rows, vectors, {rows})", f"every_row(w.rows, vectors, {rows})"
            else:
                some = every = self.printer.named(gate, self.program_names, self.loads)
            yield f"if (!({some})) {ends.hi} = {ends.lo};"
            if keys.has_full:
                yield f"if (!({every})) {ends.full_hi} = 0;"

    def _moving(self, bounds: tuple[KeyBound, ...]) -> str:
        """The bound that moves with the query, at the query where it is smallest."""
        return next(self._extreme(bound, smallest=True) for bound in bounds if bound.trend is not Trend.FLAT)

    def _extreme(self, bound: KeyBound, smallest: bool) -> str:
        """The least or greatest value of a bound over the rows of the tile."""
        match bound.trend:
            case Trend.UNKNOWN:
                return f"{'least' if smallest else 'greatest'}(w.rows, vectors, {self._of_rows(bound.value)})"
            case Trend.FLAT:
                return self.printer.summand(bound.value, self.program_names, self.loads)
            case _:
                first = smallest is (bound.trend is Trend.RISING)
                end = Scalar("q_first" if first else "q_last", DType.I64)
                value = substitute(bound.value, {build.Q: end})
                return self.printer.summand(value, {**self.program_names, end: end.name}, self.loads)

    def _of_rows(self, value: Expr) -> str:
        """A function of a vector of queries."""
        return f"[&](const Row& row) {{ {self.row}return {self.printer.named(value, self.row_names, self.loads)}; }}"
