"""What conditions simplify to, and what they must not."""

from __future__ import annotations

import pytest
from programs import check_mask, program

from attndsl.ir import build
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.passes.simplify_logic import simplify_logic


@pytest.mark.parametrize(
    "before, after",
    [
        (
            "not (kv_idx > q_idx or h == 0) and (h < 4 if h < 8 else false)",
            "kv_idx <= q_idx and h != 0 and (h < 8 and h < 4)",
        ),
        ("flags[h] and true", "flags[h]"),
        ("flags[h] and false", "false"),
        ("false or flags[h]", "flags[h]"),
        ("true or flags[h]", "true"),
        ("flags[h] and flags[h]", "flags[h]"),
        ("flags[h] and (flags[q_idx] and flags[h])", "flags[h] and flags[q_idx]"),
        ("flags[h] and not flags[h]", "false"),
        ("flags[h] or (flags[q_idx] or not flags[h])", "true"),
        ("flags[h] and (flags[h] or flags[q_idx])", "flags[h]"),
        ("flags[h] or (flags[h] and flags[q_idx])", "flags[h]"),
        ("flags[h] and (not flags[h] or flags[q_idx])", "flags[h] and flags[q_idx]"),
        ("not not flags[h]", "flags[h]"),
        ("not (flags[h] and kv_idx < 3)", "not flags[h] or kv_idx >= 3"),
        ("not (flags[h] == flags[q_idx])", "flags[h] != flags[q_idx]"),
        ("not (slope == 1.0)", "slope != 1.0"),
        ("flags[h] if kv_idx < 3 else flags[q_idx]", "kv_idx < 3 and flags[h] or kv_idx >= 3 and flags[q_idx]"),
        ("true if kv_idx < 3 else flags[q_idx]", "kv_idx < 3 or flags[q_idx]"),
        ("flags[h] if kv_idx < 3 else true", "kv_idx >= 3 or flags[h]"),
        ("flags[h] if kv_idx < 3 else flags[h]", "flags[h]"),
        ("false if kv_idx < 3 else true", "kv_idx >= 3"),
        ("(1 if not flags[h] else 2) == kv_idx", "(2 if flags[h] else 1) == kv_idx"),
        ("bool(h)", "h != 0"),
        ("int(kv_idx < 3) == 1", "kv_idx < 3"),
        ("int(kv_idx < 3) == 0", "kv_idx >= 3"),
        ("int(kv_idx < 3) != 2", "true"),
        ("0 != flags[kv_idx]", "flags[kv_idx]"),
        ("flags[h] ^ true", "not flags[h]"),
        ("flags[h] ^ flags[h]", "false"),
        ("flags[h] == false", "not flags[h]"),
        ("kv_idx == kv_idx", "true"),
        ("kv_idx < kv_idx", "false"),
    ],
)
def test_simplifies(before: str, after: str) -> None:
    check_mask(simplify_logic, before, after)


@pytest.mark.parametrize("mask", ["not (slope < 1.0)", "slope == slope", "slope <= slope", "flags[h] ^ flags[q_idx]"])
def test_leaves_what_a_nan_would_change(mask: str) -> None:
    variant = program(mask=mask)
    assert simplify_logic(variant) is variant


def test_chains_of_choices_stay_linear_in_size() -> None:
    """Each condition is used twice, as it is and negated: expanded without sharing, 60 of them would never end."""
    condition = build.apply(Op.EQ, build.H, build.integer(-1))
    for index in range(60):
        yes, no = (build.apply(Op.LT, build.K, build.integer(index + shift)) for shift in (0, 1000))
        condition = build.apply(Op.NOT, build.apply(Op.WHERE, condition, yes, no))
    variant = program()
    after = simplify_logic(variant.map(lambda root: condition if root is variant.mask else root))
    assert len(list(postorder(after.mask))) <= 5 * len(list(postorder(condition)))
