"""Cuts at the starts of rows and cells: they lose nothing, and tiles looked at piece by piece are never wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attndsl.analysis.periods import Period, Ramp, cut, periods_of
from attndsl.frontend.parse import parse
from attndsl.ir.types import Coordinate
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import live_pairs
from attndsl.runtime.planner import plan_blocks

SMALL = st.integers(1, 9)


def program(mask: str) -> Variant:
    return run_passes(parse(f"attention a() {{ mask {mask} }}")[0])


def periods(mask: str) -> dict[Coordinate, tuple[Period, ...]]:
    return periods_of(program(mask).mask)


@given(
    stretches=st.lists(st.tuples(st.integers(-50, 200), st.integers(0, 90)), min_size=1, max_size=5),
    ramps=st.lists(
        st.builds(Ramp, st.just(Coordinate.Q_IDX), SMALL, st.integers(-9, 9), st.integers(0, 40), st.integers(-9, 9)),
        max_size=3,
    ),
    lengths=st.lists(st.tuples(SMALL, st.booleans()), min_size=3, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_pieces_make_up_the_stretch(
    stretches: list[tuple[int, int]], ramps: list[Ramp], lengths: list[tuple[int, bool]]
) -> None:
    cuts = tuple(ramp.period(length, every) for ramp, (length, every) in zip(ramps, lengths, strict=False))
    first = np.array([start for start, _ in stretches])
    last = first + [size for _, size in stretches]
    lo, hi, owner = cut(first, last, np.arange(len(first)), cuts)
    for index, (start, end) in enumerate(zip(first, last, strict=True)):
        pieces = sorted(zip(lo[owner == index].tolist(), hi[owner == index].tolist(), strict=True))
        positions = [position for a, b in pieces for position in range(a, b + 1)]
        assert positions == list(range(start, end + 1))


def test_a_stretch_is_cut_where_rows_begin_and_cells_relative_to_them() -> None:
    # Rows of 10 with cells of 4: 0..3, 4..7, 8..9 in each row.
    rows = periods("q_idx // 10 == 0 and q_idx % 10 // 4 == kv_idx % 3")[Coordinate.Q_IDX]
    lo, hi, _ = cut(np.array([6]), np.array([15]), np.array([0]), rows)
    assert sorted(zip(lo.tolist(), hi.tolist(), strict=True)) == [(6, 7), (8, 9), (10, 13), (14, 15)]


def test_dilated_rows_are_told_apart() -> None:
    dilated = "q_idx // 10 % 3 == kv_idx // 10 % 3 and (q_idx // 10 // 3) % 2 == (kv_idx // 10 // 3) % 2"
    lo, hi, _ = cut(np.array([10]), np.array([39]), np.array([0]), periods(dilated)[Coordinate.Q_IDX])
    assert sorted(zip(lo.tolist(), hi.tolist(), strict=True)) == [(10, 19), (20, 29), (30, 39)]


def test_masks_without_quotients_have_no_periods() -> None:
    assert periods("kv_idx <= q_idx and (q_idx - kv_idx) % 3 == 0") == {}


@st.composite
def places(draw: st.DrawFn, coordinate: str) -> str:
    """An expression of one coordinate as grids, windows and dilations make them."""
    text = f"({coordinate} + {draw(st.integers(-5, 5))})"
    for _ in range(draw(st.integers(1, 3))):
        text = f"({text} {draw(st.sampled_from(['//', '%']))} {draw(st.integers(1, 12))} + {draw(st.integers(-2, 2))})"
    return text


@st.composite
def conditions(draw: st.DrawFn) -> str:
    left, right = draw(places("q_idx")), draw(places("kv_idx"))
    width = draw(st.integers(0, 5))
    return draw(
        st.sampled_from(
            [
                f"abs({left} - {right}) <= {width}",
                f"{left} == {right}",
                f"{right} >= clamp({left} - {width}, 0, 7)",
                f"({left} - {right}) % {width + 1} == 0",
                f"bit_length({left} ^ {right}) <= {width}",
            ]
        )
    )


@given(
    terms=st.lists(conditions(), min_size=1, max_size=3),
    joint=st.sampled_from([" and ", " or "]),
    lengths=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    block=st.sampled_from([(16, 16), (64, 32), (16, 64), (128, 128)]),
    offset=st.sampled_from([0, 7, -3]),
)
@settings(max_examples=300, deadline=None)
def test_no_tile_is_wrong(
    terms: list[str], joint: str, lengths: tuple[int, int], block: tuple[int, int], offset: int
) -> None:
    variant = program(joint.join(f"({term})" for term in terms))
    live = live_pairs(variant, {}, batch=1, heads=1, q_len=lengths[0], kv_len=lengths[1], q_offset=offset)[0, 0]
    found = plan_blocks(variant, {}, *lengths, block=block, q_offset=offset).classes()[0, 0]
    for row, stretch in enumerate(torch.split(live, block[0])):
        for column, tile in enumerate(torch.split(stretch, block[1], dim=1)):
            assert found[row, column] != 0 or not tile.any()
            assert found[row, column] != 2 or tile.all()


def test_offsets_by_batch_cut_each_batch_in_its_own_places() -> None:
    variant = program("q_idx // 10 == kv_idx // 10 and abs(q_idx % 10 - kv_idx % 10) <= 1")
    offsets = torch.tensor([0, 13])
    plan = plan_blocks(variant, {}, 60, 80, batch=2, block=(16, 16), q_offset=offsets)
    exact = plan_blocks(variant, {}, 60, 80, batch=2, block=(16, 16), q_offset=offsets, exact=True)
    assert torch.equal(plan.classes(), exact.classes())


@pytest.mark.parametrize("block", [(64, 64), (128, 128), (64, 128)])
def test_product_of_rows_and_columns_is_exact(block: tuple[int, int]) -> None:
    """Without cuts a tile that straddles two rows counts as all of both."""
    variant = program("abs(q_idx // 200 - kv_idx // 200) <= 3 and abs(q_idx % 200 - kv_idx % 200) <= 6")
    plan = plan_blocks(variant, {}, 2400, 2400, block=block)
    exact = plan_blocks(variant, {}, 2400, 2400, block=block, exact=True)
    assert torch.equal(plan.classes(), exact.classes())
    assert plan.counts["empty"] > 0.5 * sum(plan.counts.values())
