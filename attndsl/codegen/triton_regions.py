"""The loops of a kernel over tiles, as Triton: what each reads, computes and keeps out.

In: a `KernelPlan`. Out: a `Region` for each loop, for the printers of kernels that walk keys (`triton_keys`) or queries
(`triton_queries`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.codegen.names import row_pointer
from attndsl.codegen.placement import Scope, Side, scope_of
from attndsl.codegen.plan import Gather, KernelPlan, Operand
from attndsl.codegen.triton_loops import Loop, loops
from attndsl.codegen.triton_module import ModuleText
from attndsl.codegen.triton_text import Part, TileText, d_columns, dv_columns, load_text, operand_columns, parts
from attndsl.codegen.triton_walk import INDENT, KEY_FRAME, ROW_FRAME, SEEN_LO, WalkPrinter, WalkText
from attndsl.ir.nodes import Expr


@dataclass(frozen=True, slots=True)
class Region:
    """One of the loops of a walk: how it reads the two tiles it meets, and the lines of its body.

    `hidden` keep what takes part in nothing out of the products; `peaks` are what maxima are taken of.
    """

    loop: Loop
    first: tuple[Part, ...]
    second: tuple[Part, ...]
    score_lines: tuple[str, ...]
    peaks: tuple[str, ...]
    value_lines: tuple[str, ...]
    hidden: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProductText:
    """An accumulator: `value` is multiplied with `factor`, which is made of the tile `operand`."""

    name: str
    width: int
    value: str
    operand: str
    factor: str
    before: str


@dataclass(frozen=True, slots=True)
class WalkModule(ModuleText):
    """What the templates of kernels that walk tiles see beside.

    The walk starts at the indentation `edge`, its loops over tiles stand at `pad`, products at `inner`.
    """

    walk: WalkText
    edge: str
    pad: str
    inner: str
    skip: str
    regions: tuple[Region, ...]
    products: tuple[ProductText, ...]
    end_lines: tuple[str, ...]

    @property
    def heaviest_last(self) -> bool:
        return self.plan.walk.ascending


class RegionsText(TileText):
    """Prints the walk of one plan; `edge` is the indentation it starts at."""

    def __init__(self, plan: KernelPlan, roots: Iterable[Expr], *, guards_ranges: bool, edge: str) -> None:
        super().__init__(plan, roots)
        self.keeps_queries = plan.side is Side.QUERIES
        self.frame = KEY_FRAME if self.keeps_queries else ROW_FRAME
        printer = WalkPrinter(
            self.printer,
            self.program_names,
            self.own_names,
            self.hoisted,
            guards_ranges,
            tells_seen=plan.seen_are_bounded,
            frame=self.frame,
            stretch=("chunk_lo", "chunk_hi") if plan.gather is Gather.PAIRS else None,
            takes_turns=plan.takes_turns,
            is_split=plan.spec.split,
        )
        self.walk = printer.text(plan.walk)
        self.edge, self.pad = edge, edge + INDENT * self.walk.depth

    @property
    def skip(self) -> str:
        """The condition under which a tile takes part in products, of variants whose thresholds leave tiles without
        weight; any tile of others does."""
        if not (self.plan.has_thresholds and self.plan.products):
            return ""
        names = self.value_names()
        values = dict.fromkeys(names[product.value] for product in self.plan.products)
        used = " | ".join(f"({name} != 0.0)" for name in values)
        used = used if len(values) == 1 else f"({used})"
        return f"tl.max(tl.max({used}.to(tl.int32), 1), 0) != 0"

    @property
    def inner(self) -> str:
        """The indentation of products."""
        return self.pad + (INDENT * 2 if self.skip else INDENT)

    def product_texts(self, factors: Mapping[Operand, str], rescales: Mapping[Expr, str]) -> Iterator[ProductText]:
        """The accumulators, one for each piece of a head dim: `factors` is what an operand is multiplied as."""
        names = self.value_names()
        for product in self.plan.products:
            alpha = "" if product.rescale is None else f" * {rescales[product.rescale]}[:, None]"
            for columns in operand_columns(self.plan, product.operand).values():
                name, operand = (f"{part}{columns.suffix}" for part in (product.name, product.operand.value))
                factor = factors[product.operand].format(operand)
                yield ProductText(name, columns.width, names[product.value], operand, factor, f"{name}{alpha}")

    def regions(self) -> Iterator[Region]:
        """The loops over tiles; none where no pair is ever live."""
        if not self.plan.never:
            yield from map(self._region, loops(self.plan.walk, self.frame, self.plan.takes_turns))

    def _region(self, loop: Loop) -> Region:
        """One loop. Partial tiles read nothing outside, and keep what they read in vain out of the products; of full
        ones nothing is hidden, unless a score of -inf hides it."""
        plan, full, indent = self.plan, loop.is_full, len(self.pad) + len(INDENT)
        (first, second), inside = self._tiles, self._inside
        first_masks, second_masks = ((), ()) if full else ((f"({inside})[None, :]",), (f"({inside})[:, None]",))
        score_lines = (
            *self._row_loads(full=full),
            *self.walked_position(full=full),
            *self.score_lines(full=full, past_end=self._past_end, indent=indent),
            *self._peak_lines(full=full, indent=indent),
        )
        is_hidden = plan.hides_keys if full else not plan.seen_are_bounded
        return Region(
            loop,
            parts(first, d_columns(plan), "[:, None]", *first_masks),
            parts(second, dv_columns(plan), "[None, :]", *second_masks),
            score_lines,
            tuple(self._peaks(full=full)),
            tuple(self.value_lines(full=full, indent=indent)),
            tuple(self._hidden()) if is_hidden else (),
        )

    @property
    def _tiles(self) -> tuple[str, str]:
        """The two tiles that are met."""
        return ("k", "v") if self.keeps_queries else ("q", "do")

    @property
    def _inside(self) -> str:
        """What of a partial tile is read."""
        place, end = "keys" if self.keeps_queries else "rows", self.frame.ends.hi
        if not self.plan.seen_are_bounded:
            return f"{place} < {self.frame.length}"
        has_lower = any(part.lower for part in self.plan.walk.ranges)
        return f"({place} >= {SEEN_LO}) & ({place} < {end})" if has_lower else f"{place} < {end}"

    @property
    def _past_end(self) -> str:
        """The pairs of a tile that are there at all."""
        return "(keys < kv_len)[None, :]" if self.keeps_queries else "key_ok[:, None] & (rows < q_len)[None, :]"

    def _row_loads(self, *, full: bool) -> Iterator[str]:
        """What is kept of the rows that are met."""
        if not self.keeps_queries:
            masks = () if full else ("rows < q_len",)
            for name in self.plan.kept:
                yield f"{name} = {load_text(f'{row_pointer(name)} + row_base + rows', *masks)}"

    def _peak_lines(self, *, full: bool, indent: int) -> Iterator[str]:
        peaks = self.plan.peaks
        walked, tile = (peaks.full_walked, peaks.full_tile) if full else (peaks.walked, peaks.tile)
        names, loads = self.later_names(full=full), self.full if full else self.hoisted
        yield from self.statements((*walked, *tile), names, loads, indent)

    def _peaks(self, *, full: bool) -> Iterator[str]:
        """What maxima are taken of, -inf where a pair is not live."""
        names, loads = self.later_names(full=full), self.full if full else self.hoisted
        for part in self.plan.maxima:
            text = self.printer.named(part.integrand, names, loads)
            if part.integrand is self.plan.final:
                yield "s"
            elif not full or self.plan.hides_keys:
                yield f"tl.where(live, {text}, -INF)"
            else:
                yield text if scope_of(axes_of(part.integrand)) is Scope.TILE else f"tl.zeros_like(s) + {text}"

    def _hidden(self) -> Iterator[str]:
        """What keeps a key or query that meets nobody in the tile out of the products, whatever it holds."""
        used = {product.operand for product in self.plan.products}
        if not used:
            return
        if self.keeps_queries:
            yield "# A key that no query of the tile sees stays out of the product, whatever it holds."
        else:
            yield "# A query that sees no key of the tile stays out of the products, whatever it and its gradient hold."
        yield "seen = tl.max((s != -INF).to(tl.int32), 0) != 0"
        for operand in Operand:
            across = "[:, None]" if operand in (Operand.VALUE, Operand.GRADIENT) else "[None, :]"
            for columns in operand_columns(self.plan, operand).values() if operand in used else ():
                name = f"{operand.value}{columns.suffix}"
                yield f"{name} = tl.where(seen{across}, {name}, 0.0)"
