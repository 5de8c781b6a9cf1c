"""Where every value of a kernel is computed, and which values have a name.

In: the expressions of a kernel. Out: a `Placement`: statements by scope, each in order of dependence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from attndsl.analysis.axes import axes_below
from attndsl.codegen.names import KERNEL_NAMES
from attndsl.ir.nodes import Const, Coord, Expr, Input, Load, RowValue, Scalar, children
from attndsl.ir.rewrite import postorder, uses
from attndsl.ir.types import Axis
from attndsl.ir.variant import Variant

MAX_WIDTH = 44
"""Characters a value may take inside another before it gets a name of its own: keeps lines short and text flat."""


class Scope(Enum):
    """Where a value is computed: once a program, once a query tile, once a key tile, or for every pair of a tile."""

    PROGRAM = "program"
    ROW = "row"
    COLUMN = "column"
    TILE = "tile"


class Side(Enum):
    """Whose tile a program keeps: that of queries, walking keys, or that of keys, walking queries."""

    QUERIES = "queries"
    KEYS = "keys"

    @property
    def own(self) -> Scope:
        """The scope of what is computed before the walk."""
        return Scope.ROW if self is Side.QUERIES else Scope.COLUMN

    @property
    def walked(self) -> Scope:
        """The scope of what is computed once a tile of the walk."""
        return Scope.COLUMN if self is Side.QUERIES else Scope.ROW


@dataclass(frozen=True, slots=True)
class Statement:
    """`name = value`, at the place where the user wrote the value."""

    name: str
    value: Expr
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """The named values of a kernel by scope, each in order of dependence.

    `program` and `own` values are computed before the loops; `walked` and `tile` values in a partial tile;
    `full_walked` and `full_tile` are those of them that a full tile, which evaluates no mask, still needs.
    """

    program: tuple[Statement, ...] = ()
    own: tuple[Statement, ...] = ()
    walked: tuple[Statement, ...] = ()
    tile: tuple[Statement, ...] = ()
    full_walked: tuple[Statement, ...] = ()
    full_tile: tuple[Statement, ...] = ()

    @property
    def statements(self) -> tuple[Statement, ...]:
        return (*self.program, *self.own, *self.walked, *self.tile)


def scope_of(axes: frozenset[Axis]) -> Scope:
    """The scope of a value that depends on these axes."""
    if Axis.Q in axes:
        return Scope.TILE if Axis.K in axes else Scope.ROW
    return Scope.COLUMN if Axis.K in axes else Scope.PROGRAM


@dataclass(slots=True)
class Placer:
    """Places the expressions of a kernel, stage by stage: what one stage has named, later ones read by that name.

    `names` are the values that have one, `hints` the names to use for some values. `growing` are row values that
    change along the walk: what reads one is computed in it.
    """

    variant: Variant
    symbols: Mapping[str, str]
    side: Side = Side.QUERIES
    hints: Mapping[Expr, str] = field(default_factory=dict)
    growing: frozenset[str] = frozenset()
    names: dict[Expr, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.taken |= {*KERNEL_NAMES, *self.symbols.values()}

    def place(self, values: Iterable[Expr], mask: Iterable[Expr] = (), later: Iterable[Expr] = ()) -> Placement:
        """Names the values worth a name: loads, what is used twice, what leaves a loop it does not depend on, long
        text. `mask` are the roots a full tile does without, `later` those of stages to come."""
        values = tuple(values)
        roots = (*mask, *values)
        axes = axes_below(*roots)
        scopes = self._scopes(axes)
        counts = uses(roots)
        hoisted = {
            child
            for node in scopes
            for child in children(node)
            if scopes[child] is not scopes[node] and not (scopes[child] is Scope.PROGRAM and _is_cheap(child))
        }
        placed: dict[Scope, list[Statement]] = {scope: [] for scope in Scope}
        widths: dict[Expr, int] = {}
        for node in postorder(*roots):
            widths[node] = len(self.names[node]) if node in self.names else _width(node, widths)
            is_leaf = isinstance(node, Const | Coord | Input | Scalar | RowValue) or node in self.names
            is_printed_in_place = node in roots and not isinstance(node, Load) and node not in self.hints
            if is_leaf or is_printed_in_place:
                continue
            worth = isinstance(node, Load) or counts[node] > 1 or node in hoisted or widths[node] > MAX_WIDTH
            if worth or node in self.hints:
                placed[scopes[node]].append(self._statement(node, axes[node]))
                widths[node] = len(self.names[node])
        needed = set(postorder(*values, *later))
        walked, tile = placed[self.side.walked], placed[Scope.TILE]
        full_walked, full_tile = (tuple(line for line in part if line.value in needed) for part in (walked, tile))
        program, own = tuple(placed[Scope.PROGRAM]), tuple(placed[self.side.own])
        return Placement(program, own, tuple(walked), tuple(tile), full_walked, full_tile)

    def _scopes(self, axes: Mapping[Expr, frozenset[Axis]]) -> dict[Expr, Scope]:
        scopes = {node: scope_of(node_axes) for node, node_axes in axes.items()}
        if self.growing:
            moving: set[Expr] = set()
            for node in axes:
                is_moving = isinstance(node, RowValue) and node.name in self.growing
                if is_moving or any(child in moving for child in children(node)):
                    moving.add(node)
                    scopes[node] = Scope.TILE
        return scopes

    def _statement(self, node: Expr, axes: frozenset[Axis]) -> Statement:
        name = _free(self.hints.get(node) or _hint(node, axes, self.symbols), self.taken, node in self.hints)
        self.names[node] = name
        return Statement(name, node, origin_of(self.variant, node))


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


def _free(hint: str, taken: set[str], is_reserved: bool) -> str:
    """The hint itself, or the first of `hint_1`, `hint_2` that is not taken; it is taken then."""
    name, number = hint, 0
    while name in taken and not is_reserved:
        number += 1
        name = f"{hint}_{number}"
    taken.add(name)
    return name


def origin_of(variant: Variant, node: Expr) -> str | None:
    """The file and line a node was first written at; the file without its folders."""
    span = variant.origins.first(node)
    return None if span is None else f"{span.source.base_name}:{span.line}"
