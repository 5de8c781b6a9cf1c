"""Every rule of the IR has a program that breaks it; the error names the pass and marks the node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attndsl.diagnostics import VerifyError
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Load, Scalar, intern
from attndsl.ir.ops import Op
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import ScalarParam, TensorParam, Variant
from attndsl.ir.verify import verify

(SOUND,) = parse("""
attention sound(window: int = 4, slopes: tensor[H]) {
    score  score * 0.5 + slopes[h]
    mask   q_idx - kv_idx < window
    weight weight * 2.0
}
""")
WINDOW = build.scalar("window", DType.I64)
MASKED = build.apply(Op.LE, build.K, WINDOW)
SLOPE = build.load("slopes", (build.H,), DType.F32)


def score(root: Expr) -> Variant:
    return replace(SOUND, score=root)


def mask(root: Expr) -> Variant:
    return replace(SOUND, mask=root)


def params(*declared: ScalarParam | TensorParam) -> Variant:
    return replace(SOUND, params=(*SOUND.params, *declared))


BROKEN = {
    "score reads the weight": (score(build.WEIGHT), "the score reads the weight"),
    "score reduces": (score(build.row(Reduction.MAX, build.SCORE)), "the score contains row_max"),
    "score of another type": (score(build.Q), "the score has type i64, expected f32"),
    "mask reads the score": (
        mask(build.apply(Op.LT, build.SCORE, build.real(0.0))),
        "the mask reads the score",
    ),
    "mask reduces": (
        mask(build.apply(Op.LT, build.row(Reduction.SUM, SLOPE), build.real(0.0))),
        "the mask contains row_sum",
    ),
    "mask of another type": (mask(build.Q), "the mask has type i64, expected bool"),
    "normalizer reads the weight": (replace(SOUND, normalizer=build.WEIGHT), "the normalizer reads the weight"),
    "weight reads the score": (replace(SOUND, weight=build.SCORE), "the weight reads the score"),
    "weight reduces": (
        replace(SOUND, weight=build.row(Reduction.SUM, build.WEIGHT)),
        "the weight contains row_sum",
    ),
    "operands of two types": (
        mask(intern(Apply, Op.LE, (build.K, build.SCORE), DType.BOOL)),
        "LE does not take (i64, f32)",
    ),
    "wrong arity": (mask(intern(Apply, Op.AND, (MASKED,), DType.BOOL)), "AND does not take (bool)"),
    "mistyped result": (
        score(intern(Apply, Op.ADD, (build.Q, build.K), DType.F32)),
        "the node is not the one `ir.build` makes of its fields",
    ),
    "not interned": (
        mask(Apply(Op.LE, (build.K, WINDOW), DType.BOOL)),
        "the node is not the one `ir.build` makes of its fields",
    ),
    "float index": (
        score(intern(Load, "slopes", (build.SCORE,), DType.F32)),
        "`slopes` is indexed by ['f32'], expected integers",
    ),
    "undeclared scalar": (
        mask(build.apply(Op.LE, build.K, build.scalar("w", DType.I64))),
        "`w` is not declared as a scalar",
    ),
    "scalar of another type": (
        score(intern(Scalar, "window", DType.F32)),
        "scalar `window` is declared i64 and used as f32",
    ),
    "tensor used as a scalar": (score(build.scalar("slopes", DType.F32)), "`slopes` is not declared as a scalar"),
    "undeclared tensor": (
        score(build.load("t", (build.H,), DType.F32)),
        "`t` is not declared as a tensor",
    ),
    "tensor of another type": (
        mask(build.load("slopes", (build.H,), DType.BOOL)),
        "tensor `slopes` is declared f32 and used as bool",
    ),
    "rank": (
        score(build.load("slopes", (build.B, build.H), DType.F32)),
        "tensor `slopes` has 1 dimension(s) and 2 index(es)",
    ),
    "constant too large": (
        mask(build.apply(Op.LE, build.K, build.integer(2**63))),
        "constant 9223372036854775808 does not fit in 64 bits",
    ),
    "mistyped constant": (
        score(intern(Const, 1, DType.F32)),
        "constant 1 is typed f32",
    ),
    "two parameters of one name": (params(ScalarParam("slopes", DType.F32)), "2 parameters are named `slopes`"),
    "bool scalar": (params(ScalarParam("flag", DType.BOOL)), "scalar `flag` has type bool, expected i64 or f32"),
    "default of another type": (
        params(ScalarParam("n", DType.I64, 0.5)),
        "the default of `n` is 0.5, expected int",
    ),
    "narrow tensor": (
        params(TensorParam("t", DType.I32, ("N",))),
        "tensor `t` has type i32, expected bool, i64 or f32",
    ),
}


def test_a_sound_program_passes() -> None:
    verify(SOUND, "parse")


@pytest.mark.parametrize("variant, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_named(variant: Variant, message: str) -> None:
    with pytest.raises(VerifyError) as caught:
        verify(variant, "some_pass")
    assert message in str(caught.value)
    assert str(caught.value).startswith("`sound` breaks ")
    assert "after `some_pass`" in str(caught.value).splitlines()[0]


def test_all_faults_are_reported_together() -> None:
    variant = replace(SOUND, score=build.WEIGHT, weight=build.SCORE)
    with pytest.raises(VerifyError, match="breaks 2 rule"):
        verify(variant, "some_pass")


def test_the_node_is_marked_in_the_text() -> None:
    with pytest.raises(VerifyError) as caught:
        verify(mask(build.apply(Op.LE, build.K, build.scalar("undeclared", DType.I64))), "some_pass")
    lines = str(caught.value).splitlines()
    at = next(index for index, line in enumerate(lines) if "kv_idx <= undeclared" in line)
    column = lines[at].index("undeclared")
    assert lines[at + 1] == " " * column + "^" * len("undeclared")


def test_the_node_is_marked_where_no_text_can_be_written() -> None:
    with pytest.raises(VerifyError) as caught:
        verify(mask(intern(Apply, Op.AND, (MASKED,), DType.BOOL)), "some_pass")
    (marked,) = [line for line in str(caught.value).splitlines() if "<--" in line]
    assert "= and(%" in marked
    assert marked.endswith("<-- AND does not take (bool)")
