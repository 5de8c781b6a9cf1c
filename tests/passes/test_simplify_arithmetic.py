"""Identities of integers go; of floats only those that hold to the bit."""

from __future__ import annotations

import itertools
import struct

import pytest
import torch
from programs import check_mask, check_score, program

from attndsl.passes.simplify_arithmetic import FLOAT_NEUTRAL_RIGHT, simplify_arithmetic

SPECIAL = [0.0, -0.0, 1.0, -1.5, 1e-45, -1e-45, 1e-38, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize(
    "before, after",
    [
        ("kv_idx * 1 + 0 <= max(q_idx, q_idx)", "kv_idx <= q_idx"),
        ("0 + kv_idx - 0 <= 1 * q_idx", "kv_idx <= q_idx"),
        ("kv_idx * 0 <= q_idx", "0 <= q_idx"),
        ("kv_idx // 1 <= q_idx % 1", "kv_idx <= 0"),
        ("0 - kv_idx <= q_idx * -1", "-kv_idx <= -q_idx"),
        ("-(-kv_idx) <= ~(~q_idx)", "kv_idx <= q_idx"),
        ("kv_idx - kv_idx <= q_idx ^ q_idx", "0 <= 0"),
        ("(kv_idx & -1) <= (q_idx | 0)", "kv_idx <= q_idx"),
        ("(kv_idx & 0) <= (q_idx & q_idx)", "0 <= q_idx"),
        ("kv_idx << 0 <= q_idx >> 0", "kv_idx <= q_idx"),
        ("abs(abs(kv_idx)) <= abs(-q_idx)", "abs(kv_idx) <= abs(q_idx)"),
        ("kv_idx <= (q_idx if h == 0 else q_idx)", "kv_idx <= q_idx"),
    ],
)
def test_integers(before: str, after: str) -> None:
    check_mask(simplify_arithmetic, before, after)


@pytest.mark.parametrize(
    "before, after",
    [
        ("1.0 * score * 1.0", "score"),
        ("score / 1.0 - 0.0 + -0.0", "score"),
        ("-(-score)", "score"),
        ("max(score, score)", "score"),
        ("score if h == 0 else score", "score"),
        ("abs(-score)", "abs(score)"),
    ],
)
def test_floats(before: str, after: str) -> None:
    check_score(simplify_arithmetic, before, after)


@pytest.mark.parametrize("score", ["score + 0.0", "score * 0.0", "score - score", "score / score", "0.0 - score"])
def test_leaves_floats_that_would_change(score: str) -> None:
    variant = program(score=score)
    assert simplify_arithmetic(variant) is variant


@pytest.mark.parametrize("op", FLOAT_NEUTRAL_RIGHT, ids=lambda op: op.name)
def test_neutral_floats_are_neutral_to_the_bit(op: object) -> None:
    function = {"ADD": torch.add, "SUB": torch.sub, "MUL": torch.mul, "DIV": torch.div}[op.name]  # type: ignore[attr-defined]
    for value, dtype in itertools.product(SPECIAL, (torch.float32, torch.float64)):
        given = torch.tensor(value, dtype=dtype)
        neutral = torch.tensor(FLOAT_NEUTRAL_RIGHT[op], dtype=dtype)  # type: ignore[index]
        assert struct.pack("<d", function(given, neutral).item()) == struct.pack("<d", given.item()), value
