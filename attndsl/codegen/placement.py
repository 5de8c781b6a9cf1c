"""Where every value of a kernel is computed, and which values have a name.

In: the expressions of a kernel. Out: a `Placement`: statements by scope, each in order of dependence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from attndsl.analysis.axes import axes_below
from attndsl.codegen.names import KERNEL_NAMES
from attndsl.ir.nodes import Const, Coord, Expr, Input, Load, Scalar, children
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


@dataclass(frozen=True, slots=True)
class Statement:
    """`name = value`, at the place where the user wrote the value."""

    name: str
    value: Expr
    origin: str | None = None


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
            placed[scopes[node]].append(Statement(name, node, origin_of(variant, node)))
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


def origin_of(variant: Variant, node: Expr) -> str | None:
    """The file and line a node was first written at; the file without its folders."""
    span = variant.origins.first(node)
    return None if span is None else f"{span.source.base_name}:{span.line}"
