"""Tokens laid out on a grid: coordinates of a flattened position, as arithmetic with constants.

In: names and sizes of axes, an index. Out: nodes, and what a grid requires of a call. Row-major: the last axis is the
fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attndsl.diagnostics import Span
from attndsl.frontend.builder import Builder
from attndsl.frontend.requirements import add_requirement
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.order import GridOrder

MAX_AXES = 4
MAX_LENGTH = 2**31 - 1
"""Of a sequence; positions of a larger grid could not be reached."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Axes of a grid, slowest first; `tile` where kernels keep its tokens tile by tile."""

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    tile: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """How many places there are."""
        return math.prod(self.sizes)

    def step(self, axis: str) -> tuple[int, int | None]:
        """The divisor and the modulus that give a coordinate; the first axis needs no modulus."""
        at = self.axes.index(axis)
        return math.prod(self.sizes[at + 1 :]), self.sizes[at] if at > 0 else None

    @property
    def order(self) -> GridOrder | None:
        """How kernels keep the tokens, where that is not row-major."""
        order = None if self.tile is None else GridOrder(self.sizes, self.tile)
        return order if order is not None and order.moves else None

    def __str__(self) -> str:
        return f"grid({', '.join(f'{axis} = {size}' for axis, size in zip(self.axes, self.sizes, strict=True))})"


def problem_of(axes: Sequence[str], sizes: Sequence[object]) -> str | None:
    """Why these cannot be the axes of a grid."""
    if not 1 <= len(axes) <= MAX_AXES:
        return f"a grid has 1 to {MAX_AXES} axes, got {len(axes)}"
    for axis, size in zip(axes, sizes, strict=True):
        if type(size) is not int or size < 1:
            return f"the size of axis `{axis}` is {size!r}, expected a positive integer"
    length = math.prod(size for size in sizes if isinstance(size, int))
    if length > MAX_LENGTH:
        return f"a grid has at most {MAX_LENGTH} places, got {length}"
    return None


def problems_of_tile(axes: Sequence[str], sizes: Sequence[int], tile: Sequence[object]) -> list[str]:
    """Why the tokens of a grid cannot be kept in tiles of these sizes."""
    if len(tile) != len(axes):
        return [f"a tile of {len(tile)} size(s) on a grid of {len(axes)} axes"]
    problems = []
    for axis, size, side in zip(axes, sizes, tile, strict=True):
        if type(side) is not int or side < 1:
            problems.append(f"the tile is {side!r} along `{axis}`, expected a positive integer")
        elif size % side:
            problems.append(f"tiles of {side} do not divide axis `{axis}` of {size}")
    return problems


def keep_order(builder: Builder, layout: Layout, span: Span | None) -> None:
    """Let kernels keep tokens in the order of this grid; a program has one at most."""
    order, kept = layout.order, builder.order
    if order is None or order in builder.orders:
        return
    builder.orders[order] = None
    if kept is not None:
        message = f"tokens are to be kept in {order}, and in {kept}"
        help_ = "give `tile` to one grid only, or the same to all"
        builder.reporter.error("two-orders", message, span, help=help_)


def coordinate(builder: Builder, layout: Layout, axis: str, index: Expr, span: Span | None) -> Expr:
    """The coordinate of a position along an axis.

    Of `kv_idx` the grid requires one key for each place, of `q_idx` that every query, its offset included, has a
    place. Of anything else (`g(q_idx - text_len)`) nothing: which positions are on the grid is for the mask to say.
    """
    if axis not in layout.axes:
        known = ", ".join(f"`{one}`" for one in layout.axes)
        builder.reporter.error("unknown-axis", f"`{layout}` has no axis `{axis}`", span, help=f"its axes are {known}")
        return build.integer(0)
    if not index.dtype.is_int:
        message = f"a position on a grid is an integer, got {index.dtype.value}"
        builder.reporter.error("grid-index", message, span, help="give `q_idx`, `kv_idx` or an integer made of them")
        return build.integer(0)
    _require_places(builder, layout, index, span)
    divisor, modulus = layout.step(axis)
    value = index
    if divisor != 1:
        value = builder.infix("//", value, builder.literal(divisor), span)
    return value if modulus is None else builder.infix("%", value, builder.literal(modulus), span)


def _require_places(builder: Builder, layout: Layout, index: Expr, span: Span | None) -> None:
    length = builder.literal(layout.length)
    if index is build.K:
        message = f"{layout} has {layout.length} places, one for each key"
        add_requirement(builder, builder.infix("==", build.KV_LEN, length), message, span)
    elif index is build.Q:
        message = f"{layout} has {layout.length} places, and every query needs one"
        above = builder.infix(">=", build.Q, builder.literal(0))
        inside = builder.infix("and", above, builder.infix("<", build.Q, length))
        add_requirement(builder, inside, message, span)
