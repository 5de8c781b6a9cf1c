"""A driving scene in several views: tokens of one row attend across the views, what they find is brought to the mean
and spread of what they had, and then control and scene read each other."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped


@ad.mask_mod
def same_row(q_idx, kv_idx, *, views: int, rows: int, columns: int):
    ad.require((views >= 1) & (rows >= 1) & (columns >= 1), "`views`, `rows` and `columns` count, at least 1 each")
    frame = q_idx // (views * rows * columns) == kv_idx // (views * rows * columns)
    return frame & (q_idx // columns % rows == kv_idx // columns % rows)


across_views = ad.attention(mask_mod=same_row, name="genie_drive_nmva")
reading = ad.attention(name="genie_drive_mca")


def inputs(size: Size, draw: Draw) -> Inputs:
    views, rows = 3, 4
    columns = max(1, size.length // (views * rows * 2))
    scene = Size(size.batch, size.heads, 2 * views * rows * columns, size.head_dim)
    controls = draw.normal(size.batch, size.heads, 9, size.head_dim)
    x = draw.normal(size.batch, size.heads, scene.length, size.head_dim)
    return {**draw.qkv(scene), "x": x, "controls": controls, "views": views, "rows": rows, "columns": columns}


def run(
    q: Tensor, k: Tensor, v: Tensor, x: Tensor, controls: Tensor, views: int, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised multi-view attention, then mutual control attention: controls read the scene, the scene the controls.

    Moments are over the tokens and channels of one frame's row.
    """
    shaped("x", x, *q.shape)
    shaped("controls", controls, *x.shape[:2], controls.shape[2], x.shape[-1])
    whole = min(views, rows, columns) >= 1 and x.shape[2] % (views * rows * columns) == 0
    ad.require(whole, "`views`, `rows` and `columns` do not divide the tokens into frames")
    y = across_views.bind(views=views, rows=rows, columns=columns)(q, k, v)
    shape = (-1, views, rows, columns)
    grid, own = y.unflatten(2, shape), x.unflatten(2, shape)
    over = (1, 3, 5, 6)
    spread, mean = torch.std_mean(grid, over, unbiased=False, keepdim=True)
    own_spread, own_mean = torch.std_mean(own, over, unbiased=False, keepdim=True)
    mixed = x + 0.2 * ((grid - mean) * own_spread / spread + own_mean).flatten(2, 5)
    told = reading(controls, mixed, mixed)
    return mixed, told, reading(mixed, told, told)


def formula(
    q: Tensor, k: Tensor, v: Tensor, x: Tensor, controls: Tensor, views: int, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x + 0.2 ((y - mean y) std x / std y + mean x), y the attention among the (view, column) of one (time, row)."""
    token = torch.arange(x.shape[2], device=x.device)
    group = token // (views * rows * columns) * rows + token // columns % rows
    live = group[:, None] == group
    scale = q.shape[-1] ** -0.5
    y = (q @ k.mT * scale).masked_fill(~live, -torch.inf).softmax(-1) @ v
    mixed = torch.zeros_like(x)
    for number in range(int(group[-1]) + 1):
        inside = (group == number)[:, None]
        mine, other = x[:, :, group == number], y[:, :, group == number]
        variances = (each.flatten(1).var(1, unbiased=False)[:, None, None, None] for each in (mine, other))
        ratio = next(variances).sqrt() / next(variances).sqrt()
        normal = (y - other.mean((1, 2, 3), keepdim=True)) * ratio + mine.mean((1, 2, 3), keepdim=True)
        mixed = mixed + torch.where(inside, x + 0.2 * normal, 0.0)
    told = (controls @ mixed.mT * scale).softmax(-1) @ mixed
    return mixed, told, (mixed @ told.mT * scale).softmax(-1) @ told


ENTRY = Entry(
    systems=("GenieDrive (NMVA, MCA)",),
    paper="GenieDrive: Towards Physics-Aware Driving World Model with 4D Occupancy Guided Video Generation",
    year=2025,
    conventions="Tokens by time, view, row, column. Results: multi-view attention added to its input, the controls "
    "after reading the scene, the scene after reading them. Moments are taken with all heads' channels together.",
    pitfall="The normalisation needs moments of the attention's whole output: it is no part of the kernel.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "views": 0,
        "rows": 5,
        "columns": 0,
        "x": torch.zeros(2, 4, 95, 32),
        "controls": torch.zeros(1, 4, 9, 32),
    },
)
