"""Masks over tokens laid out on a grid: neighbourhoods, windows, sliding tiles, axes, radial attention for video.

In: a grid and, for each of its axes (or one number for all), sizes in tokens. Out: masks, written in the DSL like any
user's. Positions are row-major, the last axis the fastest, and the call's lengths must be the grid's (`ad.grid`). None
of these includes causality in time unless asked for. What does not fit a grid is refused when the mask is made;
parameters that `bind` may change (`window_y`, ...) are runtime scalars and are checked again at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from attndsl.diagnostics import Reporter
from attndsl.frontend.decorators import MaskMod
from attndsl.frontend.grids import Grid, require
from attndsl.frontend.math import bit_length, clamp, maximum, minimum, where
from attndsl.frontend.signatures import Signature, Stage
from attndsl.frontend.symbols import Symbol

PAIR = (("q_idx", "q_idx"), ("kv_idx", "kv_idx"))
PerAxis = int | Sequence[int]
Demand = tuple[Any, str]
"""A condition on parameters, symbolic or not, and what to say where it does not hold."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What of a neighbourhood along one axis is part of the kernel."""

    name: str
    size: int
    dilation: int
    stride: int
    causal: bool


def neighborhood(
    grid: Grid,
    window: PerAxis,
    *,
    dilation: PerAxis = 1,
    stride: PerAxis = 1,
    causal: bool | Sequence[bool] = False,
) -> MaskMod:
    """Neighbourhood attention on a grid of any rank: along each axis a query sees exactly `window` keys around itself.

    The window starts `window // 2` keys before its centre and at a border it moves inwards, never shrinks; the product
    of the axes' windows is seen. `stride`: that many neighbouring queries share the window of the one in their middle
    (`stride == window` are blocks). `dilation` splits an axis into residue classes, each of which is an axis of its own
    with every `dilation`-th token: any parity of window and dilation is well defined. A `causal` axis sees `window`
    keys up to the query's own, fewer at the start; with a stride the window ends at the last query of the group, and
    the query still sees no later key. Runtime scalars: `window_<axis>`.
    """
    reporter = Reporter()
    windows = _per_axis(grid, "window", window, int, reporter)
    dilations = _per_axis(grid, "dilation", dilation, int, reporter)
    strides = _per_axis(grid, "stride", stride, int, reporter)
    causals = _per_axis(grid, "causal", causal, bool, reporter)
    for word, steps in (("dilation", dilations), ("stride", strides)):
        for name, step in zip(grid.axes, steps, strict=True):
            _demand(reporter, step >= 1, f"the {word} along `{name}` is {step}, expected at least 1")
    reporter.check()
    axes = tuple(map(Axis, grid.axes, grid.sizes, dilations, strides, causals))

    def sees(q_idx: Any, kv_idx: Any, **windows: Any) -> Any:
        places = zip(axes, windows.values(), grid(q_idx), grid(kv_idx), strict=True)
        return _all(_near(axis, size, q, k) for axis, size, q, k in places)

    def demands(**windows: Any) -> Iterator[Demand]:
        for axis, size in zip(axes, windows.values(), strict=True):
            yield from _window_demands(axis, size)

    return _mask("neighborhood", sees, demands, _named("window", grid, windows))


def box_window(grid: Grid, radius: PerAxis) -> MaskMod:
    """Along each axis a query sees the keys at most `radius` away, fewer at a border; their product is seen.

    Runtime scalars: `radius_<axis>`.
    """
    reporter = Reporter()
    radii = _per_axis(grid, "radius", radius, int, reporter)
    reporter.check()

    def sees(q_idx: Any, kv_idx: Any, **radii: Any) -> Any:
        places = zip(radii.values(), grid(q_idx), grid(kv_idx), strict=True)
        return _all(abs(q - k) <= reach for reach, q, k in places)

    def demands(**radii: Any) -> Iterator[Demand]:
        for axis, reach in zip(grid.axes, radii.values(), strict=True):
            yield reach >= 0, f"`radius_{axis}` is a distance, at least 0"

    return _mask("box_window", sees, demands, _named("radius", grid, radii))


def shifted_windows(grid: Grid, window: PerAxis, *, shift: PerAxis = 0, wrap: bool = False) -> MaskMod:
    """Windowed attention: the grid is cut into windows, and a query sees the keys of its own.

    The cuts lie at `shift`, `shift + window`, ... along each axis (Swin: `shift = window // 2` in every other layer).
    What the cuts leave at the borders are smaller windows, as in Swin, whose masks separate what its roll brings
    together; `wrap=True` joins the two ends of an axis instead, which the window must then divide.
    """
    reporter = Reporter()
    windows = _per_axis(grid, "window", window, int, reporter)
    shifts = _per_axis(grid, "shift", shift, int, reporter)
    reporter.check()
    for axis, length, size, offset in zip(grid.axes, grid.sizes, windows, shifts, strict=True):
        _demand(reporter, 1 <= size <= length, f"the window along `{axis}` is {size}, expected 1 to {length}")
        _demand(
            reporter, 0 <= offset < size or size < 1, f"the shift along `{axis}` is {offset}, expected 0 to {size - 1}"
        )
        even = not wrap or size < 1 or length % size == 0
        _demand(reporter, even, f"windows of {size} do not divide `{axis}` of {length}, so they cannot wrap around it")
    reporter.check()
    cuts = tuple(zip(grid.sizes, windows, shifts, strict=True))

    def sees(q_idx: Any, kv_idx: Any) -> Any:
        places = zip(cuts, grid(q_idx), grid(kv_idx), strict=True)
        return _all(_window_of(cut, q, wrap) == _window_of(cut, k, wrap) for cut, q, k in places)

    return _mask("shifted_windows", sees, _nothing, {})


