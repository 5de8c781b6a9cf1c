"""Constants fold where every target agrees on the value, and nowhere else."""

from __future__ import annotations

import pytest
from programs import check_mask, check_score, program

from attndsl.ir import build
from attndsl.ir.nodes import Const
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import rewrite
from attndsl.passes.fold_constants import _fold, fold_constants


@pytest.mark.parametrize(
    "before, after",
    [
        ("q_idx - kv_idx < 4 * 256", "q_idx - kv_idx < 1024"),
        ("kv_idx < -7 // 2", "kv_idx < -4"),
        ("kv_idx < -7 % 4", "kv_idx < 1"),
        ("kv_idx < 1 << 4", "kv_idx < 16"),
        ("kv_idx < bit_length(12) + min(3, 4)", "kv_idx < 7"),
        ("h == 0 and 1 < 2", "h == 0 and true"),
        ("kv_idx < (3 if 1 == 1 else q_idx)", "kv_idx < 3"),
        ("kv_idx < int(2.5)", "kv_idx < 2"),
        ("flags[h] if false else flags[q_idx]", "flags[q_idx]"),
    ],
)
def test_folds(before: str, after: str) -> None:
    check_mask(fold_constants, before, after)


@pytest.mark.parametrize(
    "before, after",
    [
        ("score * (0.5 * 4.0)", "score * 2.0"),
        ("score + float(3)", "score + 3.0"),
        ("score * (1.0 / 8.0)", "score * 0.125"),
        ("score + max(-1.0, abs(-2.0))", "score + 2.0"),
        ("score if 1.5 < 2.0 else 0.0", "score"),
    ],
)
def test_folds_floats(before: str, after: str) -> None:
    check_score(fold_constants, before, after)


@pytest.mark.parametrize(
    "score",
    ["score * (1.0 / 3.0)", "score * (0.1 + 0.2)", "score * exp(1.0)", "score * 2.0 ** 0.5", "score + 7.5 // 2.0"],
)
def test_leaves_floats_that_round(score: str) -> None:
    variant = program(score=score)
    assert fold_constants(variant) is variant


def real(value: float) -> Const:
    return build.real(value)


def integer(value: int) -> Const:
    return build.integer(value)


@pytest.mark.parametrize(
    "node",
    [
        build.apply(Op.FLOORDIV, integer(3), integer(0)),
        build.apply(Op.MOD, integer(3), integer(0)),
        build.apply(Op.DIV, real(1.0), real(0.0)),
        build.apply(Op.ADD, integer(2**63 - 1), integer(1)),
        build.apply(Op.NEG, integer(-(2**63))),
        build.apply(Op.ABS, integer(-(2**63))),
        build.apply(Op.SHL, integer(1), integer(64)),
        build.apply(Op.SHL, integer(1), integer(63)),
        build.apply(Op.SHR, integer(1), integer(-1)),
        build.apply(Op.SUB, real(float("inf")), real(float("inf"))),
        build.apply(Op.MAX, real(float("nan")), real(1.0)),
        build.apply(Op.MIN, real(0.0), real(-0.0)),
        build.apply(Op.TO_INT, real(float("inf"))),
        build.apply(Op.LT, real(0.1), real(0.2)),
        build.apply(Op.MUL, real(2.0**100), real(2.0**100)),
        build.apply(Op.MUL, real(2.0**-100), real(2.0**-100)),
        build.apply(Op.TO_FLOAT, integer(2**24 + 1)),
    ],
    ids=str,
)
def test_leaves_what_has_no_exact_value(node: object) -> None:
    assert rewrite(node, _fold) is node  # type: ignore[arg-type]


def test_keeps_the_sign_of_zero() -> None:
    assert rewrite(build.apply(Op.NEG, real(0.0)), _fold) is real(-0.0)
    assert rewrite(build.apply(Op.ADD, real(-0.0), real(0.0)), _fold) is real(0.0)


def test_constants_keep_their_type() -> None:
    assert rewrite(build.apply(Op.TO_INT, build.TRUE), _fold) is integer(1)
    assert rewrite(build.apply(Op.TO_FLOAT, build.TRUE), _fold) is real(1.0)
    assert rewrite(build.apply(Op.TO_BOOL, real(float("inf"))), _fold) is build.TRUE
