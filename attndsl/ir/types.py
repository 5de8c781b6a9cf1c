"""The types of values and the coordinates they are written over."""

from __future__ import annotations

from enum import Enum


class Member(Enum):
    """An enum whose members hash by identity: they are keys everywhere, and Python's own hash of them is a call."""

    __hash__ = object.__hash__


class DType(Member):
    """The type of an expression.

    Front ends build integers as `I64`, the mathematical integers of a program; `I32` is the width a kernel computes
    them in where the launcher has proven that they fit. `F32` is the computing type of floats: float32 in kernels,
    float64 in a reference called with float64 inputs.
    """

    BOOL = "bool"
    I32 = "i32"
    I64 = "i64"
    F32 = "f32"

    @property
    def is_int(self) -> bool:
        return self in (DType.I32, DType.I64)

    @property
    def is_float(self) -> bool:
        return self is DType.F32

    @property
    def is_bool(self) -> bool:
        return self is DType.BOOL

    @property
    def word(self) -> str:
        """The type as the text language spells it."""
        return {"bool": "bool", "f32": "float"}.get(self.value, "int")


class Axis(Member):
    """What a value can vary along."""

    B = "b"
    H = "h"
    Q = "q"
    K = "k"


class Coordinate(Member):
    """The coordinates of a (query, key) pair and the two lengths; the value is the name users write.

    `q_idx` counts from `q_offset`; `kv_idx` from 0; `h` is the query head.
    """

    B = "b"
    H = "h"
    Q_IDX = "q_idx"
    KV_IDX = "kv_idx"
    Q_LEN = "q_len"
    KV_LEN = "kv_len"


AXIS_OF: dict[Coordinate, Axis] = {
    Coordinate.B: Axis.B,
    Coordinate.H: Axis.H,
    Coordinate.Q_IDX: Axis.Q,
    Coordinate.KV_IDX: Axis.K,
}


class Flow(Member):
    """The value that flows into a stage: the scaled dot product into scores, the normalized weight into weight mods.

    `THRESHOLD` is what a `Solve` solves for. `DWEIGHT`, which only derivations write, is the derivative of what is
    differentiated by the final weight of a pair: the product of the output's gradient with the value of the key.
    """

    SCORE = "score"
    WEIGHT = "weight"
    THRESHOLD = "threshold"
    DWEIGHT = "dweight"


class Reduction(Member):
    """A statistic over the live keys of a row."""

    MAX = "row_max"
    SUM = "row_sum"
