"""Masks of stretches against loops over every pair, and what attention-gym ships under the names it has here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import attndsl as ad

N = 40
OFFSETS = torch.tensor([0, 7, 7, 20, N])
INTERVALS = torch.tensor([[0, 25], [5, 25], [25, N], [30, 30]])
IMAGE = 6


def starts(position: int) -> int:
    return max(int(start) for start in OFFSETS[:-1] if start <= position)


def near(position: int, other: int, reach: int) -> bool:
    return abs(position - other) < reach


CASES = {
    "chunks of causal": (
        ad.masks.chunks_of(ad.masks.causal, 9),
        lambda q, k: q // 9 == k // 9 and k % 9 <= q % 9,
    ),
    "chunks of a prefix": (
        ad.masks.chunks_of(ad.masks.prefix_lm(prefix=3), 9),
        lambda q, k: q // 9 == k // 9 and (k % 9 <= q % 9 or k % 9 < 3),
    ),
    "chunks of a FlexAttention function": (
        ad.masks.chunks_of(lambda b, h, i, j: (i - j) % 2 == 0, 9),
        lambda q, k: q // 9 == k // 9 and (q % 9 - k % 9) % 2 == 0,
    ),
    "documents of a prefix": (
        ad.masks.documents_of(ad.masks.prefix_lm(prefix=2), OFFSETS),
        lambda q, k: starts(q) == starts(k) and (k <= q or k - starts(k) < 2),
    ),
    "spatial head": (
        ad.masks.spatial_head(prompt=4, reach=6, sink=5),
        lambda q, k: q < 4 or k < 9 or near(q, k, 6),
    ),
    "temporal head": (
        ad.masks.temporal_head(prompt=4, frame=9, reach=2),
        lambda q, k: q < 4 or k < 4 or near((q - 4) % 9, (k - 4) % 9, 2),
    ),
    "dilated sliding window": (
        ad.masks.dilated_sliding_window(window=6, dilation=3),
        lambda q, k: near(q, k, 7) and abs(q - k) % 3 == 0,
    ),
}


def seen(mask: object, keys: int = N) -> Tensor:
    """Which keys queries see through a whole call: the weights of one-hot values."""
    q, k = torch.zeros(1, 1, N, 8).double(), torch.zeros(1, 1, keys, 8).double()
    out = ad.attention(mask_mod=mask).reference(q, k, torch.eye(keys).double()[None, None])
    return out[0, 0] > 0


@pytest.mark.parametrize("name", CASES)
def test_sees_what_a_loop_says(name: str) -> None:
    mask, sees = CASES[name]
    expected = torch.tensor([[bool(sees(q, k)) for k in range(N)] for q in range(N)])
    assert torch.equal(seen(mask), expected)
    plan = ad.attention(mask_mod=mask).plan(N, block=(16, 16), exact=True)
    assert plan.counts["empty"] == sum(not tile.any() for row in expected.split(16) for tile in row.split(16, 1))


def test_text_sees_the_images_of_its_interval() -> None:
    expected = torch.zeros(N, len(INTERVALS) * IMAGE, dtype=torch.bool)
    for image, (first, end) in enumerate(INTERVALS.tolist()):
        expected[first:end, image * IMAGE : (image + 1) * IMAGE] = True
    assert torch.equal(seen(ad.masks.vision_cross_attention(INTERVALS, IMAGE), expected.shape[1]), expected)


@pytest.mark.parametrize("side, window", [(1, 1), (4, 3), (8, 4), (8, 8)])
def test_neighbours_in_z_order(side: int, window: int) -> None:
    """The row-major mask with its tokens moved: bits of the place are dealt to x and y in turn."""
    grid = ad.grid(y=side, x=side)
    order = []
    for token in range(side * side):
        digits = f"{token:016b}"
        order.append(int(digits[0::2], 2) * side + int(digits[1::2], 2))
    q = k = torch.zeros(1, 1, side * side, 8).double()
    values = torch.eye(side * side).double()[None, None]
    plain = ad.attention(mask_mod=ad.masks.neighborhood(grid, window)).reference(q, k, values)[0, 0]
    found = ad.attention(mask_mod=ad.masks.morton_neighborhood(side, window)).reference(q, k, values)[0, 0]
    assert torch.equal(found > 0, plain[order][:, order] > 0)


def test_chunks_are_a_closed_form_of_any_size() -> None:
    attention = ad.attention(mask_mod=ad.masks.chunks_of(ad.masks.full, 9))
    assert attention.plan(1000).strategy == "closed_form"
    assert attention.bind(size=100).plan(1000, block=(100, 100)).counts == {"full": 10, "partial": 0, "empty": 90}


@pytest.mark.parametrize(
    "heads, expected",
    [(1, [2**-8]), (4, [2**-2, 2**-4, 2**-6, 2**-8]), (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])],
)
def test_slopes(heads: int, expected: list[float]) -> None:
    assert ad.scores.alibi_slopes(heads).tolist() == expected


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: ad.masks.documents_of(ad.masks.causal, torch.tensor([1, 4])), "`offsets` must start"),
        (lambda: ad.masks.documents_of(ad.masks.causal, torch.tensor([0.0, 4.0])), "`offsets` is of shape"),
        (lambda: ad.masks.vision_cross_attention(torch.zeros(3), 2), "`intervals` is of shape"),
        (lambda: ad.masks.morton_neighborhood(6, 3), "`side` is 6"),
        (lambda: seen(ad.masks.morton_neighborhood(4, 5)), "`window` counts"),
        (lambda: ad.scores.alibi_slopes(0), "`heads` is 0"),
        (lambda: seen(ad.masks.chunks_of(ad.masks.causal, 0)), "`size` counts"),
        (lambda: seen(ad.masks.temporal_head(prompt=0, frame=0, reach=1)), "`frame` counts"),
        (lambda: seen(ad.masks.dilated_sliding_window(window=3, dilation=0)), "`dilation` counts"),
        (lambda: seen(ad.masks.vision_cross_attention(INTERVALS, 0), 24), "`image_tokens` counts"),
    ],
)
def test_refuses(make, named: str) -> None:
    with pytest.raises(ad.DiagnosticError, match=named):
        make()
