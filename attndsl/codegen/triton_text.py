"""What the Triton of every kernel has in common: statements, scores, masks and values of a tile, in its orientation.

In: a `KernelPlan`. Out: lines, for the printers of kernels that walk tiles (`triton_regions`) or add up diagonals
(`triton_diagonals`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.analysis.statistics import Statistic
from attndsl.codegen.coarse import coarse_reads
from attndsl.codegen.head_dims import Columns, columns_of
from attndsl.codegen.placement import Scope, Side, Statement, scope_of
from attndsl.codegen.plan import Gather, KernelPlan, Operand
from attndsl.codegen.triton_expr import KernelPrinter, LoadStyle
from attndsl.codegen.triton_layout import wrapped
from attndsl.codegen.triton_signature import TENSORS
from attndsl.ir import build
from attndsl.ir.nodes import Expr, RowValue, Scalar, postorder
from attndsl.ir.rewrite import substituted
from attndsl.ir.variant import ScalarParam


@dataclass(frozen=True, slots=True)
class Part:
    """A tile that is read, or the columns of one: what its names end in, the offsets of its columns, and the read."""

    suffix: str
    offs: str
    load: str


class TileText:
    """Prints the parts of a tile. Names are those of the field: `s`, `p`, `m_i`, `l_i`, `acc`, `ds`."""

    def __init__(self, plan: KernelPlan, roots: Iterable[Expr]) -> None:
        self.plan, roots = plan, tuple(roots)
        is_plain = plan.score is build.SCORE
        self.product = "s" if is_plain else "qk"
        self.across = "[:, None]" if plan.side is Side.QUERIES else "[None, :]"
        self.shifts = {part.grown.name: f"shift{suffix_of(part)}" for part in plan.maxima if self.guards(part)}
        leaves: dict[Expr, str] = {build.B: "b", build.H: "h", build.Q: "q_idx", build.K: "kv_idx"}
        leaves |= {build.Q_LEN: "q_len", build.KV_LEN: "kv_len", build.DWEIGHT: "dw"}
        leaves[build.THRESHOLD] = f"t_i{self.across}"
        for node in postorder(*roots):
            match node:
                case Scalar(name=name):
                    leaves[node] = plan.symbols[name]
                case RowValue(name=name):
                    leaves[node] = self.shifts.get(name, name) + self.across
        self.printer = KernelPrinter(
            plan.index,
            leaves,
            plan.symbols,
            plan.cheap_division,
            score=plan.final,
            rows=self.shifts,
            across=self.across,
            scales_late=plan.scales_late,
        )
        is_separate = plan.final is build.SCORE
        self.raw: dict[Expr, str] = {build.SCORE: self.product}
        self.scored: dict[Expr, str] = {build.SCORE: "s" if is_separate else self.product}
        stages = (plan.placement, plan.peaks, plan.rest)
        self.program_names = names_of(line for stage in stages for line in stage.program)
        self.own_names = self.program_names | names_of(line for stage in stages for line in stage.own)
        self.coarse = coarse_reads(roots) if plan.spec.fast and plan.gather is not Gather.DIAGONAL else {}
        self.steps = {step.value: step.size for step in self.coarse.values()}
        self.hoisted = LoadStyle(clamped=not plan.spec.fast)
        self.full = LoadStyle(clamped=not plan.spec.fast, unclamped=self._live_loads())

    def guards(self, part: Statistic) -> bool:
        """Whether what is measured from a maximum must be guarded against rows that have met no live key."""
        if part.name == "m_i_peak":
            return False
        return self.plan.guards_maximum or part.integrand is not self.plan.final

    def _live_loads(self) -> frozenset[Expr]:
        """The reads a full tile makes at live pairs only: in bounds by the checks made before the launch."""
        stages = (self.plan.placement, self.plan.peaks, self.plan.rest)
        loads = frozenset(line.value for stage in stages for line in stage.full_tile)
        return loads - self.plan.branch_loads

    def own_lines(self) -> Iterator[str]:
        """What does not change along the walk."""
        stages = (self.plan.placement, self.plan.peaks, self.plan.rest)
        yield from self.statements([line for stage in stages for line in stage.program], {})
        yield from self.own_position()
        yield from self.statements([line for stage in stages for line in stage.own], self.program_names)

    def own_position(self) -> Iterator[str]:
        """The coordinate of what the program keeps."""
        match self.plan.side:
            case Side.QUERIES if self.reads(build.Q, full=False):
                yield "q_idx = q_offset + rows[:, None]"
            case Side.KEYS if self.reads(build.K, full=False):
                yield "kv_idx = keys[:, None]"

    def walked_position(self, *, full: bool) -> Iterator[str]:
        """The coordinate of what a tile meets; beyond the end it is the last one there is."""
        match self.plan.side:
            case Side.QUERIES if self.reads(build.K, full=full):
                yield f"kv_idx = {'keys' if full else 'tl.minimum(keys, kv_len - 1)'}[None, :]"
            case Side.KEYS if self.reads(build.Q, full=full):
                yield f"q_idx = (q_offset + {'rows' if full else 'tl.minimum(rows, q_len - 1)'})[None, :]"

    def base_lines(self) -> Iterator[str]:
        """Pointers moved to the batch and the head, and integers widened where nothing proves that they fit."""
        plan = self.plan
        tile = "diagonal" if plan.gather is Gather.DIAGONAL else "tile"
        # A program that keeps keys meets the queries of several heads.
        heads = {"m": "h", "n": "kv_h"} if plan.side is Side.QUERIES else {"n": "kv_h"}
        for tensor in plan.tensors:
            name, rows = TENSORS[tensor]
            own = f"({heads[rows]} * splits + split)" if plan.spec.split and tensor == "Out" else heads.get(rows, "")
            head = f"{own}.to(tl.int64) * stride_{name}h" if own else ""
            batch = "" if plan.spec.paged and rows == "n" else f"b.to(tl.int64) * stride_{name}b"
            yield f"{tensor} += {' + '.join(filter(None, (batch, head)))}"
        if plan.spec.paged:
            yield "Pages += b.to(tl.int64) * stride_pages"
            yield "stored = tl.load(Kv_lens + b)"
        if plan.side is Side.QUERIES:
            head = f"pid.to(tl.int64) // {tile}s"
            yield f"row_base = {f'({head} * splits + split)' if plan.spec.split else head} * q_len"
        if plan.scales_exponents:
            yield "qk_scale = sm_scale * LOG2E"
        if plan.spec.offset_per_batch:
            yield f"q_offset = tl.load(Q_offset + b){'.to(tl.int32)' if plan.spec.fast else ''}"
        yield from self._wide_integers("b", "h" if plan.side is Side.QUERIES else "kv_h", tile)

    def reads(self, coordinate: Expr, *, full: bool) -> bool:
        """Whether a tile reads a coordinate; a full one evaluates no mask."""
        plan = self.plan
        values = [plan.score, *plan.pair_values, *(part.integrand for part in plan.maxima)]
        # A step of keys is told without the keys themselves.
        steps: dict[Expr, Expr] = dict.fromkeys(self.steps, build.integer(0))
        found = substituted((*values, *(() if full else (plan.mask,))), steps)
        return any(node is coordinate for node in found.values())

    def statements(
        self,
        statements: Iterable[Statement],
        names: Mapping[Expr, str],
        loads: LoadStyle | None = None,
        indent: int = 4,
    ) -> Iterator[str]:
        known = dict(names)
        origin = None
        for line in statements:
            if line.origin is not None and line.origin != origin:
                yield f"# {line.origin}"
                origin = line.origin
            if line.value in self.steps:
                known[build.K] = self._step_position(self.steps[line.value], full=loads is self.full)
            if line.value in self.coarse:
                yield f"# One read for {self.coarse[line.value].size} keys."
            text = self.printer.text(line.value, known, loads or self.hoisted)
            known.pop(build.K, None)
            yield from wrapped(f"{line.name} = {text}", indent)
            if line.value in self.coarse:
                yield self._spread(line.name)
            known[line.value] = line.name

    def _step_position(self, size: int, *, full: bool) -> str:
        """The first key of every step of a tile of keys; beyond the end it is the last one there is."""
        is_own = self.plan.side is Side.KEYS
        self.printer.helpers.add("_steps")
        firsts = f"{'tile * BLOCK_N' if is_own else 'start_n'} + _steps(BLOCK_N, {size})"
        inside = f"({firsts})" if full and not is_own else f"tl.minimum({firsts}, kv_len - 1)"
        return f"{inside}{'[:, None]' if is_own else '[None, :]'}"

    def _spread(self, name: str) -> str:
        """What is known of every step of a tile of keys, told of every key."""
        self.printer.helpers.add("_spread")
        return f"{name} = _spread({name}, BLOCK_N, {0 if self.plan.side is Side.KEYS else 1})"

    def score_lines(self, *, full: bool, past_end: str, indent: int) -> Iterator[str]:
        """The final score of a tile, -inf where a pair is not live, and in partial tiles `live`."""
        plan, placement = self.plan, self.plan.placement
        loads = self.full if full else self.hoisted
        walked, tile = (placement.full_walked, placement.full_tile) if full else (placement.walked, placement.tile)
        yield from self.statements((*walked, *tile), {**self.own_names, **self.raw}, loads, indent)
        names = {**self.own_names, **self.raw, **names_of((*walked, *tile))}
        if not full:
            yield from self._live_lines(names, past_end)
        yield from self._final_lines(names, loads)
        if full:
            if plan.hides_keys and self.needs_live:
                yield "live = s != -INF"
            return
        if plan.hides_keys and self.needs_live:
            yield "live = live & (s != -INF)"
        yield "s = tl.where(live, s, -INF)"

    def _live_lines(self, names: Mapping[Expr, str], past_end: str) -> Iterator[str]:
        if self.plan.mask is build.TRUE:
            yield f"live = {past_end}"
            return
        if self.plan.mask_origin is not None:
            yield f"# {self.plan.mask_origin}"
        yield f"live = {self.printer.named(self.plan.mask, names, self.hoisted)}"
        yield f"live = live & {past_end}"

    def _final_lines(self, names: Mapping[Expr, str], loads: LoadStyle) -> Iterator[str]:
        if self.plan.score is build.SCORE:
            return
        if self.plan.score_origin is not None:
            yield f"# {self.plan.score_origin}"
        score = self.printer.named(self.plan.score, names, loads)
        if scope_of(axes_of(self.plan.score)) is not Scope.TILE:
            score = f"tl.zeros_like({self.product}) + {score}"
        yield f"s = {score}"

    @property
    def needs_live(self) -> bool:
        """Whether values of pairs that are not live must be selected away."""
        peaks = (part.integrand for part in self.plan.maxima)
        return any(not self.vanishes(value) for value in self.plan.pair_values) or any(
            value is not self.plan.final for value in peaks
        )

    def vanishes(self, value: Expr) -> bool:
        """Whether a value is 0 by itself where the score is -inf."""
        row = self.plan.base_of_exponential(value)
        if row is None:
            return False
        return row.name in {part.grown.name for part in self.plan.maxima} or not self.plan.guards_rows

    def value_lines(self, *, full: bool, indent: int) -> Iterator[str]:
        """The values that are summed: those of products under the products' names (`value_names`)."""
        rest = self.plan.rest
        walked, tile = (rest.full_walked, rest.full_tile) if full else (rest.walked, rest.tile)
        names = self.later_names(full=full)
        loads = self.full if full else self.hoisted
        yield from self.statements((*walked, *tile), names, loads, indent)
        names |= names_of((*walked, *tile))
        has_live = not full or self.plan.hides_keys
        for value, name in self.value_names().items():
            text = self.printer.named(value, names, loads)
            is_spread = scope_of(axes_of(value)) is not Scope.TILE
            text = f"tl.zeros_like(s) + {text}" if is_spread else text
            if has_live and not self.vanishes(value):
                yield from wrapped(f"{name} = tl.where(live, {text}, 0.0)", indent)
            elif text != name:
                yield f"{name} = {text}"

    def value_names(self) -> dict[Expr, str]:
        """The name of every value that is summed."""
        found: dict[Expr, str] = {}
        for value in self.plan.pair_values:
            placed = self.plan.names.get(value)
            taken = {"s", "qk", "dw", *found.values()}
            found[value] = placed if placed is not None and placed not in taken else _fresh("p", taken)
        return found

    def later_names(self, *, full: bool) -> dict[Expr, str]:
        """The names of values after the score is known."""
        placement, peaks = self.plan.placement, self.plan.peaks
        lines = (
            (*placement.full_walked, *placement.full_tile, *peaks.full_walked, *peaks.full_tile)
            if full
            else (*placement.walked, *placement.tile, *peaks.walked, *peaks.tile)
        )
        final = {} if self.plan.final is build.SCORE else {self.plan.final: "s"}
        return {**self.own_names, **self.scored, **names_of(lines), **final}

    def _wide_integers(self, *coordinates: str) -> Iterator[str]:
        """Integers widened where nothing proves that they fit in 32 bits."""
        if self.plan.spec.fast:
            return
        integers = [
            self.plan.symbols[p.name] for p in self.plan.params if isinstance(p, ScalarParam) and p.dtype.is_int
        ]
        names = (*coordinates, "q_len", "kv_len", *integers, "q_offset")
        yield from (f"{name} = tl.cast({name}, tl.int64)" for name in names)


