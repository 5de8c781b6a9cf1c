"""Attention written out by hand, pair by pair, in plain Python, and the variants it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from compare import assert_rows_close
from torch import Tensor

from attndsl.frontend import normalizers
from attndsl.frontend.builder import Builder
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, Variant
from attndsl.reference import Result

B = Builder()
INFINITY = math.inf
PRECISE = 1e-12

Score = Callable[[float, int, int, int, int], float]
Live = Callable[[int, int, int, int], bool]


def by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    score: Score = lambda s, b, h, i, j: s,
    live: Live = lambda b, h, i, j: True,
    sink: Callable[[int], float] | None = None,
    offset: Callable[[int], int] = lambda b: 0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, lse and the largest score of softmax attention; queries count from `offset`."""
    batch, heads, q_len, width = q.shape
    ratio = heads // k.shape[1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    out = torch.zeros(batch, heads, q_len, v.shape[-1], dtype=torch.float64)
    lse, most = (torch.full((batch, heads, q_len), -INFINITY, dtype=torch.float64) for _ in range(2))
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h // ratio].tolist(), v[b, h // ratio].double()
            for row, query in enumerate(q[b, h].tolist()):
                i = row + offset(b)
                found = {}
                for j, key in enumerate(keys):
                    if live(b, h, i, j):
                        final = score(scale * sum(x * y for x, y in zip(query, key, strict=True)), b, h, i, j)
                        if final != -INFINITY:
                            found[j] = final
                total = sum(map(math.exp, found.values())) + (0 if sink is None else math.exp(sink(h)))
                for j, final in found.items():
                    out[b, h, row] += math.exp(final) / total * values[j]
                lse[b, h, row] = math.log(total) if total > 0 else -INFINITY
                most[b, h, row] = max(found.values(), default=-INFINITY)
    return out, lse, most


def inputs(
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    q_len: int = 7,
    kv_len: int = 9,
    width: int = 5,
    v_width: int = 5,
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, heads, q_len, width), (batch, kv_heads, kv_len, width), (batch, kv_heads, kv_len, v_width))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_(requires_grad) for s in shapes)
    return q, k, v


def op(symbol: str, left: Expr | float, right: Expr | float) -> Expr:
    return B.infix(symbol, lift(left), lift(right))


def call(name: str, *args: Expr | float) -> Expr:
    return B.call(name, [lift(arg) for arg in args])


def lift(value: Expr | float) -> Expr:
    return B.literal(value) if isinstance(value, bool | int | float) else value


def load(name: str, dtype: DType, *indices: Expr) -> Expr:
    return build.load(name, indices, dtype)


def variant(
    score: Expr = build.SCORE,
    mask: Expr = build.TRUE,
    normalizer: Expr | None = None,
    weight: Expr = build.WEIGHT,
    params: tuple[Param, ...] = (),
) -> Variant:
    B.reporter.check()
    return Variant("case", params, score, mask, normalizer or normalizers.softmax(B), weight)


def check(result: Result, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    assert result.lse is not None
    assert_rows_close(result.out, expected[0], PRECISE)
    assert_rows_close(result.lse[..., None], expected[1][..., None], PRECISE)
    assert_rows_close(result.max_score[..., None], expected[2][..., None], PRECISE)


CAUSAL = op("<=", build.K, build.Q)
DISTANCE = op("-", build.Q, build.K)
