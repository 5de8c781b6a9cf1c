"""Pictures of plans, in text and as images: every cell is what its tiles are."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image
from strategies import Case, mask_cases

import attndsl as ad
from attndsl.passes.pipeline import run_passes
from attndsl.runtime import plot
from attndsl.runtime.picture import MARKS, cells, draw, pictures
from attndsl.runtime.planner import BlockPlan, plan_blocks

CAUSAL = ad.attention(mask_mod=ad.masks.causal())
WINDOW = ad.attention(mask_mod=ad.masks.sliding_window(window=70))
WINDOWS = torch.tensor([100, 400, 100, 2000])


@ad.mask_mod
def window_by_head(h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (kv_idx <= q_idx) & (q_idx - kv_idx < WINDOWS[h])


BY_HEAD = ad.attention(mask_mod=window_by_head)


def drawn(plan: BlockPlan) -> list[str]:
    """The marks of a picture, without what stands beside them."""
    marks = [line.split(" ")[-1] for line in draw(plan.tiles, plan.tiling)]
    return [line for line in marks if line and set(line) <= set(MARKS.values())]


# Cells.


@settings(max_examples=80, deadline=None)
@given(mask_cases(), st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_cells_are_what_their_tiles_are(case: Case, limit: tuple[int, int]) -> None:
    plan = plan_blocks(
        run_passes(case.variant),
        case.values,
        case.q_len,
        case.kv_len,
        batch=case.batch,
        heads=case.q_heads,
        block=(8, 16),
        q_offset=case.q_offset,
    )
    matrix = plan.tiles.matrix()
    batch, heads, rows, columns = matrix.shape
    for pair in range(batch * heads):
        found = cells(plan.tiles, pair, limit)
        assert all(size <= most for size, most in zip(found.shape, limit, strict=True))
        tall, wide = (-(-size // most) for size, most in zip((rows, columns), limit, strict=True))
        for row, column in np.ndindex(found.shape):
            part = matrix[
                pair // heads, pair % heads, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide
            ]
            same = np.unique(part)
            assert found[row, column] == (same[0] if same.size == 1 else 1)


def test_a_picture_of_a_million_tokens_needs_no_matrix() -> None:
    plan = CAUSAL.plan(2**22)
    with pytest.raises(ad.DiagnosticError, match="too-many-tiles"):
        plan.classes()
    lines = drawn(plan)
    assert len(lines) == 32
    assert lines[31] == "█" * 62 + "▒▒"
    assert lines[0] == "▒▒" + "·" * 62


def test_heads_that_look_alike_share_a_picture() -> None:
    found = list(pictures(BY_HEAD.plan(1024, heads=4).tiles, (16, 16)))
    assert [picture.pairs for picture in found] == [((0, 0), (0, 2)), ((0, 1),), ((0, 3),)]


# Text.


def test_marks() -> None:
    assert drawn(WINDOW.plan(320, block=(64, 64))) == [
        "▒▒········",
        "▒▒▒▒······",
        "▒▒▒▒▒▒····",
        "··▒▒▒▒▒▒··",
        "····▒▒▒▒▒▒",
    ]


@pytest.mark.parametrize("length", [128, 1000, 5000, 20_000, 300_000])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_picture_fits_a_terminal(length: int, heads: int) -> None:
    lines = str(BY_HEAD.plan(length, heads=heads)).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 6 + (35 if heads == 1 else 19 * heads)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(CAUSAL.plan(1000), id="causal"),
        pytest.param(CAUSAL.plan(300, 700, block=(64, 32), q_offset=400), id="more-keys-than-queries"),
        pytest.param(WINDOW.bind(window=600).plan(16384), id="long-window"),
        pytest.param(BY_HEAD.plan(1024, heads=4), id="heads"),
        pytest.param(CAUSAL.plan(256, batch=3, q_offset=torch.tensor([0, 256, 0])), id="batches"),
        pytest.param(
            ad.attention(mask_mod=ad.masks.neighborhood(ad.grid(y=48, x=48), 9)).plan(2304, block=(64, 64)),
            id="neighborhood",
        ),
    ],
)
def test_text(plan: BlockPlan, golden: Callable[..., None]) -> None:
    golden(str(plan), "pictures")


def test_more_pictures_than_are_shown() -> None:
    attn = ad.attention(mask_mod=lambda b, h, q_idx, kv_idx: kv_idx <= 40 * h)
    lines = str(attn.plan(256, heads=80, block=(16, 16))).splitlines()
    assert sum(line.startswith("head") for line in lines) == 4
    assert "of 80 batches and heads the first 64 were looked at" in lines
    assert lines[-1].endswith("more differ from these")


# Images.


def colour_at(pixels: Any, share: tuple[float, float]) -> str:
    """Which class the pixel at a share of the height and of the width is coloured as."""
    found = pixels[int(share[0] * pixels.shape[0]), int(share[1] * pixels.shape[1]), :3]
    known = {name: [int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)] for name, code in plot.COLORS.items()}
    return min(known, key=lambda name: float(abs(found - np.array(known[name])).sum()))


def test_an_image_has_the_colours_of_its_tiles(tmp_path: Path) -> None:
    path = tmp_path / "causal.png"
    CAUSAL.plan(512).plot(path)
    pixels = image.imread(path)
    assert min(pixels.shape[:2]) > 400
    assert colour_at(pixels, (0.30, 0.80)) == "empty"
    assert colour_at(pixels, (0.75, 0.25)) == "full"


def test_panels_titles_and_axes() -> None:
    figure = plot.figure_of(BY_HEAD.plan(1000, heads=4, block=(64, 64)))
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["heads 0, 2", "head 1", "head 3"]
    for panel in figure.axes:
        assert panel.get_xlim() == (0, 1000)
        assert panel.get_ylim() == (1000, 0)
        assert list(panel.get_xticks()) == [0, 256, 512, 768]
        assert panel.get_xlabel() == "key"
    assert figure.axes[0].get_ylabel() == "query"
    assert "68.2% skipped" in figure.get_suptitle()
    legend = [entry.get_text() for entry in figure.legends[0].get_texts()]
    counts = BY_HEAD.plan(1000, heads=4, block=(64, 64)).counts
    assert legend == [f"{name} ({counts[name]})" for name in ("full", "partial", "empty")]


def test_a_last_tile_is_drawn_as_short_as_it_is() -> None:
    (panel,) = plot.figure_of(CAUSAL.plan(200, 300)).axes
    corners = panel.collections[0].get_coordinates()
    assert corners[0, :, 0].tolist() == [0, 128, 256, 300]
    assert corners[:, 0, 1].tolist() == [0, 128, 200]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan{suffix}"
    CAUSAL.plan(256).plot(str(path))
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix.lower()]
    assert path.read_bytes().startswith(start)


def test_no_global_state_of_matplotlib_is_touched(tmp_path: Path) -> None:
    CAUSAL.plan(256).plot(tmp_path / "plan.png")
    assert "matplotlib.pyplot" not in sys.modules


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *args: Any, **how: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return original(name, *args, **how)

    monkeypatch.setattr(builtins, "__import__", missing)


@pytest.mark.parametrize("mistake", ["image-extra", "image-format", "image-of-nothing"])
def test_mistakes(mistake: str, monkeypatch: pytest.MonkeyPatch, golden: Callable[..., None]) -> None:
    if mistake == "image-extra":
        without_matplotlib(monkeypatch)
    path = "plan.jpeg2" if mistake == "image-format" else "plan.png"
    with pytest.raises(ad.DiagnosticError) as raised:
        CAUSAL.plan(0 if mistake == "image-of-nothing" else 256).plot(path)
    golden(str(raised.value), "diagnostics")
