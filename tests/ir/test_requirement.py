"""Requirements in the IR: what they may read, and that the verifier knows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from attndsl.diagnostics import VerifyError
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.requirement import Requirement, strangers
from attndsl.ir.types import DType
from attndsl.ir.verify import verify

(VARIANT,) = parse("attention a(w: int) { mask q_idx < w }")
KNOWN, UNKNOWN = build.scalar("w", DType.I64), build.scalar("v", DType.I64)


def at_least_one(value: Expr) -> Expr:
    return build.apply(Op.GE, value, build.integer(1))


def test_requirements_read_lengths_scalars_and_queries() -> None:
    total = build.apply(Op.ADD, build.apply(Op.ADD, build.Q_LEN, build.KV_LEN), build.apply(Op.MUL, build.Q, KNOWN))
    assert strangers(at_least_one(total)) == ()
    verify(replace(VARIANT, requirements=(Requirement(at_least_one(total), "fine"),)), "a test")


@pytest.mark.parametrize(
    ("condition", "fault"),
    [
        (KNOWN, "a requirement has type i64"),
        (at_least_one(build.K), "a requirement reads kv_idx"),
        (at_least_one(UNKNOWN), "`v` is not declared as a scalar"),
    ],
)
def test_broken_requirements_are_found(condition: Expr, fault: str) -> None:
    with pytest.raises(VerifyError, match=re.escape(fault)):
        verify(replace(VARIANT, requirements=(Requirement(condition, "broken"),)), "a test")


def test_where_it_was_written_is_no_part_of_a_requirement() -> None:
    (variant,) = parse('attention a(w: int) { require w >= 1, "positive" }')
    assert variant.requirements == (Requirement(at_least_one(KNOWN), "positive"),)
    assert variant.requirements[0].span is not None
