"""Every decision about a kernel, made once, flat and frozen: templates arrange what stands here, printers print it.

In: a variant after its passes and a `Specialisation`. Out: a `KernelPlan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from attndsl.analysis.axes import axes_below
from attndsl.analysis.bounds import Strategy, choose_strategy, key_range, key_ranges
from attndsl.analysis.coverage import Cover, coverage
from attndsl.analysis.infinite import may_be_infinite
from attndsl.analysis.monotone import Trend, trend_in_query
from attndsl.analysis.natural import natural_divisions
from attndsl.analysis.proofs import Claim, Proof, row_proofs
from attndsl.analysis.streaming import Streaming, stream
from attndsl.codegen.names import KERNEL_NAMES, kernel_names
from attndsl.diagnostics import Diagnostic, UnsupportedError
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Coord, Expr, Input, Load, Scalar, children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, uses
from attndsl.ir.types import Axis, DType
from attndsl.ir.variant import Param, Variant


@dataclass(frozen=True, slots=True)
class Specialisation:
    """What a kernel is compiled for besides the variant.

    `dtype` is the element type of q, k and v: "bf16", "fp16" or "fp32". `fast` kernels rely on facts the launcher
    checks on the host: every `Condition`, and those proofs about rows are taken on (`analysis.proofs`). The other
    kernel relies on none of them. `strategy` is the walk over the keys, by default the one the mask allows.
    """

    dtype: str = "bf16"
    head_dim: int = 128
    v_head_dim: int = 128
    fast: bool = True
    offset_per_batch: bool = False
    strategy: Strategy | None = None


MAX_WIDTH = 44
"""Characters a value may take inside another before it gets a name of its own: keeps lines short and text flat."""


class Scope(Enum):
    """Where a value is computed: once a program, once a query tile, once a key tile, or for every pair of a tile."""

    PROGRAM = "program"
    ROW = "row"
    COLUMN = "column"
    TILE = "tile"


@dataclass(frozen=True, slots=True)
class Statement:
    """`name = value`, at the place where the user wrote the value."""

    name: str
    value: Expr
    origin: str | None = None


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


@dataclass(frozen=True, slots=True)
class Placement:
    """The named values of a kernel by scope, each in order of dependence.

    `program` and `row` values are computed before the loops; `column` and `tile` values in a partial tile;
    `full_column` and `full_tile` are those of them that a full tile, which evaluates no mask, still needs.
    """

    program: tuple[Statement, ...]
    row: tuple[Statement, ...]
    column: tuple[Statement, ...]
    tile: tuple[Statement, ...]
    full_column: tuple[Statement, ...]
    full_tile: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """A forward kernel.

    `symbols` are the kernel's identifiers of the parameters, by name. `rows` is what is proven about the live keys of
    a row. `cheap_division` are the `//` and `%` whose
    operands are never negative; `branch_loads` the captured reads whose index may be out of bounds even on a live
    pair, because they stand in a branch.
    """

    variant: Variant
    spec: Specialisation
    params: tuple[Param, ...]
    symbols: Mapping[str, str]
    walk: KeyWalk
    streaming: Streaming
    placement: Placement
    sink: Placement
    mask: Expr
    score: Expr
    rows: tuple[Proof, ...]
    cheap_division: frozenset[Expr]
    branch_loads: frozenset[Expr]
    mask_origin: str | None
    score_origin: str | None

    @property
    def index(self) -> DType:
        """The width integers are computed in."""
        return DType.I32 if self.spec.fast else DType.I64

    @property
    def scales_late(self) -> bool:
        """Whether the scale joins the exponent: without score mods, and with a sign that keeps the maximum's place."""
        return self.score is build.SCORE and self.spec.fast

    @property
    def hides_keys(self) -> bool:
        """Whether a score may mask a pair that its mask keeps: then even a full tile may hold a key nobody sees."""
        return may_be_infinite(self.score)

    @property
    def seen_are_bounded(self) -> bool:
        """Whether bounds alone tell the keys of a tile that some of its queries see."""
        return self.walk.seen_are_bounded and not self.hides_keys

    @property
    def guards_rows(self) -> bool:
        """Whether a row may have no live key."""
        return all(proof.claim is not Claim.LIVE_ROW for proof in self.rows)

    @property
    def guards_maximum(self) -> bool:
        """Whether a row may have no live key in the tiles it has met so far."""
        return all(proof.claim is not Claim.LIVE_START for proof in self.rows)

    @property
    def never(self) -> bool:
        """Whether no pair is ever live."""
        return self.mask is build.FALSE


@dataclass(frozen=True, slots=True)
class Emitted:
    """A plan and the text printed from it."""

    plan: KernelPlan
    text: str


def plan_forward(variant: Variant, spec: Specialisation) -> KernelPlan:
    """The plan of the forward kernel; refused with all reasons when the variant is outside what kernels do."""
    streaming = stream(variant.normalizer)
    _refuse(variant, streaming)
    assert streaming is not None
    sink = () if streaming.sink is None else (streaming.sink,)
    roots = (variant.mask, variant.score, *sink)
    params = used_params(variant, roots)
    symbols = kernel_names(param.name for param in params)
    return KernelPlan(
        variant=variant,
        spec=spec,
        params=params,
        symbols=symbols,
        walk=plan_walk(variant.mask, choose_strategy(variant.mask) if spec.strategy is None else spec.strategy),
        streaming=streaming,
        placement=place(variant, variant.mask, variant.score, symbols),
        sink=place(variant, build.TRUE, build.TRUE if streaming.sink is None else streaming.sink, symbols),
        mask=variant.mask,
        score=variant.score,
        rows=row_proofs(variant.mask, variant.score) if spec.fast else (),
        cheap_division=natural_divisions(roots) if spec.fast else frozenset(),
        branch_loads=_branch_loads(variant.score),
        mask_origin=_origin(variant, variant.mask),
        score_origin=_origin(variant, variant.score),
    )


