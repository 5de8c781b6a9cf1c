"""The typed constructors take what the operator table says, and nothing else."""

from __future__ import annotations

import itertools

import pytest

from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import FACTS, Op, OpFacts, Result, facts
from attndsl.ir.types import DType, Reduction

OPERANDS: dict[DType, Expr] = {
    DType.BOOL: build.load("flags", (build.Q,), DType.BOOL),
    DType.I64: build.Q,
    DType.F32: build.SCORE,
}


def test_every_operator_has_a_row() -> None:
    assert set(FACTS) == set(Op)


def result(row: OpFacts, operand: DType) -> DType:
    fixed = {Result.BOOL: DType.BOOL, Result.INT: DType.I64, Result.FLOAT: DType.F32}
    return fixed.get(row.result, operand)


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_an_operator_takes_the_types_of_its_row(op: Op) -> None:
    row = facts(op)
    for types in itertools.product(OPERANDS, repeat=row.arity):
        typed = types[1:] if op is Op.WHERE else types
        legal = len(set(typed)) == 1 and typed[0] in row.operands and (op is not Op.WHERE or types[0] is DType.BOOL)
        operands = [OPERANDS[dtype] for dtype in types]
        if legal:
            assert build.apply(op, *operands).dtype is result(row, typed[0])
        else:
            with pytest.raises(VerifyError, match=f"{op.name} does not take"):
                build.apply(op, *operands)


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_an_operator_takes_as_many_operands_as_its_row_says(op: Op) -> None:
    row = facts(op)
    dtype = next(dtype for dtype in OPERANDS if dtype in row.operands)
    for count in (0, row.arity - 1, row.arity + 1):
        if count != row.arity:
            with pytest.raises(VerifyError):
                build.apply(op, *[OPERANDS[dtype]] * count)


def test_indices_are_integers() -> None:
    assert build.load("t", (), DType.F32).indices == ()
    with pytest.raises(VerifyError, match="`t` is indexed by"):
        build.load("t", (build.Q, build.SCORE), DType.F32)


def test_statistics_are_of_floats() -> None:
    with pytest.raises(VerifyError, match="row_max of i64"):
        build.row(Reduction.MAX, build.Q)


def test_junctions_of_none_one_and_more() -> None:
    left, right = OPERANDS[DType.BOOL], build.apply(Op.LE, build.K, build.Q)
    assert build.conjunction([]) is build.TRUE
    assert build.disjunction([]) is build.FALSE
    assert build.conjunction([left]) is left
    assert build.disjunction((left, right)) is build.apply(Op.OR, left, right)
    assert build.conjunction((left, right, left)) is build.apply(Op.AND, build.apply(Op.AND, left, right), left)
