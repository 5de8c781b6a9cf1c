"""Routers against their formulas written out query by query, block by block."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import dense
import pytest
import torch
from torch import Tensor

import attndsl as ad
from attndsl.routing.routers import box_of_tokens

CAUSAL = ad.attention(mask_mod=ad.masks.causal)
ANY = ad.attention()


def best(scores: list[float], among: list[int], k: int) -> set[int]:
    """The k indices of the largest scores, ties to the lowest index."""
    return set(sorted(among, key=lambda j: (-scores[j], j))[:k])


def moba(q: Tensor, k: Tensor, block: int, top_k: int, offset: int = 0) -> Tensor:
    """Pairs MoBA computes, from its formula: gate = q . mean(keys of a past block), the own block first."""
    group = q.shape[1] // k.shape[1]
    live = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.bool)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys = k[b, h // group]
            for i in range(q.shape[2]):
                position = i + offset
                own = position // block
                gates = [float(q[b, h, i] @ keys[j * block : (j + 1) * block].mean(0)) for j in range(own)]
                for j in best(gates, list(range(own)), top_k - 1) | {own}:
                    live[b, h, i, j * block : (j + 1) * block] = True
                live[b, h, i, position + 1 :] = False
    return live


@pytest.mark.parametrize("block, top_k", [(8, 1), (8, 2), (16, 3), (7, 4), (100, 2)])
@pytest.mark.parametrize("offset", [0, 20])
def test_moba(block: int, top_k: int, offset: int) -> None:
    q, k, v = dense.normal(2, 4, 45, 8), dense.normal(2, 2, 65, 8, seed=1), dense.normal(2, 2, 65, 8, seed=2)
    live = moba(q, k, block, top_k, offset)
    route = ad.routers.moba(block, top_k)
    q, k, v = q.double(), k.double(), v.double()
    found = CAUSAL.reference(q, k, v, enable_gqa=True, q_offset=offset, blocks=route)
    torch.testing.assert_close(found, dense.attention(q, k, v, live), rtol=1e-12, atol=1e-12)
    table = route(q, k, enable_gqa=True, q_offset=offset)
    plan = CAUSAL.plan(45, 65, batch=2, heads=4, block=(16, 16), q_offset=offset, blocks=table)
    assert (plan.classes() == dense.tile_classes(live, (16, 16))).all()


def test_routing_by_tiles_is_not_moba() -> None:
    """Queries of one tile choose different blocks: the reason why MoBA routes every query on its own."""
    q, k = dense.normal(1, 1, 64, 8), dense.normal(1, 1, 64, 8, seed=1)
    by_query = ad.routers.moba(8, 2)(q, k).live.view(8, 8, 8)
    assert (by_query.any(1) != by_query.all(1)).any()


@pytest.mark.parametrize("top_k", [0, 1, 3])
@pytest.mark.parametrize("scale", [None, -0.5])
def test_quest(top_k: int, scale: float | None) -> None:
    """The bound: the sum over coordinates of the larger of q * least and q * greatest."""
    q, k = dense.normal(1, 2, 40, 8), dense.normal(1, 1, 40, 8, seed=1)
    page = 6
    table = ad.routers.quest(page, top_k)(q, k, scale=scale, enable_gqa=True)
    for h in range(2):
        for i in range(40):
            scores = []
            for j in range(7):
                keys = k[0, 0, j * page : (j + 1) * page] * (1 if scale is None else scale)
                edges = torch.stack([q[0, h, i] * keys.amin(0), q[0, h, i] * keys.amax(0)])
                scores.append(float(edges.amax(0).sum()))
                assert float((q[0, h, i] @ keys.T).max()) <= scores[-1] + 1e-5
            own = i // page
            wanted = best(scores, list(range(own)), top_k) | {own}
            assert set(table.live[0, h, i].nonzero().flatten().tolist()) == wanted


def flexprefill(q: Tensor, k: Tensor, block: int, mass: float) -> set[tuple[int, int]]:
    """Blocks of one head: the fewest that hold `mass` of a row-wise softmax over causal pairs of mean-pooled blocks."""
    blocks = -(-len(q) // block)
    means = [[x[j * block : (j + 1) * block].double().mean(0) for j in range(blocks)] for x in (q, k)]
    weights: dict[tuple[int, int], float] = {}
    for i in range(blocks):
        scores = [math.exp(float(means[0][i] @ means[1][j]) / math.sqrt(q.shape[1])) for j in range(i + 1)]
        weights |= {(i, j): score / sum(scores) for j, score in enumerate(scores)}
    taken, total = set(), 0.0
    for pair in sorted(weights, key=lambda pair: -weights[pair]):
        if total >= mass * blocks:
            break
        taken.add(pair)
        total += weights[pair]
    return taken | {(i, j) for i in range(blocks) for j in (0, i)}


@pytest.mark.parametrize("mass", [0.3, 0.8, 0.95, 1.0])
def test_flexprefill(mass: float) -> None:
    q, k, v = (3 * dense.normal(1, 2, 90, 8, seed=i) for i in range(3))
    route = ad.routers.flexprefill(mass, block=16, divergence=1)
    table = route(q, k)
    for h in range(2):
        wanted = flexprefill(q[0, h], k[0, h], 16, mass)
        assert {tuple(pair) for pair in table.live[0, h].nonzero().tolist()} == wanted
    live = dense.pairs(table.live, (16, 16), (90, 90)) & dense.causal(90, 90)
    found = CAUSAL.reference(q.double(), k.double(), v.double(), blocks=route)
    torch.testing.assert_close(found, dense.attention(q, k, v, live))


def last_attention(q: Tensor, k: Tensor, rows: int, offset: int) -> Tensor:
    """The causal attention of the last queries of one head, pair by pair."""
    found = torch.zeros(rows, len(k), dtype=torch.float64)
    for row in range(rows):
        query = len(q) - rows + row
        visible = range(min(len(k), query + offset + 1))
        scores = [math.exp(float(q[query].double() @ k[j].double()) / math.sqrt(q.shape[1])) for j in visible]
        found[row, : len(scores)] = torch.tensor(scores, dtype=torch.float64) / max(sum(scores), 1e-300)
    return found


def heaviest(weights: dict[int, float], mass: float) -> set[int]:
    taken: set[int] = set()
    total = 0.0
    for name in sorted(weights, key=lambda name: -weights[name]):
        if total >= mass * sum(weights.values()):
            break
        taken.add(name)
        total += weights[name]
    return taken


def lines(q: Tensor, k: Tensor, block: int, mass: float, offset: int) -> set[tuple[int, int]]:
    """Blocks of one head through which a vertical or a slash line runs, pair by pair; the first and the own ones."""
    rows = min(block, len(q))
    attention = last_attention(q, k, rows, offset)
    distances: dict[int, float] = {}
    for row, j in itertools.product(range(rows), range(len(k))):
        distance = len(q) - rows + row - j
        distances[distance] = distances.get(distance, 0.0) + float(attention[row, j])
    vertical, slash = heaviest(dict(enumerate(attention.sum(0).tolist())), mass), heaviest(distances, mass)
    taken = set()
    for i, j in itertools.product(range(len(q)), range(len(k))):
        start = i // block * block
        mates = range(start + offset, min(len(q), start + block) + offset)
        is_own = any(position // block == j // block for position in mates)
        if j // block * block <= mates[-1] and (j in vertical or i - j in slash or j < block or is_own):
            taken.add((i // block, j // block))
    return taken


@pytest.mark.parametrize("mass", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("q_len", "kv_len", "offset"), [(90, 90, 0), (50, 90, 40), (37, 64, 5), (9, 70, 61)])
def test_vertical_and_slash_lines(q_len: int, kv_len: int, offset: int, mass: float) -> None:
    q, k, v = 3 * dense.normal(2, 4, q_len, 8), *(3 * dense.normal(2, 2, kv_len, 8, seed=i) for i in (1, 2))
    route = ad.routers.vertical_slash(mass, block=16)
    table = route(q, k, enable_gqa=True, q_offset=offset)
    for b, h in itertools.product(range(2), range(4)):
        wanted = lines(q[b, h], k[b, h // 2], 16, mass, offset)
        assert {tuple(pair) for pair in table.live[b, h].nonzero().tolist()} == wanted
    live = dense.pairs(table.live, (16, 16), (q_len, kv_len)) & dense.causal(q_len, kv_len, offset)
    found = CAUSAL.reference(q.double(), k.double(), v.double(), enable_gqa=True, q_offset=offset, blocks=route)
    torch.testing.assert_close(found, dense.attention(q, k, v, live))


def test_heads_choose_between_pooled_blocks_and_lines() -> None:
    """Equal keys: means say all there is. Keys that cancel in the mean of a block: they do not."""
    q, k = dense.normal(1, 2, 96, 8), torch.zeros(1, 2, 96, 8)
    q[:, 1], k[:, 1, 21], k[:, 1, 22] = 1.0, 5.0, -5.0
    pooled, lined, found = (ad.routers.flexprefill(0.6, 16, divergence=at)(q, k).live for at in (1, 0, 0.2))
    assert torch.equal(lined, ad.routers.vertical_slash(0.6, block=16)(q, k).live)
    assert not torch.equal(pooled[:, 0], lined[:, 0])
    assert not torch.equal(pooled[:, 1], lined[:, 1])
    assert torch.equal(found[:, 0], pooled[:, 0])
    assert torch.equal(found[:, 1], lined[:, 1])


def test_the_divergence_is_that_of_jensen_and_shannon() -> None:
    q, k = 2 * dense.normal(1, 1, 96, 8), 2 * dense.normal(1, 1, 96, 8, seed=1)
    attention = last_attention(q[0, 0], k[0, 0], 16, 0).sum(0) / 16
    mean = q[0, 0, 80:].double().mean(0)
    starts = range(0, 96, 16)
    shares = [float(attention[at : at + 16].sum()) for at in starts]
    scores = [math.exp(float(mean @ k[0, 0, at : at + 16].double().mean(0)) / math.sqrt(8)) for at in starts]
    means = [score / sum(scores) for score in scores]
    sides = ((shares, means), (means, shares))
    parts = [p * math.log(2 * p / (p + other)) for pair in sides for p, other in zip(*pair, strict=True)]
    distance = math.sqrt(sum(parts) / 2)
    pooled, lined = (ad.routers.flexprefill(0.3, 16, divergence=at)(q, k).live for at in (1, 0))
    assert not torch.equal(lined, pooled)
    for at, wanted in ((distance * 1.001, pooled), (distance * 0.999, lined)):
        assert torch.equal(ad.routers.flexprefill(0.3, 16, divergence=at)(q, k).live, wanted)


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 40), (40, 0), (0, 0), (1, 1)])
def test_lines_of_nothing(q_len: int, kv_len: int) -> None:
    q, k = dense.normal(1, 2, q_len, 8), dense.normal(1, 2, kv_len, 8)
    for route in (ad.routers.vertical_slash(0.5, block=16), ad.routers.flexprefill(0.5, block=16)):
        assert route(q, k).live.shape == (1, 2, -(-q_len // 16), -(-kv_len // 16))


def test_keys_that_are_no_number_make_no_line() -> None:
    q, k = dense.normal(1, 1, 64, 8), dense.normal(1, 1, 64, 8, seed=1)
    k[0, 0, 20] = torch.nan
    live = ad.routers.vertical_slash(0.5, block=1)(q, k).live[0, 0]
    # The key itself is no line; its own block and lines at a distance may hold it.
    assert not live[:, 20].all()
    assert live.any(-1).all()


@pytest.mark.parametrize(
    "shape, block",
    [((4, 4, 6), (2, 4, 6)), ((4, 4, 6), (4, 2, 3)), ((3, 5, 4), (2, 2, 3)), ((5, 6), (2, 4)), ((20,), (6,))],
)
def test_vmoba(shape: tuple[int, ...], block: tuple[int, ...]) -> None:
    """Gates of a head mapped to 0..1 together, the largest taken until they hold the mass; the own box always."""
    tokens, mass = math.prod(shape), 0.4
    q, k, v = (dense.normal(1, 2, tokens, 8, seed=i) for i in range(3))
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), -1).view(tokens, -1)
    boxes = [tuple(int(x) // size for x, size in zip(place, block, strict=True)) for place in places]
    names = sorted(set(boxes))
    live = torch.zeros(1, 2, tokens, tokens, dtype=torch.bool)
    for h in range(2):
        means = [k[0, h][torch.tensor([box == name for box in boxes])].mean(0) for name in names]
        gates = {(i, j): float(q[0, h, i] @ mean) for i in range(tokens) for j, mean in enumerate(means)}
        least, most = min(gates.values()), max(gates.values())
        weights = {pair: (gate - least) / (most - least) for pair, gate in gates.items()}
        taken, total = set(), 0.0
        for pair in sorted(weights, key=lambda pair: -weights[pair]):
            if total >= mass * sum(weights.values()):
                break
            taken.add(pair)
            total += weights[pair]
        for i in range(tokens):
            chosen = {names[j] for j in range(len(names)) if (i, j) in taken} | {boxes[i]}
            live[0, h, i] = torch.tensor([box in chosen for box in boxes])
    route = ad.routers.vmoba(shape, block, mass)
    found = ANY.reference(q.double(), k.double(), v.double(), blocks=route)
    torch.testing.assert_close(found, dense.attention(q, k, v, live))
    assert 0.1 < float(live.double().mean()) < 0.9


def test_boxes_that_are_stretches_need_no_list() -> None:
    assert ad.routers.vmoba((4, 4, 6), (2, 4, 6), 0.5).block == (1, 48)
    assert ad.routers.vmoba((20,), (6,), 0.5).block == (1, 6)
    assert box_of_tokens((2, 4), (1, 2)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert box_of_tokens((4, 3), (2, 2)).tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3, 2, 2, 3]


def test_seer_takes_gates_as_they_are() -> None:
    q, k = dense.normal(1, 2, 64, 8), dense.normal(1, 2, 64, 8, seed=1)
    gates = torch.softmax(dense.normal(1, 2, 4, 4, seed=2), -1)
    below = torch.ones(4, 4, dtype=torch.bool).tril()
    table = ad.routers.seer(gates, ad.routers.threshold(0.25), block=(16, 16))(q, k)
    assert (table.live == below & ((gates >= 0.25) | torch.eye(4, dtype=torch.bool))).all()
    asked = ad.routers.seer(lambda q, k: gates[:, :1], ad.routers.top_k(1), block=(16, 16), keep=(), causal=False)(q, k)
    assert (asked.live == torch.nn.functional.one_hot(gates[:, :1].argmax(-1), 4).bool()).all()


@pytest.mark.parametrize("pool", ["mean", "max", "min"])
def test_pools_take_a_short_last_block_as_it_is(pool: str) -> None:
    q, k = dense.normal(1, 1, 30, 4), dense.normal(1, 1, 21, 4, seed=1)
    route = ad.router(block=(8, 10), pool_q=pool, pool_k=pool, select=ad.routers.threshold(0.1), causal=False)
    reduce = {"mean": Tensor.mean, "max": Tensor.amax, "min": Tensor.amin}[pool]
    for i in range(4):
        for j in range(3):
            score = reduce(q[0, 0, i * 8 : i * 8 + 8], 0) @ reduce(k[0, 0, j * 10 : j * 10 + 10], 0) / 2
            assert bool(route(q, k).live[0, 0, i, j]) == bool(score >= 0.1)


def gated(gates: list[list[float]], select: Any, **how: Any) -> list[list[int]]:
    """What a router makes of gates over blocks of 4 queries and 4 keys."""
    scores = torch.tensor(gates)[None, None]
    q, k = (torch.zeros(1, 1, 4 * size, 2) for size in scores.shape[2:])
    return ad.router(block=(4, 4), score=scores, select=select, **how)(q, k).live[0, 0].int().tolist()


def test_ties_go_to_the_lowest_block() -> None:
    flat = [[1.0] * 32] * 2
    assert gated(flat, ad.routers.top_k(3), causal=False) == [[1] * 3 + [0] * 29] * 2
    assert gated(flat, ad.routers.cumulative(0.5), causal=False) == [[1] * 16 + [0] * 16] * 2
    assert gated(flat, ad.routers.cumulative(0.75, over="head"), causal=False) == [[1] * 32, [1] * 16 + [0] * 16]


def test_cumulative_stops_where_the_mass_is_reached() -> None:
    gates = torch.tensor([[0.1, 0.6, 0.3]]).log().tolist()
    taken = [gated(gates, ad.routers.cumulative(mass), causal=False)[0] for mass in (0.5, 0.7, 0.95, 1.0)]
    assert taken == [[0, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_equal_gates_all_weigh_one() -> None:
    select = ad.routers.cumulative(0.5, over="head", weights="minmax")
    assert gated([[2.0, 2.0], [2.0, 2.0]], select, causal=False) == [[1, 1], [0, 0]]


@pytest.mark.parametrize("weights", ["softmax", "minmax"])
def test_infinite_and_nan_gates(weights: str) -> None:
    gates = [[math.nan, math.inf, -math.inf, 5.0]]
    assert gated(gates, ad.routers.cumulative(0.9, weights=weights), causal=False) == [[0, 1, 0, 0]]
    assert gated(gates, ad.routers.cumulative(1.0, weights=weights), causal=False) == [[0, 1, 0, 1]]
    nothing = [[-math.inf, math.nan]]
    assert gated(nothing, ad.routers.cumulative(0.9, weights=weights), causal=False) == [[0, 0]]
    assert gated(gates, ad.routers.top_k(4), causal=False) == [[0, 1, 0, 1]]
    assert gated(gates, ad.routers.threshold(-math.inf), causal=False) == [[0, 1, 0, 1]]


def test_what_is_kept() -> None:
    def kept(*keep: Any, causal: bool = True) -> list[list[int]]:
        return gated([[0.0] * 5] * 4, ad.routers.top_k(0), keep=keep, causal=causal)

    assert kept() == [[0] * 5] * 4
    assert kept("diagonal") == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert kept("sink") == [[1, 0, 0, 0, 0]] * 4
    assert kept("local", causal=False) == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert kept(ad.routers.sink(2), ad.routers.local(1)) == [
        *([1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]),
    ]
    assert gated([[3.0, 2.0, 1.0]], ad.routers.top_k(1), keep="sink", causal=False) == [[1, 1, 0]]


def test_queries_beyond_the_keys_have_no_own_block() -> None:
    q, k = torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 6, 2)
    route = ad.router(block=(1, 4), select=ad.routers.top_k(0), keep="diagonal")
    table = route(q, k, q_offset=torch.tensor([-2, 4]))
    assert table.live[:, 0].int().tolist() == [[[0, 0], [0, 0], [1, 0], [1, 0]], [[0, 1], [0, 1], [0, 0], [0, 0]]]
    shifted = ad.router(block=(3, 4), select=ad.routers.top_k(0), keep="diagonal")(q, k, q_offset=2)
    assert shifted.live[0, 0].int().tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize("q_len, kv_len", [(0, 8), (8, 0), (0, 0)])
def test_empty_lengths(q_len: int, kv_len: int) -> None:
    q, k = torch.zeros(1, 2, q_len, 4), torch.zeros(1, 2, kv_len, 4)
    for route in (ad.routers.moba(4, 2), ad.routers.quest(4, 2), ad.routers.flexprefill(0.9, 4)):
        assert CAUSAL(q, k, k, blocks=route).shape == (1, 2, q_len, 4)


def test_half_precision_routes_in_float32() -> None:
    q, k = (dense.normal(1, 1, 200, 16, seed=i).bfloat16() for i in range(2))
    route = ad.routers.moba(8, 4)
    assert (route(q, k).live == route(q.float(), k.float()).live).all()
    assert (route(q, k).live == route(q.double(), k.double()).live).all()


def test_a_nan_among_keys_costs_their_block_its_place() -> None:
    q, k, v = (dense.normal(1, 1, 64, 8, seed=i).double() for i in range(3))
    k[:, :, 3] = torch.nan
    out = CAUSAL.reference(q, k, v, blocks=ad.routers.moba(8, 3))
    assert out[:, :, [*range(3), *range(8, 64)]].isfinite().all()
    assert out[:, :, 3:8].isnan().all()


MISTAKES: dict[str, Callable[[], Any]] = {
    "router-everything-wrong": lambda: ad.router(
        block=(64, -1),
        pool_q="median",
        pool_k="mean",
        score="cosine",
        select=3,  # type: ignore[arg-type]
    ),
    "router-score-of-another-kind": lambda: ad.router(block=(1, 8), score=3, select=ad.routers.top_k(1)),  # type: ignore[arg-type]
    "router-keeps-what-is-not-known": lambda: ad.router(
        block=(1, 8), select=ad.routers.top_k(1), keep=("sink", "window")
    ),
    "router-keeps-a-fraction": lambda: ad.routers.sink(0.5),  # type: ignore[arg-type]
    "router-listed-blocks-have-no-order": lambda: ad.router(
        block=(2, torch.zeros(9, dtype=torch.int64)), select=ad.routers.top_k(1), keep="sink"
    ),
    "router-top-k-of-a-fraction": lambda: ad.routers.top_k(0.5),  # type: ignore[arg-type]
    "router-threshold-nan": lambda: ad.routers.threshold(math.nan),
    "router-mass-beyond-one": lambda: ad.routers.cumulative(1.5),
    "router-unknown-weights": lambda: ad.routers.cumulative(0.5, over="batch"),
    "moba-without-its-own-block": lambda: ad.routers.moba(8, 0),
    "vmoba-other-axes": lambda: ad.routers.vmoba((4, 4), (2, 2, 2), 0.5),
    "router-heads": lambda: ad.routers.moba(8, 2)(torch.zeros(1, 4, 8, 2), torch.zeros(1, 2, 8, 2)),
    "router-shapes": lambda: ad.routers.moba(8, 2)(torch.zeros(1, 4, 8, 2), torch.zeros(1, 4, 8)),
    "router-listed-keys": lambda: ad.routers.vmoba((2, 4), (2, 2), 0.5)(
        torch.zeros(1, 1, 9, 2), torch.zeros(1, 1, 9, 2)
    ),
    "router-gates-of-another-shape": lambda: ad.routers.seer(torch.zeros(1, 3, 4, 4), ad.routers.top_k(1))(
        torch.zeros(1, 2, 100, 2), torch.zeros(1, 2, 100, 2)
    ),
    "router-gates-not-a-tensor": lambda: ad.routers.seer(lambda q, k: 1.0, ad.routers.top_k(1))(  # type: ignore[arg-type, return-value]
        torch.zeros(1, 2, 100, 2), torch.zeros(1, 2, 100, 2)
    ),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistake(mistake: str, golden: Callable[..., None]) -> None:
    with pytest.raises(ad.DiagnosticError) as error:
        MISTAKES[mistake]()
    golden(str(error.value), "routing")


ROUTES: dict[str, tuple[ad.Attention, Any]] = {
    "moba": (CAUSAL, ad.routers.moba(16, 2)),
    "quest": (CAUSAL, ad.routers.quest(8, 2)),
    "flexprefill": (CAUSAL, ad.routers.flexprefill(0.6, 16)),
    "vmoba": (ANY, ad.routers.vmoba((3, 4, 6), (3, 2, 3), 0.3)),
}


@pytest.mark.interpreter
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("name", sorted(ROUTES))
def test_kernels_follow_routers(name: str) -> None:
    attn, route = ROUTES[name]
    q, k, v = dense.normal(1, 2, 72, 16), dense.normal(1, 1, 72, 16, seed=1), dense.normal(1, 1, 72, 16, seed=2)
    table = route(q, k, enable_gqa=True)
    found = attn(q, k, v, enable_gqa=True, blocks=route, backend="triton")
    keys = table.block[1] if isinstance(table.block[1], Tensor) else torch.arange(72) // table.block[1]
    live = table.live[:, :, torch.arange(72) // table.block[0]][..., keys]
    if attn is CAUSAL:
        live = live & dense.causal(72, 72)
    torch.testing.assert_close(found.double(), dense.attention(q, k, v, live), rtol=1e-4, atol=1e-4)
