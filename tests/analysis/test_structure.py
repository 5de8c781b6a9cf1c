"""The structure of captured elements: what is claimed of an index holds for every pair."""

from __future__ import annotations

import pytest
import torch
from expressions import Scope, integer
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import shapes

from attndsl.analysis.structure import Structure, drifts, is_indexed_by_scores, structure_of
from attndsl.dense import environment, evaluate
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.types import DType
from attndsl.ir.variant import Variant

PARAMS = "W: int = 4, m: int = 8, seg: int tensor[N], offset: int tensor[N]"


def structures(score: str, dims: int) -> list[Structure]:
    named = ", ".join(f"D{dim}" for dim in range(dims))
    tensor = f"t: tensor[{named}]"
    (variant,) = parse(f"attention a({tensor}, {PARAMS}) {{ score {score} }}")
    return [structure_of(load) for load in variant.loads_of("t")]


ROW, COLUMN, DIAGONAL, PAIRS = Structure


@pytest.mark.parametrize(
    "score, dims, expected",
    [
        ("score * t", 0, [ROW]),
        ("score * t[h]", 1, [ROW]),
        ("score + t[h // 4]", 1, [ROW]),
        ("score + t[offset[q_idx]]", 1, [ROW]),
        ("score + t[b, kv_idx]", 2, [COLUMN]),
        ("score + t[seg[kv_idx], h]", 2, [COLUMN]),
        ("score + t[q_idx] + t[kv_idx]", 1, [ROW, COLUMN]),
        ("score + t[b, h, q_idx, kv_idx]", 4, [PAIRS]),
        ("score + t[seg[q_idx], seg[kv_idx]]", 2, [PAIRS]),
        ("score + t[q_idx // W - kv_idx // W]", 1, [PAIRS]),
        ("score + t[q_idx ^ kv_idx]", 1, [PAIRS]),
        ("score + t[2 * q_idx - kv_idx]", 1, [PAIRS]),
        ("score + t[h, q_idx]", 2, [ROW]),
        ("score + t[clamp(q_idx - kv_idx, 0, m)]", 1, [DIAGONAL]),
        ("score + t[h, clamp(kv_idx - q_idx, -m, m) + m]", 2, [DIAGONAL]),
        ("score + t[(q_idx - kv_idx) * (q_idx - kv_idx) * h]", 1, [DIAGONAL]),
        ("score + t[max(q_idx, kv_idx) - min(q_idx, kv_idx)]", 1, [DIAGONAL]),
        ("score + t[where(kv_idx <= q_idx, q_idx - kv_idx, 0)]", 1, [DIAGONAL]),
        ("score + t[(q_idx * 4 + 2) // 4 - kv_idx]", 1, [DIAGONAL]),
        ("score + t[offset[abs(q_idx - kv_idx)] + b]", 1, [DIAGONAL]),
        ("score + t[int(floor(float(q_idx - kv_idx) * 0.3))]", 1, [DIAGONAL]),
        ("score + t[bit_length(q_idx - kv_idx)]", 1, [DIAGONAL]),
        ("score + t[where(kv_idx <= q_idx, kv_idx, q_idx) - kv_idx]", 1, [DIAGONAL]),
        ("score + t[where(h == 0, q_idx, 0) - kv_idx]", 1, [PAIRS]),
    ],
)
def test_structure(score: str, dims: int, expected: list[Structure]) -> None:
    assert structures(score, dims) == expected


def test_scores_in_an_index() -> None:
    (variant,) = parse("attention a(t: tensor[N]) { score t[clamp(int(score), 0, 3)] + t[h] }")
    assert [is_indexed_by_scores(load) for load in variant.loads_of("t")] == [True, False]


@settings(max_examples=300)
@given(st.data())
def test_a_value_moves_on_as_claimed(data: st.DataObject) -> None:
    scope = Scope(data.draw, data.draw(shapes(max_programs=2, max_length=33)))
    values = [integer(scope, depth)[0] for depth in (1, 2, 3)]
    far = scope.op("-", values[0], build.K)
    apart = scope.op("-", build.Q, build.K)
    values += [far, scope.op("//", scope.op("*", apart, 3), 2), scope.call("max", far, apart)]
    step = 7
    variant = Variant("random", tuple(scope.params), build.SCORE, build.TRUE, build.SCORE, build.WEIGHT)
    sizes = {"batch": scope.shape.batch, "heads": scope.shape.q_heads, "q_len": 9, "kv_len": 11}
    env = environment(variant, scope.values, **sizes)
    moved = environment(variant, scope.values, **sizes)
    for leaves, by in ((env.leaves, 0), (moved.leaves, step)):
        for coordinate in (build.Q, build.K):
            leaves[coordinate] = leaves[coordinate] + by  # type: ignore[index]
    for value in values:
        drift = drifts(value)[value]
        if drift is not None:
            assert torch.equal(evaluate(value, moved), evaluate(value, env) + drift * step), value
            assert value.dtype is DType.I64
