"""Every mask of the library is planned exactly without looking at pairs, at every tile size and at ragged lengths.

An analysis that called every tile partial would pass the random tests of soundness; it fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plans import BLOCKS, counted

import attndsl as ad
from attndsl.reference import live_pairs
from attndsl.runtime.order import to_storage

masks = ad.masks


LENGTHS = [(300, 300), (257, 390), (130, 1), (1, 300), (390, 129)]


def ids(length: int, batch: int | None = None) -> torch.Tensor:
    """Packed documents of uneven length."""
    ends = torch.tensor([3, 40, 41, 170, 171, 172, 250])
    one = torch.searchsorted(ends, torch.arange(length), right=True)
    return one if batch is None else torch.stack([one, one.roll(40).sort().values][:batch])


FLAT: dict[str, Callable[[int, int], Any]] = {
    "full": lambda q, k: masks.full,
    "causal": lambda q, k: masks.causal,
    "sliding_window": lambda q, k: masks.sliding_window(window=70),
    "sliding_window of one": lambda q, k: masks.sliding_window(window=1),
    "dilated_window": lambda q, k: masks.dilated_window(window=5, dilation=7),
    "sinks_and_window": lambda q, k: masks.sinks_and_window(sink=4, window=30),
    "sinks_and_window together": lambda q, k: masks.sinks_and_window(sink=4, window=254),
    "chunked": lambda q, k: masks.chunked(chunk=48),
    "prefix_lm": lambda q, k: masks.prefix_lm(prefix=50),
    "prefix_lm by batch": lambda q, k: masks.prefix_lm(prefix=torch.tensor([50, 131])),
    "document": lambda q, k: masks.document(doc=ids(max(q, k))),
    "document by batch": lambda q, k: masks.document(doc=ids(max(q, k), 2)),
    "document, last first": lambda q, k: masks.document(doc=ids(max(q, k)).flip(0).contiguous()),
    "causal document": lambda q, k: masks.causal & masks.document(doc=ids(max(q, k))),
    "padding": lambda q, k: masks.padding(lengths=torch.tensor([77, 300])),
    "band": lambda q, k: masks.band(left=20, right=9),
    "block_causal": lambda q, k: masks.block_causal(block=24, window=3, sink=1),
    "between": lambda q, k: masks.between(first=torch.arange(q) // 2, end=torch.arange(q) // 2 + 30),
    "dilated_sliding_window": lambda q, k: masks.dilated_sliding_window(window=40, dilation=3),
    "chunks_of": lambda q, k: masks.chunks_of(masks.causal, 48),
    "documents_of": lambda q, k: masks.documents_of(
        masks.prefix_lm(prefix=9), torch.tensor([0, 40, 41, 101, max(q, k)])
    ),
    "vision_cross_attention": lambda q, k: masks.vision_cross_attention(
        torch.tensor([[0, 60], [9, 300]]).repeat(4, 1), 50
    ),
    "spatial_head": lambda q, k: masks.spatial_head(prompt=17, reach=40, sink=20),
    "temporal_head": lambda q, k: masks.temporal_head(prompt=17, frame=30, reach=3),
    "outside of a window": lambda q, k: ~masks.sliding_window(window=70),
    "outside of documents": lambda q, k: masks.causal & ~masks.document(doc=ids(max(q, k))),
}


def check(mask: Any, q_len: int, kv_len: int, block: tuple[int, int]) -> torch.Tensor:
    attention = ad.attention(mask_mod=mask)
    plan = attention.plan(q_len, kv_len, batch=2, heads=2, block=block)
    source, values = attention._compilation.source, attention._values()
    live = live_pairs(source, values, batch=2, heads=2, q_len=q_len, kv_len=kv_len)
    if source.order is not None:
        place = to_storage(torch.arange(q_len).view(1, 1, -1, 1), source.order).flatten()
        live = live[..., place, :][..., place]
    found, truth = torch.broadcast_tensors(plan.classes(), counted(live, block))
    wrong = (found != truth).nonzero().tolist()
    assert not wrong, f"{len(wrong)} of {truth.numel()} tiles, the first at {wrong[0]}"
    return truth


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", sorted(FLAT))
def test_masks_over_positions(name: str, lengths: tuple[int, int], block: tuple[int, int]) -> None:
    check(FLAT[name](*lengths), *lengths, block)


CANVAS, VIDEO = ad.grid(y=20, x=33), ad.grid(t=5, y=8, x=12)
SQUARE = ad.grid(y=16, x=16)
ODD, FRAMES = ad.grid(y=19, x=23), ad.grid(t=20, y=2, x=4)
TILED, FILM = ad.grid(y=16, x=24, tile=(4, 4)), ad.grid(t=4, y=8, x=12, tile=(2, 4, 4))
GRIDS: dict[str, tuple[ad.Grid, Any]] = {
    "neighborhood": (CANVAS, masks.neighborhood(CANVAS, window=(5, 7))),
    "neighborhood of even size": (CANVAS, masks.neighborhood(CANVAS, window=(4, 6))),
    "neighborhood with a stride": (CANVAS, masks.neighborhood(CANVAS, window=(6, 6), stride=(2, 3))),
    "dilated neighborhood": (CANVAS, masks.neighborhood(CANVAS, window=(3, 3), dilation=(2, 3))),
    "causal neighborhood": (VIDEO, masks.neighborhood(VIDEO, window=(2, 3, 3), causal=(True, False, False))),
    "box_window": (CANVAS, masks.box_window(CANVAS, radius=2)),
    "shifted_windows": (CANVAS, masks.shifted_windows(CANVAS, window=(5, 11), shift=(2, 5))),
    "shifted_windows around": (CANVAS, masks.shifted_windows(CANVAS, window=(5, 11), shift=(2, 5), wrap=True)),
    "sliding_tiles": (VIDEO, masks.sliding_tiles(VIDEO, tile=(1, 4, 4), window=(3, 1, 1))),
    "axial": (CANVAS, masks.axial(CANVAS, "y")),
    "cross": (CANVAS, masks.axial(CANVAS, "y") | masks.axial(CANVAS, "x")),
    "radial": (VIDEO, masks.radial(VIDEO, block=16)),
    "neighborhood with a dilation and a stride": (ODD, masks.neighborhood(ODD, window=(4, 5), dilation=2, stride=3)),
    "neighborhood, more dilated": (ODD, masks.neighborhood(ODD, window=(4, 5), dilation=3, stride=2)),
    "neighborhood on axes that are no multiple": (ODD, masks.neighborhood(ODD, window=3, dilation=4)),
    "causal neighborhood on such": (ODD, masks.neighborhood(ODD, window=3, dilation=(2, 4), causal=(True, False))),
    "radial, many frames in a tile": (FRAMES, masks.radial(FRAMES, block=16, sink=False)),
    "radial, many narrow frames in a tile": (FRAMES, masks.radial(FRAMES, block=4, decay=0.5, adjacent=3)),
    "shifted_windows in tiles": (TILED, masks.shifted_windows(TILED, window=(8, 6), shift=(2, 3))),
    "shifted_windows around in tiles": (TILED, masks.shifted_windows(TILED, window=(8, 6), shift=(2, 3), wrap=True)),
    "shifted_windows around in tiles, small": (TILED, masks.shifted_windows(TILED, window=4, shift=(1, 2), wrap=True)),
    "dilated neighborhood in tiles": (TILED, masks.neighborhood(TILED, window=5, dilation=3)),
    "radial in tiles": (FILM, masks.radial(FILM, block=4)),
    "morton_neighborhood": (SQUARE, masks.morton_neighborhood(16, 5)),
}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_masks_over_grids(name: str, block: tuple[int, int]) -> None:
    grid, mask = GRIDS[name]
    check(mask, grid.length, grid.length, block)


def test_every_mask_of_the_library_is_here() -> None:
    tested = " ".join((*FLAT, *GRIDS))
    homes = tuple(f"attndsl.library.{name}" for name in ("masks", "grids", "stretches", "z_order"))
    public = [name for name, made in vars(masks).items() if getattr(made, "__module__", "") in homes and name[0] != "_"]
    assert len(public) >= 14
    assert not [name for name in public if name not in tested]