def d_columns(plan: KernelPlan) -> dict[str, Columns]:
    """The columns of queries and keys, by the names of their offsets."""
    return {f"offs_d{columns.suffix}": columns for columns in columns_of(plan.spec.head_dim)}


def dv_columns(plan: KernelPlan) -> dict[str, Columns]:
    """Those of values and outputs: the offsets are those of keys, where as many columns are computed."""
    found = columns_of(plan.spec.v_head_dim)
    widths = [columns.width for columns in found]
    is_alike = widths == [columns.width for columns in columns_of(plan.spec.head_dim)]
    return {f"offs_{'d' if is_alike else 'dv'}{columns.suffix}": columns for columns in found}


def operand_columns(plan: KernelPlan, operand: Operand) -> dict[str, Columns]:
    """The columns of what a product is taken with."""
    return dv_columns(plan) if operand in (Operand.VALUE, Operand.GRADIENT) else d_columns(plan)


def d_mask(offsets: str, columns: Columns) -> tuple[str, ...]:
    """The mask of padded columns; none where all of them are there."""
    return (f"({offsets} < {columns.limit})",) if columns.is_padded else ()


def parts(name: str, columns: Mapping[str, Columns], across: str, *masks: str) -> tuple[Part, ...]:
    """The reads of a tile, `across` being how offsets of columns are spread over it."""
    return tuple(
        Part(one.suffix, offs, load_text(f"{name}_tile{one.suffix}", *masks, *d_mask(f"{offs}{across}", one)))
        for offs, one in columns.items()
    )


def dots(name: str, factors: Iterable[tuple[str, str]], precision: str, whole: str = "{}") -> Iterator[str]:
    """The sum of products of tiles, one a piece of the head dim; `whole` is what becomes of it."""
    *others, last = factors
    before = ""
    for left, right in others:
        yield f"{name} = tl.dot({left}, {right}{before}{precision})"
        before = f", {name}"
    yield f"{name} = {whole.format(f'tl.dot({last[0]}, {last[1]}{before}{precision})')}"


def suffix_of(part: Statistic) -> str:
    """What tells one maximum's names from another's."""
    return part.name.removeprefix("m_i")


def load_text(pointer: str, *masks: str) -> str:
    """The arguments of a `tl.load` of what all the masks hold at, 0 elsewhere."""
    return f"tl.load({pointer}, mask={' & '.join(masks)}, other=0.0)" if masks else f"tl.load({pointer})"


def names_of(statements: Iterable[Statement]) -> dict[Expr, str]:
    return {line.value: line.name for line in statements}


def _fresh(hint: str, taken: set[str]) -> str:
    name, number = hint, 0
    while name in taken:
        number += 1
        name = f"{hint}_{number}"
    return name