def sliding_tiles(grid: Grid, tile: PerAxis, window: PerAxis) -> MaskMod:
    """Sliding tile attention: neighbourhood attention among tiles; all tokens of a tile see the same tiles.

    Along each axis a query sees the tokens of exactly `window` tiles around its own, which moves inwards at a border.
    `tile`, in tokens, must divide the axis; `window` counts tiles. Tokens stay in row-major order unless
    the grid keeps them in tiles; if in these, a block of a tile is full or empty. Runtime scalars: `window_<axis>`.
    """
    reporter = Reporter()
    tiles = _per_axis(grid, "tile", tile, int, reporter)
    windows = _per_axis(grid, "window", window, int, reporter)
    reporter.check()
    for axis, length, size in zip(grid.axes, grid.sizes, tiles, strict=True):
        fits = size >= 1 and length % size == 0
        _demand(reporter, fits, f"tiles of {size} do not divide `{axis}` of {length}")
    reporter.check()
    axes = tuple(
        Axis(name, length // size, 1, 1, False) for name, length, size in zip(grid.axes, grid.sizes, tiles, strict=True)
    )

    def sees(q_idx: Any, kv_idx: Any, **windows: Any) -> Any:
        places = zip(axes, tiles, windows.values(), grid(q_idx), grid(kv_idx), strict=True)
        return _all(_near(axis, size, _tile_of(q, tile), _tile_of(k, tile)) for axis, tile, size, q, k in places)

    def demands(**windows: Any) -> Iterator[Demand]:
        for axis, size in zip(axes, windows.values(), strict=True):
            yield from _window_demands(axis, size)

    return _mask("sliding_tiles", sees, demands, _named("window", grid, windows))


def axial(grid: Grid, along: str | Sequence[str]) -> MaskMod:
    """A query sees the keys that differ from it along these axes only: its row, its column, its frame.

    `axial(g, "y") | axial(g, "x")` is a cross; `axial(g, ("y", "x"))` on a grid of frames is attention within a frame.
    """
    names = (along,) if isinstance(along, str) else tuple(along)
    reporter = Reporter()
    for name in names:
        known = ", ".join(f"`{axis}`" for axis in grid.axes)
        _demand(reporter, name in grid.axes, f"`{grid}` has no axis `{name}`; its axes are {known}")
    reporter.check()
    fixed = tuple(axis for axis in grid.axes if axis not in names)

    def sees(q_idx: Any, kv_idx: Any) -> Any:
        return _all(getattr(grid(q_idx), axis) == getattr(grid(kv_idx), axis) for axis in fixed)

    return _mask("axial", sees, _nothing, {})


def radial(
    grid: Grid, *, decay: float = 1.0, block: int = 128, adjacent: int | None = None, sink: bool = True
) -> MaskMod:
    """Radial attention for video: the farther two frames are apart, the narrower the band of tokens they share.

    The first axis of the grid is time; the place in a frame counts the other axes row by row. With `n` tokens a frame
    and `g = bit_length(D)` at a distance of D frames: keys at most `2**bit_length(n) * decay / 2**g` places away, but
    no fewer than `block`; where `2**bit_length(n) / 2**g` falls below `block`, only pairs of frames with
    `D % (block * 2**g // 2**bit_length(n)) == 0`. A frame sees itself whole, and its neighbours up to `adjacent` places
    away (all of them unless given; Wan's models take half a frame). `sink`: every query sees the first frame. This is
    the mask token by token; the released kernels round it to blocks of 128.
    """
    reporter = Reporter()
    tokens = grid.length // grid.sizes[0]
    _demand(reporter, len(grid.axes) > 1, f"`{grid}` has one axis; radial attention needs frames and places in them")
    _demand(reporter, type(block) is int and block >= 1, f"`block` is {block!r}, expected a positive integer")
    _demand(reporter, 0 < decay < float("inf"), f"`decay` is {decay!r}, expected a positive number")
    bad = adjacent is not None and (type(adjacent) is not int or adjacent < 0)
    _demand(reporter, not bad, f"`adjacent` is {adjacent!r}, expected a number of places, at least 0")
    reporter.check()
    bits = tokens.bit_length()
    # In a tuple: what closures hold as numbers would become runtime scalars, and these are structure.
    sizes = (tokens, bits, block, int(2**bits * decay), tokens if adjacent is None else adjacent)

    def sees(q_idx: Any, kv_idx: Any) -> Any:
        return _radial(grid, sizes, sink, q_idx, kv_idx)

    return _mask("radial", sees, _nothing, {})


def _radial(grid: Grid, sizes: tuple[int, ...], sink: bool, q_idx: Any, kv_idx: Any) -> Any:
    tokens, bits, block, reach, adjacent = sizes
    frame = grid.axes[0]
    now, then = getattr(grid(q_idx), frame), getattr(grid(kv_idx), frame)
    frames = abs(now - then)
    group = bit_length(frames)
    width = where(frames == 0, tokens, where(frames == 1, adjacent, maximum(reach >> group, block)))
    kept = frames % maximum((block << group) >> bits, 1) == 0
    near = (abs(q_idx % tokens - kv_idx % tokens) <= width) & kept
    return near | (then == 0) if sink else near


def _near(axis: Axis, window: Any, q: Any, k: Any) -> Any:
    """Whether a key is in a query's window along one axis."""
    length: Any = axis.size
    same: Any = True
    if axis.dilation > 1:
        residue = q % axis.dilation
        same = k % axis.dilation == residue
        length = (length - residue + axis.dilation - 1) // axis.dilation
        q, k = q // axis.dilation, k // axis.dilation
    if axis.causal:
        group_end = minimum(q // axis.stride * axis.stride + axis.stride - 1, length - 1) if axis.stride > 1 else q
        return _all([same, k <= q, k > group_end - window])
    centre = minimum(q // axis.stride * axis.stride + axis.stride // 2, length - 1) if axis.stride > 1 else q
    start = clamp(centre - window // 2, 0, length - window)
    return _all([same, k >= start, k < start + window])


def _window_demands(axis: Axis, window: Any) -> Iterator[Demand]:
    name = f"`window_{axis.name}`"
    yield window >= 1, f"{name} counts keys, at least 1"
    spread = f" at dilation {axis.dilation}" if axis.dilation > 1 else ""
    message = f"{name}{spread} is wider than the {axis.size} places of `{axis.name}`"
    reach = window * axis.dilation if axis.dilation > 1 else window
    yield reach <= axis.size, message
    if axis.stride > 1:
        yield (
            window >= axis.stride,
            f"{name} is smaller than the stride {axis.stride}: queries would not see themselves",
        )


def _window_of(cut: tuple[int, int, int], place: Any, wrap: bool) -> Any:
    """The number of the window a coordinate is in."""
    length, size, shift = cut
    if shift == 0:
        return place // size
    moved = place + (size - shift)
    return moved % length // size if wrap else moved // size


def _tile_of(place: Any, tile: int) -> Any:
    return place // tile if tile > 1 else place


def _all(conditions: Iterable[Any]) -> Any:
    """All of these, the trivial ones left out."""
    some = [condition for condition in conditions if condition is not True]
    return reduce(lambda left, right: left & right, some) if some else True


def _mask(
    name: str, sees: Callable[..., Any], demands: Callable[..., Iterable[Demand]], parameters: dict[str, int]
) -> MaskMod:
    """A mask with these runtime scalars: what they must keep is checked now and, where they are symbols, at calls."""
    reporter = Reporter()
    for holds, message in demands(**parameters):
        _demand(reporter, holds, message)
    reporter.check()

    def mask(q_idx: Symbol, kv_idx: Symbol, **scalars: Any) -> Any:
        for holds, message in demands(**scalars):
            require(holds, message)
        return sees(q_idx, kv_idx, **scalars)

    mask.__name__ = name
    return MaskMod(Stage.MASK, mask, Signature(PAIR, parameters))


def _nothing() -> Iterable[Demand]:
    return ()


def _demand(reporter: Reporter, holds: bool, message: str) -> None:
    if not holds:
        reporter.error("grid-mask", message)


def _named(word: str, grid: Grid, values: Sequence[int]) -> dict[str, int]:
    return {f"{word}_{axis}": value for axis, value in zip(grid.axes, values, strict=True)}


def _per_axis(grid: Grid, word: str, given: Any, kind: type, reporter: Reporter) -> tuple[Any, ...]:
    """One value for each axis."""
    if type(given) is kind:
        return (given,) * len(grid.axes)
    wanted = "a bool" if kind is bool else "an integer"
    if not isinstance(given, list | tuple) or any(type(value) is not kind for value in given):
        reporter.error("grid-mask", f"`{word}` is {given!r}, expected {wanted}, or one for each axis of `{grid}`")
    elif len(given) != len(grid.axes):
        reporter.error("grid-mask", f"`{word}` has {len(given)} values for the {len(grid.axes)} axes of `{grid}`")
    else:
        return tuple(given)
    return (kind(1),) * len(grid.axes)
