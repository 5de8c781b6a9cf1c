"""The transposed mask bounds the queries of a key: it says the same of every pair, and affine bounds stay bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from strategies import Case, affine_masks, mask_cases

from attndsl.analysis.bounds import KeyRange, key_ranges
from attndsl.dense import environment, evaluate
from attndsl.frontend.parse import parse
from attndsl.ir.nodes import Expr
from attndsl.ir.printer import print_expr
from attndsl.passes.transpose_mask import transpose_mask
from attndsl.reference import live_pairs


def ranges_of(mask: str, params: str = "") -> tuple[KeyRange, ...]:
    return key_ranges(transpose_mask(parse(f"attention t({params}) {{ mask {mask} }}")[0]))


@pytest.mark.parametrize(
    ("mask", "lower", "upper"),
    [
        ("kv_idx <= q_idx", ["q_idx"], []),
        ("kv_idx <= q_idx and q_idx - kv_idx < w", ["q_idx"], ["q_idx + w - 1"]),
        ("kv_idx // 64 <= q_idx // 64", ["q_idx // 64 * 64"], []),
        ("kv_idx < w", [], []),
    ],
)
def test_bounds_of_the_queries_of_a_key(mask: str, lower: list[str], upper: list[str]) -> None:
    (found,) = ranges_of(mask, "w: int = 5")
    assert [print_expr(bound) for bound in found.lower] == lower
    assert [print_expr(bound) for bound in found.upper] == upper


def test_a_mask_hidden_in_the_score_bounds_queries_too() -> None:
    variant = parse("attention t() { score score if kv_idx <= q_idx else -inf }")[0]
    assert [print_expr(bound) for bound in key_ranges(transpose_mask(variant))[0].lower] == ["q_idx"]


def transposed_pairs(case: Case, mask: Expr) -> torch.Tensor:
    """What the transposed mask says, [B', H', keys, queries], with keys where a mask has queries."""
    env = environment(
        case.variant, case.values, batch=case.batch, heads=case.q_heads, q_len=case.kv_len, kv_len=case.q_len
    )
    return evaluate(mask, env) | torch.zeros(1, 1, case.kv_len, case.q_len, dtype=torch.bool)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask_cases())
def test_the_same_pairs_are_live(case: Case) -> None:
    case = replace(case, q_offset=0)
    grid = {**case.grid, "q_offset": 0}
    live = live_pairs(case.variant, case.values, **grid)
    swapped = transposed_pairs(case, transpose_mask(case.variant))
    assert torch.equal(torch.broadcast_tensors(swapped.mT, live)[0], torch.broadcast_tensors(swapped.mT, live)[1])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(affine_masks())
def test_affine_bounds_stay_closed_forms(case: Case) -> None:
    ranges = key_ranges(transpose_mask(case.variant))
    assert all(keys.is_exact for keys in ranges)
