"""The arithmetic of tile-major order, against tokens moved one by one."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch

from attndsl.dense import Env, evaluate
from attndsl.ir import build
from attndsl.ir.ops import Op
from attndsl.ir.order import GridOrder

ORDERS = [
    GridOrder((6, 8), (2, 4)),
    GridOrder((6, 8), (3, 1)),
    GridOrder((6, 8), (6, 2)),
    GridOrder((5, 4), (5, 4)),
    GridOrder((6, 8), (1, 4)),
    GridOrder((6, 8), (2, 8)),
    GridOrder((9,), (3,)),
    GridOrder((4, 6, 10), (2, 3, 5)),
    GridOrder((4, 6, 10), (1, 3, 5)),
    GridOrder((4, 6, 10), (4, 2, 10)),
    GridOrder((4, 1, 6), (2, 1, 3)),
    GridOrder((2, 4, 6, 2), (2, 2, 3, 1)),
]

EACH = pytest.mark.parametrize("order", ORDERS, ids=str)


def originals(order: GridOrder) -> list[int]:
    """The row-major position of every token in storage: tile after tile, token after token."""
    row_major = {place: number for number, place in enumerate(product(*map(range, order.sizes)))}
    return [
        row_major[tuple(a * side + b for a, b, side in zip(tile, within, order.tile, strict=True))]
        for tile in product(*map(range, order.counts))
        for within in product(*map(range, order.tile))
    ]


@EACH
def test_positions_in_storage(order: GridOrder) -> None:
    stored = order.stored(build.Q)
    env = Env({build.Q: torch.arange(order.length)}, {}, torch.float64)
    assert evaluate(stored[build.Q], env).tolist() == originals(order)


@EACH
def test_coordinates_are_those_of_the_original_position(order: GridOrder) -> None:
    storage = Env({build.Q: torch.arange(order.length)}, {}, torch.float64)
    row_major = Env({build.Q: torch.tensor(originals(order))}, {}, torch.float64)
    stored = order.stored(build.Q)
    assert len(stored) > 1 or len(order.sizes) == 1
    for written, instead in stored.items():
        assert torch.equal(evaluate(instead, storage), evaluate(written, row_major)), written


@EACH
def test_an_order_moves_tokens_or_says_it_does_not(order: GridOrder) -> None:
    assert order.moves == (originals(order) != list(range(order.length)))


def test_coordinates_are_recognised_as_grids_write_them() -> None:
    stored = GridOrder((4, 6, 10), (2, 3, 5)).stored(build.K)
    column = build.apply(Op.MOD, build.K, build.integer(10))
    row = build.apply(Op.MOD, build.apply(Op.FLOORDIV, build.K, build.integer(10)), build.integer(6))
    frame = build.apply(Op.FLOORDIV, build.K, build.integer(60))
    assert stored.keys() == {build.K, column, row, frame}


def test_what_it_asks_of_calls_is_about_all_tokens() -> None:
    order = ORDERS[0]
    assert order.length == prod(order.sizes) == 48
    assert len({requirement.condition for requirement in order.requirements}) == 3