def _refuse(variant: Variant, streaming: Streaming | None) -> None:
    reasons: list[Diagnostic] = []
    if streaming is None:
        reasons.append(
            Diagnostic(
                "normalizer-not-streamable",
                "no streaming form of this normalizer is known",
                variant.origins.first(variant.normalizer),
                ("kernels stream softmax, with or without a sink",),
                'call it with `backend="reference"`',
            )
        )
    if variant.weight is not build.WEIGHT:
        reasons.append(
            Diagnostic(
                "weight-mod-not-streamable",
                "kernels do not edit normalized weights",
                variant.origins.first(variant.weight),
                (),
                'call it with `backend="reference"`',
            )
        )
    if reasons:
        raise UnsupportedError(reasons)


def used_params(variant: Variant, roots: Iterable[Expr]) -> tuple[Param, ...]:
    """The parameters a kernel reads, in the order of declaration."""
    names = set()
    for node in postorder(*roots):
        match node:
            case Scalar(name=name) | Load(tensor=name):
                names.add(name)
    return tuple(param for param in variant.params if param.name in names)


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


def _key_bounds(values: tuple[Expr, ...]) -> tuple[KeyBound, ...]:
    return tuple(KeyBound(value, trend_in_query(value)) for value in values)


def padded(head_dim: int) -> int:
    """The power of two a head dimension is computed in, at least what a matrix product takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def scope_of(axes: frozenset[Axis]) -> Scope:
    """The scope of a value that depends on these axes."""
    if Axis.Q in axes:
        return Scope.TILE if Axis.K in axes else Scope.ROW
    return Scope.COLUMN if Axis.K in axes else Scope.PROGRAM


def place(variant: Variant, mask: Expr, value: Expr, symbols: Mapping[str, str]) -> Placement:
    """Names the values worth a name: loads, what is used twice, what leaves a loop it does not depend on, long text."""
    roots = (mask, value)
    axes = axes_below(*roots)
    scopes = {node: scope_of(node_axes) for node, node_axes in axes.items()}
    counts = uses(roots)
    hoisted = {
        child
        for node in scopes
        for child in children(node)
        if scopes[child] is not scopes[node] and not (scopes[child] is Scope.PROGRAM and _is_cheap(child))
    }
    placed: dict[Scope, list[Statement]] = {scope: [] for scope in Scope}
    widths: dict[Expr, int] = {}
    taken = {*KERNEL_NAMES, *symbols.values()}
    for node in postorder(*roots):
        widths[node] = _width(node, widths)
        is_leaf = isinstance(node, Const | Coord | Input | Scalar)
        if is_leaf or (node in roots and not isinstance(node, Load)):
            continue
        if isinstance(node, Load) or counts[node] > 1 or node in hoisted or widths[node] > MAX_WIDTH:
            name = _free(_hint(node, axes[node], symbols), taken)
            placed[scopes[node]].append(Statement(name, node, _origin(variant, node)))
            widths[node] = len(name)
    needed = set(postorder(value))
    program, row, column, tile = (tuple(placed[scope]) for scope in Scope)
    full_column, full_tile = (tuple(line for line in part if line.value in needed) for part in (column, tile))
    return Placement(program, row, column, tile, full_column, full_tile)


def _width(node: Expr, widths: dict[Expr, int]) -> int:
    """About how many characters a value takes when it is printed in place."""
    own = {Scalar: 10, Coord: 6, Const: 6}.get(type(node), 8)
    return own + sum(widths[child] for child in children(node))


def _is_cheap(node: Expr) -> bool:
    """Whether recomputing a scalar costs nothing: a leaf, or one operation on leaves."""
    return all(not children(child) for child in children(node)) and not isinstance(node, Load)


def _hint(node: Expr, axes: frozenset[Axis], symbols: Mapping[str, str]) -> str:
    """`slopes_h`, `doc_q`, `doc_k` for loads; `const`, `row`, `col`, `term` for what is computed."""
    if isinstance(node, Load):
        suffix = "".join(axis.value for axis in Axis if axis in axes and axis is not Axis.B)
        return f"{symbols[node.tensor]}_{suffix or ('b' if axes else 'value')}"
    return {Scope.PROGRAM: "const", Scope.ROW: "row", Scope.COLUMN: "col", Scope.TILE: "term"}[scope_of(axes)]


def _free(hint: str, taken: set[str]) -> str:
    """The hint itself, or the first of `hint_1`, `hint_2` that is not taken; it is taken then."""
    name, number = hint, 0
    while name in taken:
        number += 1
        name = f"{hint}_{number}"
    taken.add(name)
    return name


def _origin(variant: Variant, node: Expr) -> str | None:
    span = variant.origins.first(node)
    return None if span is None else f"{span.source.base_name}:{span.line}"


def _branch_loads(root: Expr) -> frozenset[Expr]:
    """The loads that may stand in a branch not taken: even on a live pair their index may be out of bounds."""
    found: set[Expr] = set()
    for node in postorder(root):
        match node:
            case Apply(op=Op.WHERE, args=(_, yes, no)):
                branches: tuple[Expr, ...] = (yes, no)
            case Apply(op=Op.AND | Op.OR, args=(_, right)):
                branches = (right,)
            case _:
                continue
        found.update(load for load in postorder(*branches) if isinstance(load, Load))
    return frozenset(found)
