"""Decisions about a kernel: where values are computed, what may be assumed, how keys are walked, what is refused."""

from __future__ import annotations

import pytest

from attndsl.analysis.bounds import Strategy
from attndsl.codegen.describe import describe
from attndsl.codegen.head_dims import padded
from attndsl.codegen.names import KERNEL_NAMES, kernel_names
from attndsl.codegen.plan import KernelPlan, Specialisation
from attndsl.compiler import Compilation
from attndsl.diagnostics import UnsupportedError
from attndsl.frontend.parse import parse
from attndsl.ir.printer import print_expr
from attndsl.ir.types import DType


def plan(text: str, **spec: object) -> KernelPlan:
    text = text if "attention" in text else f"attention test() {{ {text} }}"
    return Compilation(parse(text)[0]).kernel("forward", Specialisation(**spec)).plan


def test_values_are_computed_where_their_axes_say() -> None:
    text = (
        "attention t(slope: tensor[H], doc: int tensor[B, N], bias: tensor[N, M]) {"
        "  mask doc[b, q_idx] == doc[b, kv_idx]"
        "  score score * slope[h] + bias[q_idx, kv_idx] }"
    )
    placed = plan(text).placement
    names = {scope: [line.name for line in getattr(placed, scope)] for scope in ("program", "own", "walked", "tile")}
    assert names == {"program": ["slope_h"], "own": ["doc_q"], "walked": ["doc_k"], "tile": ["bias_qk"]}
    assert [line.name for line in placed.full_walked + placed.full_tile] == ["bias_qk"]


def test_a_value_used_twice_has_one_name() -> None:
    placed = plan("score sin(score * 2.0) + cos(score * 2.0)").placement
    assert [print_expr(line.value) for line in placed.tile] == ["score * 2.0"]


@pytest.mark.parametrize(
    "mask, strategy, lower, upper",
    [
        ("true", Strategy.CLOSED_FORM, 0, 0),
        ("kv_idx <= q_idx", Strategy.CLOSED_FORM, 0, 1),
        ("kv_idx <= q_idx and q_idx - kv_idx < 9", Strategy.CLOSED_FORM, 1, 1),
        ("kv_idx - q_idx == 3", Strategy.CLOSED_FORM, 1, 1),
    ],
)
def test_bounds_become_a_walk(mask: str, strategy: Strategy, lower: int, upper: int) -> None:
    walk = plan(f"mask {mask}").walk
    assert walk.strategy is strategy
    assert [(len(keys.lower), len(keys.upper), keys.has_full) for keys in walk.ranges] == [(lower, upper, True)]
    assert walk.has_left is bool(lower)


def test_only_a_causal_walk_starts_with_the_last_queries() -> None:
    assert plan("mask kv_idx <= q_idx").walk.ascending
    assert not plan("mask kv_idx <= q_idx and q_idx - kv_idx < 9").walk.ascending
    assert not plan("mask kv_idx >= q_idx").walk.ascending
    assert not plan("mask kv_idx <= 40 - q_idx").walk.ascending


@pytest.mark.parametrize(
    "text, cheap",
    [
        ("mask (q_idx // 16 + kv_idx // 3) % 2 == 0", 3),
        ("mask (q_idx - kv_idx) % 4 == 0", 0),
        ("mask (q_idx + kv_idx) % 4 == 0", 1),
        ("mask kv_idx % -4 == 0", 0),
        ("mask abs(q_idx - kv_idx) % 4 == 0", 1),
        ("mask min(kv_idx, q_idx - 5) % 4 == 0", 0),
        ("mask max(kv_idx, q_idx - 5) % 4 == 0", 1),
        ("mask (kv_idx + -3) // 2 % 4 == 0", 0),
    ],
)
def test_division_is_cheap_only_where_signs_are_known(text: str, cheap: int) -> None:
    assert len(plan(text).cheap_division) == cheap
    assert plan(text, fast=False).cheap_division == frozenset()


def test_the_fast_kernel_counts_in_32_bits() -> None:
    assert plan("mask kv_idx <= q_idx").index is DType.I32
    assert plan("mask kv_idx <= q_idx", fast=False).index is DType.I64


@pytest.mark.parametrize(
    "score, hides",
    [
        ("score", False),
        ("50.0 * tanh(score / 50.0)", False),
        ("score - slope[h] * (q_idx - kv_idx)", False),
        ("score + bias[kv_idx]", True),
        ("score + log(float(kv_idx))", True),
        ("score + 1.0 / float(kv_idx - 3)", True),
        ("score + 1.0 / float(q_idx - 3)", False),
    ],
)
def test_scores_that_may_hide_a_key(score: str, hides: bool) -> None:
    text = f"attention t(slope: tensor[H], bias: tensor[M]) {{ score {score} }}"
    assert plan(text).hides_keys is hides


def test_the_scale_joins_the_exponent_without_score_mods() -> None:
    assert plan("mask kv_idx <= q_idx").scales_late
    assert not plan("mask kv_idx <= q_idx", fast=False).scales_late
    assert not plan("score score + 1.0").scales_late


def test_head_dims_are_padded_to_powers_of_two() -> None:
    assert [padded(size) for size in (1, 16, 17, 64, 65, 80, 192, 256)] == [16, 16, 32, 64, 128, 128, 256, 256]


def test_a_refusal_lists_all_its_reasons() -> None:
    text = "normalizer row_sum(abs(score - row_sum(score))) / row_sum(exp(score - row_sum(abs(score))))"
    with pytest.raises(UnsupportedError) as refused:
        plan(text)
    assert [diagnostic.code for diagnostic in refused.value.diagnostics] == [
        "normalizer-needs-more-passes",
        "normalizer-needs-more-passes",
    ]


def test_names_are_kept_unless_the_kernel_needs_them() -> None:
    users = ["window", "acc", "lambda", "match", "tl", "stride_x", "_floordiv", "acc_"]
    names = kernel_names(users)
    assert names["window"] == "window"
    assert names["acc"] == "acc_"
    assert names["lambda"] == "lambda_"
    assert len(set(names.values())) == len(users)
    assert not set(names.values()) & KERNEL_NAMES
    assert all(name.isidentifier() for name in names.values())


def test_a_plan_reads_as_text() -> None:
    text = describe(plan("attention t(slope: tensor[H]) { mask kv_idx <= q_idx score score * slope[h] }"))
    assert "key <=      q_idx  (rising along the query)" in text
    assert "per program slope_h = slope[h]" in text
