"""Kernels in which a program keeps a tile of queries and walks keys, as Triton.

In: a `KernelPlan`. Out: a `KeysModule` for the template `keys.py.jinja`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.codegen.names import row_pointer
from attndsl.codegen.placement import Scope, scope_of
from attndsl.codegen.plan import OUTPUTS, Gather, KernelPlan, Operand, padded
from attndsl.codegen.triton_loops import Loop, loops
from attndsl.codegen.triton_signature import TENSORS, arguments, runtime_arguments, stride_names
from attndsl.codegen.triton_text import (
    ModuleText,
    ProductText,
    Region,
    SumText,
    TileText,
    docstring,
    load_text,
    suffix_of,
)
from attndsl.codegen.triton_walk import KEY_FRAME, SEEN_LO, WalkPrinter
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, RowValue, postorder
from attndsl.ir.ops import Op
from attndsl.ir.types import Axis


@dataclass(frozen=True, slots=True)
class PeakText:
    """A running maximum, and its name after the tile at hand."""

    name: str
    grown: str


@dataclass(frozen=True, slots=True)
class KeysModule(ModuleText):
    """What the template of these kernels sees beside."""

    q_load: str
    do_load: str
    reads_values: bool
    loads_late: bool
    maxima: tuple[PeakText, ...]
    scale_maximum: str
    shift_lines: tuple[str, ...]
    rescale_lines: tuple[str, ...]
    bracket_lines: tuple[str, ...]
    root: str
    clip_lines: tuple[str, ...]
    pair_lines: tuple[str, ...]


class KeysText(TileText):
    """Prints one plan."""

    def __init__(self, plan: KernelPlan) -> None:
        moves = [*(part.rescale for part in plan.statistics), *(part.rescale for part in plan.products)]
        self.rescales = tuple(dict.fromkeys(move for move in moves if move is not None))
        sink = () if plan.streaming.sink is None or not plan.at_end else (plan.streaming.sink,)
        peaks = (part.integrand for part in plan.maxima)
        super().__init__(
            plan, (plan.mask, plan.score, *peaks, *plan.pair_values, *self.rescales, *plan.at_end, *plan.bracket, *sink)
        )
        # Rows that are live by one range or another say nothing of each.
        guards_ranges = plan.guards_rows or len(plan.walk.ranges) > 1
        printer = WalkPrinter(
            self.printer,
            self.program_names,
            self.own_names,
            self.hoisted,
            guards_ranges,
            tells_seen=plan.seen_are_bounded,
        )
        self.walk = printer.text(plan.walk)
        self.edge = "    " if plan.solve is None else "        "
        self.pad = self.edge + "    " if self.walk.loop else self.edge
        self.alphas = {move: f"alpha_{place}" if place else "alpha" for place, move in enumerate(self.rescales)}

    def module(self) -> KeysModule:
        plan = self.plan
        row_lines, regions = tuple(self.own_lines()), tuple(self._regions())
        bracket_lines = tuple(self._bracket_lines())
        rescale_lines, end_lines = tuple(self._rescale_lines()), tuple(self._end_lines())
        return KeysModule(
            name=plan.kernel,
            docstring=docstring(plan),
            runtime_args=tuple(runtime_arguments(plan)),
            args=tuple(arguments(plan)),
            helpers=frozenset(self.printer.helpers | (set() if plan.solve is None else {"_ordered", "_number"})),
            heaviest_last=plan.walk.ascending,
            walk=self.walk,
            pad=self.pad,
            edge=self.edge,
            base_lines=tuple(self._base_lines()),
            row_lines=row_lines,
            regions=regions,
            end_lines=end_lines,
            kept=tuple((name, row_pointer(name)) for name in plan.kept),
            sums=tuple(self._sums()),
            products=tuple(self._products()),
            block_d=padded(plan.spec.head_dim),
            block_dv=padded(plan.spec.v_head_dim) if plan.reads_values else padded(plan.spec.head_dim),
            offs_dv=self.offs_dv,
            skip=self.skip,
            inner=self.inner,
            product=self.product,
            precision=self.precision,
            scale_product="" if plan.scales_late else " * sm_scale",
            widen=self.base,
            q_load=load_text("q_tile", *self.d_mask("offs_d[None, :]", plan.spec.head_dim)),
            do_load=load_text("do_tile", *self.d_mask(f"{self.offs_dv}[None, :]", plan.spec.v_head_dim))
            if plan.reads_gradient
            else "",
            reads_values=plan.reads_values,
            loads_late=bool(self.skip) and not plan.reads_gradient and plan.reads_values,
            maxima=tuple(PeakText(part.name, part.grown.name) for part in plan.maxima),
            scale_maximum=" * sm_scale" if plan.scales_late else "",
            shift_lines=tuple(self._shift_lines(guards=None)),
            rescale_lines=rescale_lines,
            bracket_lines=bracket_lines,
            root="" if plan.solve is None else plan.solve.name,
            clip_lines=tuple(self._clip_lines()),
            pair_lines=tuple(self._pair_lines()),
        )

    def own_position(self) -> Iterator[str]:
        if self.reads(build.Q, full=False):
            yield "q_idx = q_offset + rows[:, None]"

    def _base_lines(self) -> Iterator[str]:
        """Pointers moved to the batch and head, and integers widened where nothing proves that they fit."""
        for tensor in self.plan.tensors:
            name, rows = TENSORS[tensor]
            head = "h" if rows == "m" else "kv_h"
            yield f"{tensor} += b.to(tl.int64) * stride_{name}b + {head}.to(tl.int64) * stride_{name}h"
        yield "row_base = pid.to(tl.int64) // tiles * q_len"
        if self.plan.scales_exponents:
            yield "qk_scale = sm_scale * LOG2E"
        if self.plan.spec.offset_per_batch:
            yield f"q_offset = tl.load(Q_offset + b){'.to(tl.int32)' if self.plan.spec.fast else ''}"
        yield from self.wide_integers("b", "h", "tile")

    def _regions(self) -> Iterator[Region]:
        if self.plan.never:
            return
        for loop in loops(self.plan.walk, KEY_FRAME, in_order=self.plan.keeps_order):
            yield self._whole(loop) if loop.is_full else self._partial(loop)

    def _whole(self, loop: Loop) -> Region:
        """Full tiles; a score that may be -inf can still hide keys in them."""
        lines = ["kv_idx = keys[None, :]"] if self.reads(build.K, full=True) else []
        return self._region(loop, lines, None)

    def _partial(self, loop: Loop) -> Region:
        """Partial tiles: keys outside are not read; those inside that no query sees are kept out of the product."""
        reads_key = self.reads(build.K, full=False)
        lines = ["kv_idx = tl.minimum(keys, kv_len - 1)[None, :]"] if reads_key else []
        inside = "keys < kv_len"
        if self.plan.seen_are_bounded:
            has_lower = any(keys.lower for keys in self.plan.walk.ranges)
            inside = f"(keys >= {SEEN_LO}) & (keys < key_hi)" if has_lower else "keys < key_hi"
        return self._region(loop, lines, inside)

    def _region(self, loop: Loop, lines: list[str], inside: str | None) -> Region:
        """A loop over key tiles that reads the keys `inside`."""
        spec, indent, full = self.plan.spec, len(self.pad) + 4, loop.is_full
        k_masks = self.d_mask("offs_d[:, None]", spec.head_dim)
        v_masks = self.d_mask(f"{self.offs_dv}[None, :]", spec.v_head_dim)
        if inside is not None:
            k_masks, v_masks = (f"({inside})[None, :]", *k_masks), (f"({inside})[:, None]", *v_masks)
        lines.extend(self.score_lines(full=full, past_end="(keys < kv_len)[None, :]", indent=indent))
        lines.extend(self._peak_lines(full=full, indent=indent))
        is_hidden = self.plan.hides_keys if full else not self.plan.seen_are_bounded
        return Region(
            loop,
            load_text("k_tile", *k_masks),
            load_text("v_tile", *v_masks),
            tuple(lines),
            tuple(self._peaks(full=full)),
            tuple(self.value_lines(full=full, indent=indent)),
            tuple(self._hidden()) if is_hidden else (),
        )

    def _hidden(self) -> Iterator[str]:
        """What keeps a key that no query of the tile sees out of the products, whatever it holds."""
        if not self.plan.products:
            return
        yield "# A key that no query of the tile sees stays out of the product, whatever it holds."
        yield "seen = tl.max((s != -INF).to(tl.int32), 0) != 0"
        for operand in dict.fromkeys(product.operand for product in self.plan.products):
            across = "[:, None]" if operand is Operand.VALUE else "[None, :]"
            yield f"{operand.value} = tl.where(seen{across}, {operand.value}, 0.0)"

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

    def _shift_lines(self, guards: bool | None) -> Iterator[str]:
        """What is measured from a maximum is measured from 0 while no key was live."""
        for part in self.plan.maxima:
            if self.guards(part) if guards is None else guards:
                new = part.grown.name
                yield f"shift{suffix_of(part)} = tl.where({new} == -INF, 0.0, {new})"

    def _row_text(self, expr: Expr, rows: dict[str, str]) -> str:
        """A value of a row, one element a row."""
        names: dict[Expr, str] = {
            node: rows.get(node.name, node.name) for node in postorder(expr) if isinstance(node, RowValue)
        }
        own = [line for part in (self.plan.placement, self.plan.peaks, self.plan.rest) for line in part.own]
        varies = any(node is build.Q or any(node is line.value for line in own) for node in postorder(expr))
        if varies:
            names = {node: f"{name}[:, None]" for node, name in names.items()}
            return f"tl.reshape({self.printer.named(expr, {**self.own_names, **names}, self.hoisted)}, [BLOCK_M])"
        return self.printer.named(expr, {**self.program_names, **names}, self.hoisted)

    def _rescale_lines(self) -> Iterator[str]:
        for move, name in self.alphas.items():
            yield f"{name} = {self._row_text(move, self.shifts)}"

    def _clip_lines(self) -> Iterator[str]:
        """The ends of the walk drawn in to the stretch of keys whose pairs are written down."""
        if self.plan.gather is Gather.PAIRS:
            known = {line.partition(" = ")[0] for line in (*self.walk.before, *self.walk.open)}
            ends = (end for end in KEY_FRAME.ends if end in known)
            yield from (f"{end} = tl.minimum(tl.maximum({end}, chunk_lo), chunk_hi)" for end in ends)

    def _pair_lines(self) -> Iterator[str]:
        if self.plan.gather is Gather.PAIRS:
            names = self.value_names()
            yield "place = (row_base + offs_m[:, None]) * (chunk_hi - chunk_lo) + (keys - chunk_lo)[None, :]"
            yield "inside = (offs_m < q_len)[:, None] & (keys < chunk_hi)[None, :]"
            for part in self.plan.sums:
                yield f"tl.store({row_pointer(part.name)} + place, {names[part.integrand]}, mask=inside)"

    def _sums(self) -> Iterator[SumText]:
        if self.plan.gather is Gather.PAIRS:
            return
        names = self.value_names()
        for part in self.plan.sums:
            alpha = "" if part.rescale is None else f" * {self.alphas[part.rescale]}"
            yield SumText(part.name, f"{part.name}{alpha}", names[part.integrand])
        if self.plan.solve is not None:
            yield SumText("sum_i", "sum_i", names[self.plan.solve.integrand])

    def _products(self) -> Iterator[ProductText]:
        names = self.value_names()
        for product in self.plan.products:
            alpha = "" if product.rescale is None else f" * {self.alphas[product.rescale]}[:, None]"
            of_values = product.operand is Operand.VALUE
            yield ProductText(
                name=product.name,
                width=padded(self.plan.spec.v_head_dim if of_values else self.plan.spec.head_dim),
                value=names[product.value],
                operand=product.operand.value,
                factor="v" if of_values else "tl.trans(k)",
                before=f"{product.name}{alpha}",
            )

    def _end_lines(self) -> Iterator[str]:
        plan = self.plan
        for part in plan.maxima:
            yield f"tl.store({row_pointer(part.name)} + row_base + offs_m, {part.name}, mask=row_ok)"
        if plan.at_end:
            yield from self._last_lines()
        if any(product.name == "acc" for product in plan.products):
            yield from self._out_lines()
        if any(product.name == "dq" for product in plan.products):
            yield from self._store_tile("dq", "dq * sm_scale", "offs_d", plan.spec.head_dim)
        if "lse" in plan.stored:
            assert plan.streaming.lse is not None
            yield f"tl.store(Lse + row_base + offs_m, {self._last_text(plan.streaming.lse)}, mask=row_ok)"
        for part in (*plan.sums, *(() if plan.solve is None else (plan.solve,))):
            if part.name in plan.stored and plan.gather is Gather.WALK:
                yield f"tl.store({row_pointer(part.name)} + row_base + offs_m, {part.name}, mask=row_ok)"

    def _last_lines(self) -> Iterator[str]:
        """Values of the rows after the walk, one element a row; a sink joins the maximum first."""
        plan, sink = self.plan, self.plan.streaming.sink
        if not (plan.at_end or plan.bracket):
            return
        early = [line for line in plan.last.own if not _reads_rows(line.value)]
        late = [line for line in plan.last.own if _reads_rows(line.value)]
        yield from self.statements(plan.last.program, {})
        if any(node is build.Q for node in postorder(*plan.at_end, *plan.bracket, *(() if sink is None else (sink,)))):
            yield "q_idx = q_offset + rows"
        yield from self.statements(early, self.last_names)
        if sink is not None and plan.at_end:
            yield from self._sink_lines(sink)
        yield from self.statements(late, self.last_names)

    def _bracket_lines(self) -> Iterator[str]:
        """What the sum must come down to, and between which ends the root is looked for."""
        if not self.plan.bracket:
            return
        yield from self._last_lines()
        for name, value in zip(("total_i", "lower_i", "upper_i"), self.plan.bracket, strict=True):
            yield f"{name} = tl.full([BLOCK_M], 0.0, tl.float32) + {self._last_text(value)}"

    @property
    def last_names(self) -> dict[Expr, str]:
        """The names of values after the walk."""
        values = postorder(*self.plan.at_end, *self.plan.bracket)
        rows: dict[Expr, str] = {node: node.name for node in values if isinstance(node, RowValue)}
        return {**rows, **{line.value: line.name for line in self.plan.last.statements}}

    def _last_text(self, value: Expr) -> str:
        return self.printer.named(value, self.last_names, self.hoisted)

    def _sink_lines(self, sink: Expr) -> Iterator[str]:
        """The sink joins the maximum after the keys, so that m_i stays the largest score until then."""
        guarded = self.plan.guards_rows
        yield f"sink_i = {self._last_text(sink)}"
        yield "m_new = tl.maximum(m_i, sink_i)"
        if guarded:
            yield "shift = tl.where(m_new == -INF, 0.0, m_new)"
        new = "shift" if guarded else "m_new"
        for move, name in self.alphas.items():
            yield f"{name} = {self._row_text(move, {'m_new': new})}"
        for part in self.plan.sums:
            if part.rescale is not None:
                yield f"{part.name} = {part.name} * {self.alphas[part.rescale]}"
        for product in self.plan.products:
            if product.rescale is not None:
                yield f"{product.name} = {product.name} * {self.alphas[product.rescale]}[:, None]"
        yield f"m_i = {new}"

    def _out_lines(self) -> Iterator[str]:
        factors = self.plan.at_end if self.plan.streaming.terms else (build.real(1.0),)
        products = [product for product in self.plan.products if product.operand is Operand.VALUE]
        if self.plan.guards_rows and self.plan.at_end:
            yield "# A row without a live key has nothing to divide by: output 0."
        terms = []
        for number, (product, factor) in enumerate(zip(products, factors, strict=False)):
            lines, text = self._scaled(product.name, factor, f"scale_{number}" if number else "scale_i")
            yield from lines
            terms.append(text)
        yield from self._store_tile("out", " + ".join(terms), self.offs_dv, self.plan.spec.v_head_dim)

    def _scaled(self, name: str, factor: Expr, scale: str) -> tuple[tuple[str, ...], str]:
        """An accumulator times its factor, 0 where that divides by 0: lines before, and the text."""
        if factor is build.real(1.0):
            return (), name
        across = "[:, None]" if Axis.Q in axes_of(factor) else ""
        guarded = self.plan.guards_rows
        match factor:
            case Apply(op=Op.DIV, args=(Const(value=1.0), divisor)) if self.plan.streaming.lse is not None:
                text = self._last_text(divisor)
                divided = f"tl.where({text} == 0.0, 1.0, {text})" if guarded else text
                return (), f"{name} / {divided}{across}"
            case _:
                text = self._last_text(factor)
                empty = " | ".join(self._empty(factor))
                value = f"tl.where({empty}, 0.0, {text})" if empty else text
                return (f"{scale} = {value}",), f"{name} * {scale}{across}"

    def _empty(self, factor: Expr) -> Iterator[str]:
        """What tells that a factor has no value: a divisor of 0, a maximum of nothing."""
        for node in postorder(factor):
            match node:
                case Apply(op=Op.DIV, args=(_, divisor)) if _reads_rows(divisor):
                    yield f"({self._last_text(divisor)} == 0.0)"
                case RowValue(name=name) if name.startswith("m_i"):
                    yield f"({name} == -INF)"
                case _:
                    pass

    def _store_tile(self, name: str, value: str, columns: str, head_dim: int) -> Iterator[str]:
        pointer = OUTPUTS["acc"] if name == "out" else OUTPUTS[name]
        _, _, row, column = stride_names(pointer)
        yield f"{name} = {value}"
        yield f"{name}_tile = {pointer} + offs_m[:, None].to(tl.int64) * {row} + {columns}[None, :] * {column}"
        store = " & ".join(("row_ok[:, None]", *self.d_mask(f"{columns}[None, :]", head_dim)))
        yield f"tl.store({name}_tile, {name}.to({pointer}.dtype.element_ty), mask={store})"


def _reads_rows(value: Expr) -> bool:
    return any(isinstance(node, RowValue) for node in postorder(value))
