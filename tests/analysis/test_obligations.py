"""What a call must fulfil: proven where ranges prove it, refused with the pair that breaks it, left open otherwise."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Case, cases
from torch import Tensor

from attndsl.analysis.obligations import Kind, Layout, Verdict, call_box, check_call
from attndsl.frontend import normalizers
from attndsl.frontend.builder import Builder
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import DType
from attndsl.ir.variant import ScalarParam, TensorParam, Variant
from attndsl.runtime.checks import settle
from attndsl.runtime.known import known_values, layouts

op = build.apply
number = build.integer
distance = op(Op.SUB, build.Q, build.K)
causal = op(Op.LE, build.K, build.Q)
Value = int | float | Tensor


def variant(mask: Expr = build.TRUE, score: Expr = build.SCORE, **params: DType | TensorParam) -> Variant:
    made = tuple(p if isinstance(p, TensorParam) else ScalarParam(name, p) for name, p in params.items())
    return Variant("v", made, score, mask, normalizers.softmax(Builder()), build.WEIGHT)


def table(name: str, *indices: Expr, dtype: DType = DType.F32) -> tuple[TensorParam, Expr]:
    return TensorParam(name, dtype, tuple("XYZ"[: len(indices)])), build.load(name, indices, dtype)


def plus(load: Expr) -> Expr:
    return op(Op.ADD, build.SCORE, load)


def verdict(program: Variant, values: dict[str, Value], q_len: int = 64, kv_len: int = 64, offset: int = 0) -> Verdict:
    place = call_box(2, 4, q_len, kv_len, (offset, offset))
    return check_call(program, place, known_values(program, values), layouts(program, values))


def codes(found: Verdict) -> list[str]:
    return [refusal.code for refusal in found.refusals]


def settled(program: Variant, found: Verdict, values: dict[str, Value], q_len: int = 64, kv_len: int = 64) -> list[str]:
    broken = settle(program, found.undecided, values, batch=2, heads=4, q_len=q_len, kv_len=kv_len)
    return [diagnostic.code for diagnostic in broken]


def test_a_relative_table_is_in_bounds_under_a_causal_mask() -> None:
    param, load = table("rel", distance)
    program = variant(causal, plus(load), rel=param)
    found = verdict(program, {"rel": torch.zeros(64)})
    assert found == Verdict(reads_in_bounds=False)
    assert codes(verdict(program, {"rel": torch.zeros(63)})) == ["index-out-of-bounds"]


def test_a_relative_table_without_a_mask_reads_negative_indices() -> None:
    param, load = table("rel", distance)
    found = verdict(variant(score=plus(load), rel=param), {"rel": torch.zeros(64)})
    assert codes(found) == ["index-negative"]
    text = str(found.refusals[0])
    assert "index `q_idx - kv_idx` of `rel` leaves dimension 0, which has size 64" in text
    assert "it is -63 at b = 0, h = 0, q_idx = 0, kv_idx = 63" in text


def test_a_branch_not_taken_reads_nothing() -> None:
    param, load = table("rel", distance)
    branch = op(Op.WHERE, causal, load, build.real(0.0))
    assert not verdict(variant(score=plus(branch), rel=param), {"rel": torch.zeros(64)}).refusals
    other = op(Op.WHERE, op(Op.GT, build.K, build.Q), build.real(0.0), load)
    assert not verdict(variant(score=plus(other), rel=param), {"rel": torch.zeros(64)}).refusals
    wrong = op(Op.WHERE, causal, build.real(0.0), load)
    assert codes(verdict(variant(score=plus(wrong), rel=param), {"rel": torch.zeros(64)})) == ["index-negative"]


def test_a_node_reached_in_two_ways_must_be_right_in_both() -> None:
    param, load = table("rel", distance)
    near = op(Op.AND, causal, op(Op.LT, distance, number(8)))
    one = op(Op.WHERE, near, load, build.real(0.0))
    two = op(Op.WHERE, causal, load, build.real(0.0))
    program = variant(score=plus(op(Op.ADD, one, two)), rel=param)
    assert not verdict(program, {"rel": torch.zeros(64)}).refusals
    assert codes(verdict(program, {"rel": torch.zeros(8)})) == ["index-out-of-bounds"]


def test_left_operands_guard_right_ones() -> None:
    param, load = table("flags", distance, dtype=DType.BOOL)
    flags = torch.ones(64, dtype=torch.bool)
    assert not verdict(variant(op(Op.AND, causal, load), flags=param), {"flags": flags}).refusals
    late = op(Op.OR, op(Op.GT, build.K, build.Q), load)
    assert not verdict(variant(late, flags=param), {"flags": flags}).refusals
    assert codes(verdict(variant(op(Op.AND, load, causal), flags=param), {"flags": flags})) == ["index-negative"]


def test_captured_indices_are_proven_from_their_values() -> None:
    (ids, doc), values = table("doc", build.Q, dtype=DType.I64), torch.tensor([0, 3, 1, 2] * 16)
    bias, load = table("bias", doc)
    program = variant(score=plus(load), doc=ids, bias=bias)
    found = verdict(program, {"doc": values, "bias": torch.zeros(4)})
    assert found == Verdict()
    assert verdict(program, {"doc": values, "bias": torch.zeros(3)}).undecided
    short = verdict(program, {"doc": values, "bias": torch.zeros(3)})
    assert settled(program, short, {"doc": values, "bias": torch.zeros(3)}) == ["index-out-of-bounds"]


def test_what_ranges_leave_open_is_settled_on_live_pairs() -> None:
    param, load = table("rel", op(Op.MOD, op(Op.MUL, distance, number(3)), number(8)))
    program = variant(causal, plus(load), rel=param)
    values: dict[str, Value] = {"rel": torch.zeros(8)}
    assert not verdict(program, values).refusals
    assert not verdict(program, values).undecided
    even = variant(op(Op.EQ, op(Op.MOD, distance, number(2)), number(0)), plus(load), rel=param)
    values = {"rel": torch.zeros(7)}
    found = verdict(even, values)
    assert [o.kind for o in found.undecided] == [Kind.INDEX]
    assert not found.refusals
    # 3 * distance % 8 is 7 only where the distance is odd.
    assert settled(even, found, values) == []
    values = {"rel": torch.zeros(6)}
    assert settled(even, verdict(even, values), values) == ["index-out-of-bounds"]


def test_what_is_settled_names_the_pair() -> None:
    param, load = table("rel", op(Op.MOD, distance, number(300)))
    odd = variant(op(Op.EQ, distance, number(299)), plus(load), rel=param)
    values: dict[str, Value] = {"rel": torch.zeros(299)}
    found = verdict(odd, values, 310, 310)
    broken = settle(odd, found.undecided, values, batch=2, heads=4, q_len=310, kv_len=310, q_offset=0)
    (diagnostic,) = (*found.refusals, *broken)
    assert "q_idx = 299, kv_idx = 0" in str(diagnostic)


def test_division_by_a_scalar_zero() -> None:
    width = build.scalar("width", DType.I64)
    mask = op(Op.EQ, op(Op.FLOORDIV, build.Q, width), number(0))
    program = variant(mask, width=DType.I64)
    assert codes(verdict(program, {"width": 0})) == ["division-by-zero"]
    assert verdict(program, {"width": 3}) == Verdict()
    assert verdict(program, {"width": -3}) == Verdict(nonneg=False)
    guarded = op(Op.AND, op(Op.GT, width, number(0)), mask)
    assert not verdict(variant(guarded, width=DType.I64), {"width": 0}).refusals


def test_shifts_stay_within_a_word() -> None:
    shift = op(Op.SHR, build.Q, op(Op.SUB, build.Q, number(1)))
    program = variant(op(Op.EQ, shift, number(0)))
    assert codes(verdict(program, {})) == ["shift-out-of-range"]
    assert not verdict(variant(op(Op.EQ, op(Op.SHR, build.Q, build.H), number(0))), {}).refusals


def test_integers_stay_within_64_bits() -> None:
    big = op(Op.MUL, op(Op.MUL, build.Q, number(2**32)), op(Op.MUL, build.Q, number(2**26)))
    program = variant(op(Op.GT, big, number(5)))
    assert codes(verdict(program, {})) == ["integer-overflow"]
    assert not verdict(program, {}, q_len=2).refusals
    shifted = op(Op.GT, op(Op.ADD, op(Op.SHL, build.Q, number(40)), number(1)), number(5))
    assert verdict(variant(shifted), {}) == Verdict(fits_int32=False)


def test_an_index_computed_from_the_score_must_be_bounded() -> None:
    raw = op(Op.TO_INT, build.SCORE)
    param, load = table("bins", raw)
    found = verdict(variant(score=plus(load), bins=param), {"bins": torch.zeros(8)})
    assert codes(found) == ["index-out-of-bounds"]
    assert "it depends on the score" in str(found.refusals[0])
    param, load = table("bins", op(Op.MIN, op(Op.MAX, raw, number(0)), number(7)))
    assert not verdict(variant(score=plus(load), bins=param), {"bins": torch.zeros(8)}).refusals


def test_a_sink_is_read_in_rows_without_live_keys() -> None:
    param, load = table("sinks", build.Q)
    gate = op(Op.LT, build.Q, number(8))
    program = Variant("v", (param,), build.SCORE, gate, normalizers.softmax(Builder(), load), build.WEIGHT)
    assert codes(verdict(program, {"sinks": torch.zeros(8)})) == ["index-out-of-bounds"]
    assert verdict(program, {"sinks": torch.zeros(64)}) == Verdict()


def test_width_and_signs_are_facts() -> None:
    assert verdict(variant(causal), {}) == Verdict()
    assert not verdict(variant(causal), {}, offset=-5).nonneg
    assert not verdict(variant(causal), {}, q_len=2**31 + 5).fits_int32
    param, load = table("bias", build.Q, build.K)
    program = variant(score=plus(load), bias=param)
    place = call_box(1, 1, 64, 64)
    wide = check_call(program, place, known_values(program, {}), {"bias": Layout((64, 64), (2**26, 1))})
    assert not wide.fits_int32
    assert wide.reads_in_bounds


def test_no_pairs_no_obligations() -> None:
    param, load = table("rel", distance)
    assert verdict(variant(score=plus(load), rel=param), {"rel": torch.zeros(0)}, kv_len=0) == Verdict()


@given(cases(max_length=33), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_right_programs_are_not_refused(case: Case, shorter: int) -> None:
    """Random programs read in bounds; what ranges leave open evaluation settles in their favour."""
    offset = int(case.q_offset)
    place = call_box(case.batch, case.q_heads, case.q_len, case.kv_len, (offset, offset))
    values = dict(case.values)
    found = check_call(case.variant, place, known_values(case.variant, values), layouts(case.variant, values))
    assert not found.refusals
    assert not settle(case.variant, found.undecided, values, **{**case.grid, "q_offset": offset})
