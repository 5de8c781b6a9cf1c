"""A plan as an image: a small multiple for every batch and head that differs, tokens along the axes.

In: a `BlockPlan` and a path. Out: a file, in the format its suffix names. Needs matplotlib, the extra `plot`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attndsl.diagnostics import CallError, fail
from attndsl.runtime.picture import Picture, pictures

if TYPE_CHECKING:
    from attndsl.runtime.planner import BlockPlan

CELLS = (512, 512)
"""More tiles than that share cells."""
COLORS = {"empty": "#f1f3f5", "partial": "#f0a35e", "full": "#2f5d8a"}
GRID = "#ffffff"
INK = "#343a40"
EDGE = {"edgecolor": "#adb5bd", "linewidth": 0.5}
MAX_PANELS = 16
COLUMNS = 4
FORMATS = (".png", ".svg", ".pdf")
FEW_CELLS = 40
"""Up to this many on a side, cells are told apart by lines."""


def plot(plan: BlockPlan, path: Path) -> None:
    """Write the picture of a plan to a file."""
    if path.suffix.lower() not in FORMATS:
        formats = ", ".join(f"`{suffix}`" for suffix in FORMATS)
        message = f"`{path}` does not say in which format to draw"
        raise fail(CallError, "unknown-image-format", message, None, help=f"end the name in one of {formats}")
    figure_of(plan).savefig(path, bbox_inches="tight")


def figure_of(plan: BlockPlan) -> Any:
    """The matplotlib figure of a plan, on no display."""
    figure_type, patch_type = _matplotlib()
    found = [] if 0 in plan.tiles.shape else list(pictures(plan.tiles, CELLS))
    if not found:
        raise fail(CallError, "nothing-to-draw", "a plan without tiles has no picture", None)
    shown = found[:MAX_PANELS]
    figure, panels = _panels(figure_type, plan, len(shown))
    for panel, picture in zip(panels, shown, strict=True):
        _draw(panel, plan, picture)
    figure.suptitle(_title(plan, len(found)), fontsize=10, color=INK)
    patches = [
        patch_type(facecolor=COLORS[name], label=_label(plan, name), **EDGE) for name in ("full", "partial", "empty")
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _panels(figure_type: Any, plan: BlockPlan, count: int) -> tuple[Any, list[Any]]:
    """A figure with room for so many pictures, axes named at its left and its lower edge."""
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    width = 4.6 if count == 1 else 2.9
    height = width * min(max(plan.tiling.q_len / plan.tiling.kv_len, 0.4), 2.5) + 0.3
    figure = figure_type(figsize=(max(width * columns, 4.6), height * rows + 0.8), dpi=160, facecolor="white")
    figure.set_layout_engine("constrained", hspace=0.08, h_pad=0.08)
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for panel in panels[count:]:
        panel.set_axis_off()
    for panel in panels[:count:columns]:
        panel.set_ylabel("query", color=INK, fontsize=9)
    for panel in panels[max(0, count - columns) : count]:
        panel.set_xlabel("key", color=INK, fontsize=9)
    return figure, panels[:count]


def _matplotlib() -> tuple[Any, Any]:
    """The classes that are drawn with, and no global state of pyplot."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ModuleNotFoundError as error:
        message = f"drawing a plan needs `{error.name}`, which is not installed"
        raise fail(CallError, "extra-missing", message, None, help="pip install 'attndsl[plot]'") from error
    return Figure, Patch


def _draw(panel: Any, plan: BlockPlan, picture: Picture) -> None:
    """One panel, its axes in tokens; a last tile is drawn as short as it is."""
    from matplotlib.colors import ListedColormap

    (block_q, block_kv), tiling = plan.tiling.block, plan.tiling
    edges = [
        [min(int(at) * size, length) for at in each]
        for each, size, length in zip(picture.edges, (block_q, block_kv), (tiling.q_len, tiling.kv_len), strict=True)
    ]
    lines = {"edgecolors": GRID, "linewidth": 0.35} if max(picture.cells.shape) <= FEW_CELLS else {}
    colours = ListedColormap(list(COLORS.values()))
    panel.pcolormesh(edges[1], edges[0], picture.cells, cmap=colours, vmin=0, vmax=2, rasterized=True, **lines)
    panel.set(xlim=(0, tiling.kv_len), ylim=(tiling.q_len, 0), aspect="equal")
    panel.set_xticks(_ticks(tiling.kv_len, block_kv))
    panel.set_yticks(_ticks(tiling.q_len, block_q))
    panel.tick_params(labelsize=8, colors=INK, length=2)
    panel.spines[:].set_color("#adb5bd")
    title = picture.title(plan.tiles.shape)
    if title:
        panel.set_title(title, fontsize=9, color=INK)


def _ticks(length: int, size: int) -> list[int]:
    """About four steps of whole tiles."""
    tiles = -(-length // size)
    step = 1 << max(0, math.ceil(math.log2(tiles / 4.5)))
    return list(range(0, length + 1, step * size))


def _title(plan: BlockPlan, pictures: int) -> str:
    tiling = plan.tiling
    size = f"{tiling.q_len} x {tiling.kv_len} tokens, tiles of {tiling.block[0]} x {tiling.block[1]}"
    more = "" if pictures <= MAX_PANELS else f"; {pictures - MAX_PANELS} more heads differ"
    return f"{plan.variant.name}: {size}\n{plan.strategy}, {plan.sparsity:.1%} skipped{more}"


def _label(plan: BlockPlan, name: str) -> str:
    return f"{name} ({plan.counts[name]})"
