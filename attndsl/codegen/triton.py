"""A forward plan as Triton text: prints what the plan holds into the lines its template arranges."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from attndsl.analysis.axes import axes_of
from attndsl.analysis.bounds import Strategy
from attndsl.codegen.placement import Scope, Statement, scope_of
from attndsl.codegen.plan import KernelPlan, padded
from attndsl.codegen.proofs import header_lines
from attndsl.codegen.triton_expr import LoadStyle, TritonPrinter
from attndsl.codegen.triton_layout import wrapped
from attndsl.codegen.triton_signature import arguments, runtime_arguments
from attndsl.codegen.triton_walk import WalkPrinter, WalkText
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Scalar
from attndsl.ir.printer import print_variant
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis
from attndsl.ir.variant import ScalarParam

if TYPE_CHECKING:
    import jinja2

HIDDEN = (
    "# A key that no query of the tile sees stays out of the product, whatever its value holds.",
    "seen = tl.max((s != -INF).to(tl.int32), 0) != 0",
    "v = tl.where(seen[:, None], v, 0.0)",
)


@dataclass(frozen=True, slots=True)
class Region:
    """One of the regions of the kernel."""

    comment: str
    start: str
    stop: str
    k_load: str
    v_load: str
    lines: tuple[str, ...]
    hidden: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForwardText:
    """What the forward template sees: finished lines, nothing to decide."""

    docstring: str
    runtime_args: tuple[str, ...]
    args: tuple[str, ...]
    helpers: tuple[str, ...]
    heaviest_last: bool
    base_lines: tuple[str, ...]
    row_lines: tuple[str, ...]
    walk: WalkText
    regions: tuple[Region, ...]
    pad: str
    end_lines: tuple[str, ...]
    block_d: int
    block_dv: int
    offs_dv: str
    q_load: str
    precision: str
    scale_product: str
    scale_maximum: str
    shift_lines: tuple[str, ...]
    shift: str
    exponent: str
    widen: str


def emit_forward(plan: KernelPlan) -> str:
    """The module text of a forward kernel; the same plan gives the same bytes."""
    return _environment().get_template("forward.py.jinja").render(kernel=_Forward(plan).text())


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("attndsl.codegen") / "templates" / name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@cache
def _helper_sources() -> dict[str, str]:
    """The text of every helper function, by name."""
    text = (files("attndsl.codegen") / "templates" / "triton_helpers.py").read_text("utf-8")
    lines = text.splitlines()
    return {
        node.name: "\n".join(lines[node.decorator_list[0].lineno - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


class _Forward:
    """Prints one plan. Names are those of the field: `offs_m`, `m_i`, `l_i`, `acc`."""

    def __init__(self, plan: KernelPlan) -> None:
        self.plan = plan
        leaves: dict[Expr, str] = {build.B: "b", build.H: "h", build.Q: "q_idx", build.K: "kv_idx", build.SCORE: "s"}
        leaves |= {build.Q_LEN: "q_len", build.KV_LEN: "kv_len"}
        scalars: dict[Expr, str] = {
            node: plan.symbols[node.name]
            for node in postorder(plan.mask, plan.score, *self._sinks())
            if isinstance(node, Scalar)
        }
        self.printer = TritonPrinter(plan.index, {**leaves, **scalars}, plan.symbols, plan.cheap_division)
        self.program_names = _names(plan.placement.program)
        self.row_names = self.program_names | _names(plan.placement.row)
        self.hoisted = LoadStyle(clamped=not plan.spec.fast)
        self.full = LoadStyle(clamped=not plan.spec.fast, unclamped=self._live_loads())
        # Rows that are live by one range or another say nothing of each.
        guards_ranges = plan.guards_rows or len(plan.walk.ranges) > 1
        printer = WalkPrinter(self.printer, self.program_names, self.row_names, self.hoisted, guards_ranges)
        self.walk = printer.text(plan.walk)
        self.pad = "        " if self.walk.loop else "    "

    def text(self) -> ForwardText:
        plan = self.plan
        head_dim, v_head_dim = plan.spec.head_dim, plan.spec.v_head_dim
        row_lines = tuple(self._row_lines())
        regions = tuple(self._regions())
        end_lines = tuple(self._end_lines())
        shift_lines, shift = _shift(plan.guards_maximum)
        return ForwardText(
            docstring=self._docstring(),
            runtime_args=tuple(runtime_arguments(plan)),
            args=tuple(arguments(plan)),
            helpers=tuple(_helper_sources()[name] for name in sorted(self.printer.helpers)),
            heaviest_last=plan.walk.ascending,
            base_lines=tuple(self._base_lines()),
            row_lines=row_lines,
            walk=self.walk,
            pad=self.pad,
            regions=regions,
            end_lines=end_lines,
            block_d=padded(head_dim),
            block_dv=padded(v_head_dim),
            offs_dv=self._offs_dv,
            q_load=_load("q_tile", *self._d_mask("offs_d[None, :]", head_dim)),
            precision=', input_precision="ieee"' if plan.spec.dtype == "fp32" else "",
            scale_product="" if plan.scales_late else " * sm_scale",
            scale_maximum=" * sm_scale" if plan.scales_late else "",
            shift_lines=shift_lines,
            shift=shift,
            exponent=self._exponent(shift),
            widen="" if plan.spec.fast else ".to(tl.int64)",
        )

    @property
    def _offs_dv(self) -> str:
        return "offs_d" if padded(self.plan.spec.head_dim) == padded(self.plan.spec.v_head_dim) else "offs_dv"

    def _sinks(self) -> tuple[Expr, ...]:
        sink = self.plan.streaming.sink
        return () if sink is None else (sink,)

    def _live_loads(self) -> frozenset[Expr]:
        """The reads a full tile makes at live pairs only: in bounds by the checks made before the launch."""
        loads = frozenset(line.value for line in self.plan.placement.full_tile)
        return loads - self.plan.branch_loads

    def _docstring(self) -> str:
        spec = self.plan.spec
        program = print_variant(self.plan.variant).replace("\\", "\\\\").replace('"""', "'''").rstrip()
        shape = f"{spec.dtype}, head dim {spec.head_dim}" + (
            "" if spec.v_head_dim == spec.head_dim else f" (values {spec.v_head_dim})"
        )
        parts = [f"Attention forward, {shape}, generated by attndsl.", program]
        if not spec.fast:
            parts.append("Relies on no facts: 64-bit integers, floor division for any sign, captured reads clamped.")
        proven = "\n".join(header_lines(self.plan))
        if proven:
            given = ", on facts checked before the launch" if spec.fast else ""
            parts.append(f"Proven{given}:\n{proven}")
        return '"""' + "\n\n".join(parts) + '\n"""'

    def _base_lines(self) -> Iterator[str]:
        """Pointers moved to the batch and head, and integers widened where nothing proves that they fit."""
        yield "Q += b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh"
        yield "K += b.to(tl.int64) * stride_kb + kv_h.to(tl.int64) * stride_kh"
        yield "V += b.to(tl.int64) * stride_vb + kv_h.to(tl.int64) * stride_vh"
        yield "Out += b.to(tl.int64) * stride_ob + h.to(tl.int64) * stride_oh"
        yield "row_base = pid.to(tl.int64) // tiles * q_len"
        if self.plan.scales_late:
            yield "qk_scale = sm_scale * LOG2E"
        if self.plan.spec.offset_per_batch:
            yield f"q_offset = tl.load(Q_offset + b){'.to(tl.int32)' if self.plan.spec.fast else ''}"
        if not self.plan.spec.fast:
            integers = [
                self.plan.symbols[p.name] for p in self.plan.params if isinstance(p, ScalarParam) and p.dtype.is_int
            ]
            yield from (f"{name} = tl.cast({name}, tl.int64)" for name in ("b", "h", "tile", "q_len", "kv_len"))
            yield from (f"{name} = tl.cast({name}, tl.int64)" for name in (*integers, "q_offset"))

    def _row_lines(self) -> Iterator[str]:
        """What does not change along the keys."""
        yield from self._statements(self.plan.placement.program, {}, self.hoisted)
        reads_q = any(node is build.Q for node in postorder(self.plan.mask, self.plan.score))
        if reads_q:
            yield "q_idx = q_offset + rows[:, None]"
        yield from self._statements(self.plan.placement.row, self.program_names, self.hoisted)

    def _statements(
        self, statements: Iterable[Statement], names: dict[Expr, str], loads: LoadStyle, indent: int = 4
    ) -> Iterator[str]:
        known = dict(names)
        origin = None
        for line in statements:
            if line.origin is not None and line.origin != origin:
                yield f"# {line.origin}"
                origin = line.origin
            yield from wrapped(f"{line.name} = {self.printer.text(line.value, known, loads)}", indent)
            known[line.value] = line.name

    def _regions(self) -> Iterator[Region]:
        walk = self.plan.walk
        if self.plan.never:
            return
        if not walk.has_full:
            yield self._partial("Every tile is partial: the mask has terms that bound no key.", "key_lo", "key_hi")
            return
        if walk.strategy is Strategy.TABLE:
            yield self._partial("Partial tiles of the record.", "key_lo", "full_lo")
            yield self._whole("full_lo", "key_hi")
            return
        if walk.has_left:
            yield self._partial("Partial tiles before the full ones.", "key_lo", "tl.minimum(full_lo, key_hi)")
        yield self._whole("full_lo", "full_hi")
        yield self._partial("Partial tiles after the full ones.", "full_hi", "key_hi")

    def _whole(self, start: str, stop: str) -> Region:
        """Full tiles; a score that may be -inf can still hide keys in them."""
        column, tile = self.plan.placement.full_column, self.plan.placement.full_tile
        lines = [*self._values(column, tile, self.full), *self._score_lines(column, tile, self.full)]
        if any(node is build.K for node in postorder(self.plan.score)):
            lines.insert(0, "kv_idx = keys[None, :]")
        hidden = HIDDEN if self.plan.hides_keys else ()
        return self._region("Full tiles: every pair is live.", start, stop, None, lines, hidden)

    def _partial(self, comment: str, start: str, stop: str) -> Region:
        """Partial tiles: keys outside are not read; those inside that no query sees are kept out of the product."""
        placement = self.plan.placement
        lines: list[str] = []
        if any(node is build.K for node in postorder(self.plan.mask, self.plan.score)):
            lines.append("kv_idx = tl.minimum(keys, kv_len - 1)[None, :]")
        lines.extend(self._values(placement.column, placement.tile, self.hoisted))
        lines.extend(self._live_lines())
        lines.extend(self._score_lines(placement.column, placement.tile, self.hoisted))
        lines.append("s = tl.where(live, s, -INF)")
        if not self.plan.seen_are_bounded:
            return self._region(comment, start, stop, "keys < kv_len", lines, HIDDEN)
        has_lower = any(keys.lower for keys in self.plan.walk.ranges)
        inside = "(keys >= seen_lo) & (keys < key_hi)" if has_lower else "keys < key_hi"
        return self._region(comment, start, stop, inside, lines, ())

    def _region(
        self, comment: str, start: str, stop: str, inside: str | None, lines: Iterable[str], hidden: tuple[str, ...]
    ) -> Region:
        """A loop over key tiles that reads the keys `inside`."""
        spec = self.plan.spec
        k_masks = self._d_mask("offs_d[:, None]", spec.head_dim)
        v_masks = self._d_mask(f"{self._offs_dv}[None, :]", spec.v_head_dim)
        if inside is not None:
            k_masks, v_masks = (f"({inside})[None, :]", *k_masks), (f"({inside})[:, None]", *v_masks)
        return Region(comment, start, stop, _load("k_tile", *k_masks), _load("v_tile", *v_masks), tuple(lines), hidden)

    def _values(self, column: tuple[Statement, ...], tile: tuple[Statement, ...], loads: LoadStyle) -> tuple[str, ...]:
        return tuple(self._statements((*column, *tile), self.row_names, loads, len(self.pad) + 4))

    def _live_lines(self) -> Iterator[str]:
        if self.plan.mask is build.TRUE:
            yield "live = (keys < kv_len)[None, :]"
            return
        names = self.row_names | _names(self.plan.placement.column) | _names(self.plan.placement.tile)
        if self.plan.mask_origin is not None:
            yield f"# {self.plan.mask_origin}"
        yield f"live = {self.printer.named(self.plan.mask, names, self.hoisted)}"
        yield "live = live & (keys < kv_len)[None, :]"

    def _score_lines(
        self, column: tuple[Statement, ...], tile: tuple[Statement, ...], loads: LoadStyle
    ) -> Iterator[str]:
        if self.plan.score is build.SCORE:
            return
        names = self.row_names | _names(column) | _names(tile)
        if self.plan.score_origin is not None:
            yield f"# {self.plan.score_origin}"
        score = self.printer.named(self.plan.score, names, loads)
        if scope_of(axes_of(self.plan.score)) is not Scope.TILE:
            score = f"tl.zeros_like(s) + {score}"
        yield f"s = {score}"

    def _exponent(self, shift: str) -> str:
        """Scores less what they are measured from, for `exp2`.

        Score mods may leave numbers so large that only their difference to the maximum is safe to multiply.
        """
        if self.plan.scales_late:
            return f"s * qk_scale - ({shift} * LOG2E)[:, None]"
        return f"(s - {shift}[:, None]) * LOG2E"

    def _end_lines(self) -> Iterator[str]:
        yield "row_ok = offs_m < q_len"
        yield "tl.store(Max + row_base + offs_m, m_i, mask=row_ok)"
        yield from self._sink_lines()
        if self.plan.guards_rows:
            yield "# A row without a live key has l_i = 0: output 0, lse -inf."
            yield "out = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]"
        else:
            yield "out = acc / l_i[:, None]"
        yield f"out_tile = Out + offs_m[:, None].to(tl.int64) * stride_om + {self._offs_dv}[None, :] * stride_od"
        store = ["row_ok[:, None]", *self._d_mask(f"{self._offs_dv}[None, :]", self.plan.spec.v_head_dim)]
        yield f"tl.store(out_tile, out.to(Out.dtype.element_ty), mask={_all(store)})"
        yield "tl.store(Lse + row_base + offs_m, m_i + tl.log(l_i), mask=row_ok)"

    def _sink_lines(self) -> Iterator[str]:
        """The sink joins the divisor after the keys, so that m_i stays the maximum of the scores until then."""
        sink = self.plan.streaming.sink
        if sink is None:
            return
        placement = self.plan.sink
        yield from self._statements(placement.program, {}, self.hoisted)
        if Axis.Q in axes_of(sink):
            yield "q_idx = q_offset + rows"
        names = _names(placement.program)
        yield from self._statements(placement.row, names, self.hoisted)
        yield f"sink_i = {self.printer.named(sink, names | _names(placement.row), self.hoisted)}"
        yield "m_new = tl.maximum(m_i, sink_i)"
        lines, shift = _shift(self.plan.guards_rows)
        yield from lines
        yield f"alpha = tl.exp2((m_i - {shift}) * LOG2E)"
        yield f"l_i = l_i * alpha + tl.exp2((sink_i - {shift}) * LOG2E)"
        yield "acc = acc * alpha[:, None]"
        yield "m_i = m_new"

    def _d_mask(self, offsets: str, head_dim: int) -> tuple[str, ...]:
        """The mask of a padded head dimension; none where it is a power of two."""
        return () if padded(head_dim) == head_dim else (f"({offsets} < {head_dim})",)


def _shift(guarded: bool) -> tuple[tuple[str, ...], str]:
    """What scores are measured from, and the lines that compute it: the maximum, or 0 while no key was live."""
    return (("shift = tl.where(m_new == -INF, 0.0, m_new)",), "shift") if guarded else ((), "m_new")


def _names(statements: Iterable[Statement]) -> dict[Expr, str]:
    return {line.value: line.name for line in statements}


def _all(masks: Iterable[str]) -> str:
    return " & ".join(masks)


def _load(pointer: str, *masks: str) -> str:
    return f"{pointer}, mask={_all(masks)}, other=0.0" if masks else pointer
