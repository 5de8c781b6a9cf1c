"""Which branches of a score become mask."""

from __future__ import annotations

import pytest
from programs import program

from attndsl.ir.printer import print_expr
from attndsl.passes.mask_dead_scores import mask_dead_scores


@pytest.mark.parametrize(
    "score, expected_score, expected_mask",
    [
        ("score * 2.0 if kv_idx <= q_idx else -inf", "score * 2.0", "kv_idx <= q_idx"),
        ("-inf if kv_idx > q_idx else score", "score", "kv_idx <= q_idx"),
        ("(score if h < 2 else -inf) if kv_idx <= q_idx else -inf", "score", "kv_idx <= q_idx and h < 2"),
        (
            "(score * 2.0 if h < 2 else -inf) if kv_idx <= q_idx else score",
            "score * 2.0 if kv_idx <= q_idx else score",
            "kv_idx > q_idx or h < 2",
        ),
        ("score + (0.0 if kv_idx <= q_idx else -inf)", "score + 0.0", "kv_idx <= q_idx"),
        ("(bias[q_idx] if kv_idx <= q_idx else -inf) + score", "bias[q_idx] + score", "kv_idx <= q_idx"),
        (
            "(score if h < 2 else -inf) + (0.0 if kv_idx <= q_idx else -inf)",
            "score + 0.0",
            "h < 2 and kv_idx <= q_idx",
        ),
        (
            "(0.0 if kv_idx <= q_idx else -inf) - float(q_idx - kv_idx)",
            "0.0 - float(q_idx - kv_idx)",
            "kv_idx <= q_idx",
        ),
        ("-inf", "score", "false"),
        ("-inf if flags[h] else -inf", "score", "false"),
    ],
)
def test_moves_into_the_mask(score: str, expected_score: str, expected_mask: str) -> None:
    after = mask_dead_scores(program(score=score))
    assert (print_expr(after.score), print_expr(after.mask)) == (expected_score, expected_mask)
    assert mask_dead_scores(after) is after


def test_keeps_the_mask_there_was() -> None:
    after = mask_dead_scores(program(mask="h < 2", score="score if kv_idx <= q_idx else -inf"))
    assert print_expr(after.mask) == "h < 2 and kv_idx <= q_idx"


@pytest.mark.parametrize(
    "score",
    [
        "score if score > 0.0 else -inf",
        "bias[q_idx] + (0.0 if kv_idx <= q_idx else -inf)",
        "slope + (0.0 if kv_idx <= q_idx else -inf)",
        "exp(score) + (0.0 if kv_idx <= q_idx else -inf)",
        "score * (0.0 if kv_idx <= q_idx else -inf)",
        "score - (0.0 if kv_idx <= q_idx else -inf)",
        "max(score, score if kv_idx <= q_idx else -inf)",
        "score + (0.0 if kv_idx <= q_idx else -1.0e30)",
        "score if kv_idx <= q_idx else 0.0",
    ],
)
def test_leaves_what_may_not_be_dead(score: str) -> None:
    """Not finite by construction, not minus infinity, or not known before the score is."""
    variant = program(score=score)
    assert mask_dead_scores(variant) is variant
