"""Kernels in which a program keeps a tile of keys and walks the queries that see them, as Triton.

In: a `KernelPlan`. Out: a `QueriesModule` for the template `queries.py.jinja`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import OUTPUTS, KernelPlan, Operand, padded
from attndsl.codegen.triton_loops import Loop, loops
from attndsl.codegen.triton_signature import TENSORS, arguments, runtime_arguments, stride_names
from attndsl.codegen.triton_text import ModuleText, ProductText, Region, SumText, TileText, docstring, load_text
from attndsl.codegen.triton_walk import ROW_FRAME, SEEN_LO, WalkPrinter
from attndsl.ir import build


@dataclass(frozen=True, slots=True)
class QueriesModule(ModuleText):
    """What the template of these kernels sees beside."""

    k_load: str
    v_load: str
    widen_head: str
    mirrors: bool
    column_lines: tuple[str, ...]


class QueriesText(TileText):
    """Prints one plan."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(plan, (plan.mask, plan.score, *plan.pair_values))
        printer = WalkPrinter(
            self.printer,
            self.program_names,
            self.own_names,
            self.hoisted,
            guards_ranges=True,
            frame=ROW_FRAME,
            tells_seen=plan.seen_are_bounded,
        )
        self.walk = printer.text(plan.walk)
        self.pad = "            " if self.walk.loop else "        "

    def module(self) -> QueriesModule:
        plan, spec = self.plan, self.plan.spec
        row_lines, regions = tuple(self.own_lines()), tuple(self._regions())
        return QueriesModule(
            name=plan.kernel,
            docstring=docstring(plan),
            runtime_args=tuple(runtime_arguments(plan)),
            args=tuple(arguments(plan)),
            helpers=frozenset(self.printer.helpers),
            heaviest_last=plan.walk.ascending,
            walk=self.walk,
            pad=self.pad,
            edge="        ",
            base_lines=tuple(self._base_lines()),
            row_lines=row_lines,
            regions=regions,
            end_lines=tuple(self._end_lines()),
            kept=tuple((name, row_pointer(name)) for name in plan.kept),
            sums=tuple(self._sums()),
            products=tuple(self._products()),
            block_d=padded(spec.head_dim),
            block_dv=padded(spec.v_head_dim),
            offs_dv=self.offs_dv,
            skip=self.skip,
            inner=self.inner,
            product=self.product,
            precision=self.precision,
            scale_product="" if plan.scales_late else " * sm_scale",
            mirrors=plan.mirrors,
            widen=self.base,
            k_load=load_text("k_tile", *self.d_mask("offs_d[None, :]", spec.head_dim)),
            v_load=load_text("v_tile", *self.d_mask(f"{self.offs_dv}[None, :]", spec.v_head_dim))
            if plan.reads_gradient
            else "",
            widen_head="",
            column_lines=tuple(self._column_lines()),
        )

    def own_position(self) -> Iterator[str]:
        if self.reads(build.K, full=False):
            yield "kv_idx = keys[:, None]"

    def _base_lines(self) -> Iterator[str]:
        """Pointers moved to the batch and, of keys, to the head."""
        for tensor in self.plan.tensors:
            name, rows = TENSORS[tensor]
            head = "" if rows == "m" else f" + kv_h.to(tl.int64) * stride_{name}h"
            yield f"{tensor} += b.to(tl.int64) * stride_{name}b{head}"
        if self.plan.scales_exponents:
            yield "qk_scale = sm_scale * LOG2E"
        if self.plan.spec.offset_per_batch:
            yield f"q_offset = tl.load(Q_offset + b){'.to(tl.int32)' if self.plan.spec.fast else ''}"
        yield from self.wide_integers("b", "kv_h", "tile")

    def _regions(self) -> Iterator[Region]:
        if self.plan.never:
            return
        for loop in loops(self.plan.walk, ROW_FRAME, in_order=self.plan.keeps_order):
            yield self._whole(loop) if loop.is_full else self._partial(loop)

    def _whole(self, loop: Loop) -> Region:
        lines = ["q_idx = (q_offset + rows)[None, :]"] if self.reads(build.Q, full=True) else []
        return self._region(loop, lines, None)

    def _partial(self, loop: Loop) -> Region:
        """Partial tiles: rows outside are not read; those inside that see no key are kept out of the products."""
        reads_query = self.reads(build.Q, full=False)
        lines = ["q_idx = (q_offset + tl.minimum(rows, q_len - 1))[None, :]"] if reads_query else []
        inside = "rows < q_len"
        if self.plan.seen_are_bounded:
            has_lower = any(part.lower for part in self.plan.walk.ranges)
            inside = f"(rows >= {SEEN_LO}) & (rows < row_hi)" if has_lower else "rows < row_hi"
        return self._region(loop, lines, inside)

    def _region(self, loop: Loop, lines: list[str], inside: str | None) -> Region:
        """A loop over query tiles that reads the rows `inside`."""
        spec, indent, full = self.plan.spec, len(self.pad) + 4, loop.is_full
        q_masks = self.d_mask("offs_d[:, None]", spec.head_dim)
        do_masks = self.d_mask(f"{self.offs_dv}[None, :]", spec.v_head_dim)
        row_masks: tuple[str, ...] = ()
        if inside is not None:
            q_masks, do_masks = (f"({inside})[None, :]", *q_masks), (f"({inside})[:, None]", *do_masks)
            row_masks = ("rows < q_len",)
        past_end = "key_ok[:, None] & (rows < q_len)[None, :]"
        lines.extend(self.score_lines(full=full, past_end=past_end, indent=indent))
        is_hidden = self.plan.hides_keys if full else not self.plan.seen_are_bounded
        return Region(
            loop,
            load_text("q_tile", *q_masks),
            load_text("do_tile", *do_masks),
            tuple(lines),
            tuple(load_text(f"{row_pointer(name)} + row_base + rows", *row_masks) for name in self.plan.kept),
            tuple(self.value_lines(full=full, indent=indent)),
            HIDDEN if is_hidden else (),
        )

    def _sums(self) -> Iterator[SumText]:
        names = self.value_names()
        return (SumText(part.name, part.name, names[part.integrand]) for part in self.plan.sums)

    def _products(self) -> Iterator[ProductText]:
        names = self.value_names()
        for product in self.plan.products:
            is_dv = product.operand is Operand.GRADIENT
            yield ProductText(
                name=product.name,
                width=padded(self.plan.spec.v_head_dim if is_dv else self.plan.spec.head_dim),
                value=names[product.value],
                operand=product.operand.value,
                factor="do" if is_dv else "tl.trans(q)",
                before=product.name,
            )

    def _column_lines(self) -> Iterator[str]:
        """What is summed for each key and query head."""
        if self.plan.sums:
            yield "column_base = (b.to(tl.int64) * heads + h) * kv_len"
        for part in self.plan.sums:
            yield f"tl.store({row_pointer(part.name)} + column_base + offs_n, {part.name}, mask=key_ok)"

    def _end_lines(self) -> Iterator[str]:
        yield "# Told anew: the places that k and v were read from would stay in registers through the loops."
        yield "places = tl.arange(0, BLOCK_N)"
        yield "inside = (places < kv_len - tile * BLOCK_N)[:, None]"
        for product in self.plan.products:
            is_dv = product.operand is Operand.GRADIENT
            pointer = OUTPUTS[product.name]
            columns, (_, _, row, column) = self.offs_dv if is_dv else "offs_d", stride_names(pointer)
            head_dim = self.plan.spec.v_head_dim if is_dv else self.plan.spec.head_dim
            if not is_dv:
                yield f"{product.name} = {product.name} * sm_scale"
            yield f"{pointer} += tl.cast(tile * BLOCK_N, tl.int64) * {row}"
            tile = f"{pointer} + places[:, None].to(tl.int64) * {row} + {columns}[None, :] * {column}"
            yield f"{product.name}_tile = {tile}"
            store = " & ".join(("inside", *self.d_mask(f"{columns}[None, :]", head_dim)))
            yield f"tl.store({product.name}_tile, {product.name}.to({pointer}.dtype.element_ty), mask={store})"


HIDDEN = (
    "# A query that sees no key of the tile stays out of the products, whatever it and its gradient hold.",
    "seen = tl.max((s != -INF).to(tl.int32), 0) != 0",
    "q = tl.where(seen[None, :], q, 0.0)",
    "do = tl.where(seen[:, None], do, 0.0)",
)
