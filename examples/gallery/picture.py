"""Pictures of masks as SVG: what a query sees, over the tiles of the plan.

In: a recorded call. Out: text, the same for the same call. Queries downwards, keys to the right; dark is a live pair,
light blue a tile that is walked with the mask, darker blue one that needs none, white one that is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attndsl.reference import live_pairs
from examples.gallery.recorded import Recorded

BLOCK = 16
SCALE = 2
GAP = 8
SHOWN = 4
"""Heads that look different, side by side."""
TILES = {1: "#d6e6f5", 2: "#9cc3e6"}
LIVE = "#1f3b57"


def picture(call: Recorded) -> str:
    """The mask of a call and its plan; of several heads and batches, the first that differ."""
    where = call.shape
    live = live_pairs(call.attention.variant, call.attention._values(), **where)
    classes = call.attention.plan(**where, block=(BLOCK, BLOCK)).classes()
    live, classes = live.flatten(0, 1), classes.expand(*live.shape[:2], -1, -1).flatten(0, 1)
    chosen = _different(live)
    rows, columns = live.shape[-2:]
    width = len(chosen) * columns + (len(chosen) - 1) * GAP
    panels = "".join(
        f'<g transform="translate({place * (columns + GAP)})">{_panel(live[one], classes[one])}</g>'
        for place, one in enumerate(chosen)
    )
    size = f'width="{width * SCALE}" height="{rows * SCALE}" viewBox="0 0 {width} {rows}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} shape-rendering="crispEdges">{panels}</svg>\n'


def _different(live: Tensor) -> list[int]:
    """The first few masks of which no two are alike."""
    chosen: list[int] = []
    for one in range(len(live)):
        if len(chosen) < SHOWN and not any(torch.equal(live[one], live[other]) for other in chosen):
            chosen.append(one)
    return chosen


def _panel(live: Tensor, classes: Tensor) -> str:
    rows, columns = live.shape
    frame = f'<rect width="{columns}" height="{rows}" fill="#fff"/>'
    tiles = "".join(_path(classes == kind, colour, BLOCK, live.shape) for kind, colour in TILES.items())
    return f"{frame}{tiles}{_path(live, LIVE, 1, live.shape, opacity=0.55)}"


def _path(cells: Tensor, colour: str, side: int, bounds: torch.Size, opacity: float = 1.0) -> str:
    """All cells of one colour as one path, each `side` wide and none beyond the bounds."""
    rows, columns = bounds
    drawn = "".join(
        f"M{left * side} {top * side}H{min(right * side, columns)}V{min(bottom * side, rows)}H{left * side}z"
        for top, bottom, left, right in _boxes(cells)
    )
    shade = f' fill-opacity="{opacity}"' if opacity < 1 else ""
    return f'<path fill="{colour}"{shade} d="{drawn}"/>' if drawn else ""


def _boxes(cells: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """Rectangles that cover the cells that hold: runs of a row, those of equal rows below one another as one."""
    top, before = 0, [*_runs(cells[0])] if len(cells) else []
    for row in range(1, len(cells) + 1):
        now = [*_runs(cells[row])] if row < len(cells) else []
        if now != before:
            yield from ((top, row, left, right) for left, right in before)
            top, before = row, now


def _runs(row: Tensor) -> Iterator[tuple[int, int]]:
    """Where stretches of true begin and end."""
    edges = torch.diff(row.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().flatten().tolist()
    yield from zip(edges[::2], edges[1::2], strict=True)
