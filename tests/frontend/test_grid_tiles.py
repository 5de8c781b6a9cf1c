"""Grids that keep tokens in tiles: the same order from both front ends, printed, parsed back, refused with reasons."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import attndsl as ad
from attndsl.diagnostics import ProgramError
from attndsl.frontend.parse import parse
from attndsl.frontend.tracing import trace
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.order import GridOrder
from attndsl.ir.printer import print_variant
from attndsl.passes.pipeline import run_passes

ORDER = GridOrder((4, 6), (2, 3))
TEXT = "attention near(g: int = 2) { grid k(y = 4, x = 6) tile (2, 3) mask abs(k(q_idx).x - k(kv_idx).x) < g }"


def near(grid: ad.Grid) -> Any:
    @ad.mask_mod
    def near(q_idx, kv_idx, *, g):  # type: ignore[no-untyped-def]
        return abs(grid(q_idx).x - grid(kv_idx).x) < g

    return near(g=2)


def test_both_front_ends_make_the_same_program() -> None:
    traced, (written,) = trace(mask_mod=near(ad.grid(y=4, x=6, tile=(2, 3)))).variant, parse(TEXT)
    assert traced.order == written.order == ORDER
    assert traced.roots == written.roots
    assert traced.demands == written.demands
    assert fingerprint(run_passes(traced)) == fingerprint(run_passes(written))


def test_an_order_prints_and_parses_back() -> None:
    (variant,) = parse(TEXT)
    text = print_variant(variant)
    assert "grid        gg(y = 4, x = 6) tile (2, 3)\n" in text, "`g` is a parameter"
    (again,) = parse(text)
    assert again == variant
    assert print_variant(again) == text
    subject = ad.attention(mask_mod=near(ad.grid(y=4, x=6, tile=(2, 3))))
    assert pickle.loads(pickle.dumps(subject)).variant == subject.variant
    assert ad.parse(subject.text).near.fingerprint == subject.fingerprint


@pytest.mark.parametrize("sizes", [(4,), (2, 4), (2, 4, 6), (2, 2, 4, 6)])
def test_orders_of_every_rank_print(sizes: tuple[int, ...]) -> None:
    (variant,) = parse("attention a { mask kv_idx <= q_idx }")
    ordered = replace(variant, order=GridOrder(sizes, (2,) * len(sizes)))
    (again,) = parse(print_variant(ordered))
    assert again.order == (ordered.order if len(sizes) > 1 else None), "a line stays as it is"


def test_an_order_tells_programs_and_kernels_apart() -> None:
    (variant,) = parse(TEXT)
    (bare,) = parse(TEXT.replace("tile (2, 3)", ""))
    (other,) = parse(TEXT.replace("tile (2, 3)", "tile (2, 2)"))
    assert len({fingerprint(variant), fingerprint(bare), fingerprint(other)}) == 3
    assert variant != bare
    assert bare != other
    assert replace(variant, order=None) == bare
    assert len({ad.parse(text).near.fingerprint for text in (TEXT, TEXT.replace("tile (2, 3)", ""))}) == 2


def test_dense_programs_differ_by_their_order_too() -> None:
    bare, ordered = "attention a { }", "attention a { grid g(y = 4, x = 6) tile (2, 3) }"
    assert ad.parse(bare).a.fingerprint != ad.parse(ordered).a.fingerprint


@pytest.mark.parametrize("tile", [(4, 6), (1, 6), (2, 6), (1, 2), (1, 1)])
def test_tiles_that_move_nothing_are_no_order(tile: tuple[int, int]) -> None:
    (variant,) = parse(TEXT.replace("(2, 3)", str(tile)))
    assert variant.order is None
    assert trace(mask_mod=near(ad.grid(y=4, x=6, tile=tile))).variant.order is None


def test_one_order_may_be_given_twice() -> None:
    first, second = ad.grid(y=4, x=6, tile=(2, 3)), ad.grid(row=4, column=6, tile=[2, 3])
    subject = ad.attention(mask_mod=lambda q_idx, kv_idx: first(q_idx).x == second(kv_idx).column)
    assert subject.variant.order == ORDER


def test_coordinates_of_numbers_are_row_major() -> None:
    grid = ad.grid(y=4, x=6, tile=(2, 3))
    assert list(grid(7)) == [1, 1]
    assert torch.equal(grid(torch.arange(24)).x, torch.arange(24) % 6)


def test_tile_stays_free_as_a_name() -> None:
    (variant,) = parse("attention a(tile: int) { grid g(tile = 4, x = 6) tile (2, 3) mask g(q_idx).tile < tile }")
    assert variant.order == ORDER


def test_two_orders() -> None:
    first, second = ad.grid(y=4, x=6, tile=(2, 3)), ad.grid(y=4, x=6, tile=(2, 2))
    with pytest.raises(ProgramError, match="kept in tiles of 2 x 2 on a grid of 4 x 6, and in tiles of 2 x 3"):
        ad.attention(mask_mod=lambda q_idx, kv_idx: (first(q_idx).x == second(kv_idx).x) & (second(q_idx).y == 1))


WRONG: dict[str, Any] = {
    "rank": (2, 3, 4),
    "number": 8,
    "text": "ab",
    "zero": (0, -3),
    "kinds": (2.0, True),
    "divisors": (3, 4),
    "none": (),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tiles(name: str, golden: Callable[..., None]) -> None:
    with pytest.raises(ProgramError) as caught:
        ad.grid(y=4, x=6, tile=WRONG[name])
    assert {diagnostic.code for diagnostic in caught.value.diagnostics} == {"grid-tile"}
    golden(str(caught.value), "diagnostics", name=f"python-grid-tile-{name}")
