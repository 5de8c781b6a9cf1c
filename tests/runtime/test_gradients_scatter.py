"""Derivatives gathered into tensors, against adding them one by one in float64; and their bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from attndsl.dense import evaluate_all
from attndsl.frontend.parse import parse
from attndsl.ir.nodes import Load
from attndsl.runtime.arguments import Call
from attndsl.runtime.engine import Chunk, Pieces
from attndsl.runtime.gradients.captures import capture_gradients
from attndsl.runtime.gradients.diagonals import by_distance, tile_diagonals
from attndsl.runtime.gradients.grid import Grid, grid_of
from attndsl.runtime.gradients.scatter import add_elements, indexing
from attndsl.runtime.gradients.sums import by_key, folded

BATCH, HEADS, Q_LEN, KV_LEN = 2, 3, 21, 34
SEGMENTS = torch.tensor([0, 2, 2, 1, 3, 5, 1]).repeat(9)


def load_of(index: str, rank: int) -> Load:
    """The element `t[index]`."""
    params = f"t: tensor[{', '.join(f'D{dim}' for dim in range(rank))}]"
    element = f"t[{index}]" if index else "t"
    text = f"attention a({params}, seg: int tensor[S], m: int = 5) {{ score score + {element} }}"
    return parse(text)[0].loads_of("t")[0]


def call(q_offset: int | Tensor = 0, values: Mapping[str, int | float | Tensor] | None = None) -> Call:
    q, k = torch.zeros(BATCH, HEADS, Q_LEN, 4), torch.zeros(BATCH, 1, KV_LEN, 4)
    return Call(q, k, k, 1.0, q_offset, {"seg": SEGMENTS, "m": 5, **(values or {})})


def one_by_one(sizes: tuple[int, ...], load: Load, derivatives: Tensor, grid: Grid) -> Tensor:
    """Element by element, those outside left out."""
    total = torch.zeros(sizes, dtype=torch.float64)
    if not sizes:
        return derivatives.double().sum()
    indices = [index.expand(grid.sizes).flatten() for index in evaluate_all(load.indices, grid.env)]
    inside = torch.stack([(index >= 0) & (index < size) for index, size in zip(indices, sizes, strict=True)]).all(0)
    places = [index[inside] for index in indices]
    return total.index_put(tuple(places), derivatives.double().flatten()[inside], accumulate=True)


CASES = [
    ("", (), []),
    ("h", (HEADS,), [0]),
    ("h", (HEADS + 4,), [0]),
    ("h, b", (HEADS, BATCH), [0, 1]),
    ("b, h, q_idx, kv_idx", (BATCH, HEADS, 60, KV_LEN), [0, 1, 2, 3]),
    ("kv_idx, h, q_idx", (KV_LEN, HEADS, 40), [0, 1, 2]),
    ("q_idx", (13,), [0]),
    ("kv_idx", (KV_LEN - 3,), [0]),
    ("h // 2", (2,), []),
    ("h, h", (HEADS, HEADS), []),
    ("h, h + b", (HEADS, 9), []),
    ("h, kv_idx, 3", (HEADS, 70, 5), [0, 1]),
    ("seg[q_idx]", (6,), []),
    ("seg[q_idx]", (3,), []),
    ("seg[q_idx], h, seg[kv_idx]", (6, HEADS, 6), [1]),
    ("seg[q_idx], kv_idx", (6, KV_LEN), [1]),
    ("clamp(q_idx - kv_idx, -m, m) + m", (11,), []),
    ("h, q_idx - kv_idx + m", (HEADS, 30), [0]),
    ("q_idx // 3 - kv_idx // 3 + 20, b", (40, BATCH), [1]),
    ("h", (0,), [0]),
    ("seg[kv_idx]", (0,), []),
]


@pytest.mark.parametrize("q_offset", [0, 5, -4, torch.tensor([3, 11])], ids=["0", "5", "-4", "tensor"])
@pytest.mark.parametrize("index, sizes, plain", CASES)
def test_elements(index: str, sizes: tuple[int, ...], plain: list[int], q_offset: int | Tensor) -> None:
    grid = grid_of(call(q_offset), range(Q_LEN), range(6, 6 + 17))
    load = load_of(index, len(sizes))
    derivatives = torch.randn(grid.sizes, generator=torch.Generator().manual_seed(0))
    if isinstance(q_offset, int):
        assert list(indexing(load, grid).plain) == plain
    total = torch.zeros(sizes, dtype=torch.float64)
    add_elements(total, load, derivatives, grid)
    torch.testing.assert_close(total, one_by_one(sizes, load, derivatives, grid), rtol=1e-5, atol=1e-5)
    again = total.clone()
    add_elements(again, load, derivatives, grid)
    assert torch.equal(again, 2 * total), "what is there already is added to"


def test_totals_of_any_strides() -> None:
    load, grid = load_of("h, seg[kv_idx], q_idx", 3), grid_of(call(), range(Q_LEN), range(KV_LEN))
    derivatives = torch.randn(grid.sizes)
    sizes = (HEADS, 6, Q_LEN)
    strided = torch.zeros(Q_LEN, 6, HEADS, dtype=torch.float64).permute(2, 1, 0)
    add_elements(strided, load, derivatives, grid)
    torch.testing.assert_close(strided, one_by_one(sizes, load, derivatives, grid), rtol=1e-5, atol=1e-5)


def test_nothing_at_hand() -> None:
    """No queries, or no keys, add nothing."""
    for rows, keys in ((range(0), range(5)), (range(5), range(0))):
        for index, sizes in (("h", (3,)), ("seg[q_idx]", (6,)), ("", ()), ("q_idx, kv_idx", (30, 30))):
            total = torch.ones(sizes)
            grid = grid_of(call(), rows, keys)
            add_elements(total, load_of(index, len(sizes)), torch.zeros(grid.sizes), grid)
            assert torch.equal(total, torch.ones(sizes))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 64, 1001])
def test_folded(size: int) -> None:
    values = torch.randn(3, size, 4)
    kept = values.clone()
    for dim, moved in ((0, (1, 0, 2)), (1, (0, 1, 2)), (2, (0, 2, 1))):
        found = folded(values.permute(moved), dim)
        torch.testing.assert_close(found, values.permute(moved).double().sum(dim, keepdim=True).float())
    assert torch.equal(values, kept), "what is summed is left as it is"


def test_a_long_sum_is_accurate() -> None:
    values = torch.full((2**20,), 0.1)
    assert abs(float(folded(values, 0)) / (0.1 * 2**20) - 1) < 1e-6


def test_sums_by_key() -> None:
    keys = torch.randint(0, 40, (1000,)) * 3
    values = torch.randn(5, 1000)
    distinct, sums = by_key(values, keys)
    assert torch.equal(distinct, keys.unique())
    expected = torch.zeros(5, 120, dtype=torch.float64).index_add_(1, keys, values.double())[:, distinct]
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "q_len, kv_len, block", [(21, 34, 8), (34, 21, 8), (8, 8, 8), (1, 17, 16), (17, 1, 16), (3, 2, 4)]
)
def test_diagonals_of_tiles(q_len: int, kv_len: int, block: int) -> None:
    pairs = torch.randn(2, 3, q_len, kv_len, dtype=torch.float64)
    rows, columns = -(-q_len // block), -(-kv_len // block)
    padded = torch.zeros(2, 3, rows * block, columns * block, dtype=torch.float64)
    padded[..., :q_len, :kv_len] = pairs
    workspace = torch.zeros(2, 3, tile_diagonals(q_len, kv_len, block), block, block, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            tile = padded[..., row * block : (row + 1) * block, column * block : (column + 1) * block]
            workspace[:, :, row - column + columns - 1] += tile
    sums = by_distance(workspace, q_len, kv_len)
    assert sums.shape == (2, 3, q_len + kv_len - 1)
    for place, distance in enumerate(range(1 - kv_len, q_len)):
        torch.testing.assert_close(sums[..., place], pairs.diagonal(-distance, 2, 3).sum(-1))


def test_chunks_add_up_in_full_precision() -> None:
    """Ones from a thousand chunks make a thousand times as many, where the tensor's own dtype stops at 256."""
    load = load_of("clamp(q_idx * kv_idx, 0, 0)", 1)
    where = call(values={"t": torch.zeros(1, dtype=torch.bfloat16)})
    ones = torch.ones(BATCH, HEADS, Q_LEN, 1)
    chunks = (Chunk(range(key % KV_LEN, key % KV_LEN + 1), {load: ones}) for key in range(1000))
    found = capture_gradients(where, ["t"], [load], Pieces(chunks=chunks), [])
    assert found["t"].dtype is torch.bfloat16
    assert found["t"].item() == torch.tensor(1000.0 * ones.numel()).bfloat16().item()


def threads(compute: Callable[[], Tensor]) -> list[Tensor]:
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(compute())
        return found
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "index, sizes", [("", ()), ("h", (3,)), ("seg[q_idx], h, seg[kv_idx]", (6, 3, 6)), ("kv_idx", (400,))]
)
def test_bits_do_not_depend_on_threads(index: str, sizes: tuple[int, ...]) -> None:
    q, k = torch.zeros(2, 3, 200, 1), torch.zeros(2, 3, 300, 1)
    where = Call(q, k, k, 1.0, 0, {"seg": SEGMENTS.repeat(5), "m": 5})
    grid, load = grid_of(where, range(200), range(300)), load_of(index, len(sizes))
    derivatives = torch.randn(grid.sizes)

    def compute() -> Tensor:
        total = torch.zeros(sizes)
        add_elements(total, load, derivatives, grid)
        return total

    first, *others = threads(compute)
    assert all(torch.equal(other, first) for other in others)
