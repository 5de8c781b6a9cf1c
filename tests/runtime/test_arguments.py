"""Calls that fit, and the limits of what fits; the messages of what does not are goldens beside `test_errors.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attndsl.diagnostics import CallError
from attndsl.frontend.parse import parse
from attndsl.ir.types import DType
from attndsl.ir.variant import Variant
from attndsl.runtime.arguments import Call, check_call, check_plan, kind_of

PLAIN = "attention a {}"
CAPTURES = """
attention a(f: tensor[H], i: int tensor[B, N], c: bool tensor[]) {
    mask   i[b, q_idx] > 0 and c
    score  score + f[h]
}
"""


def one(source: str = PLAIN) -> Variant:
    (variant,) = parse(source)
    return variant


def call(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, **how: Any) -> Call:
    q, k, v = (torch.zeros(shape, dtype=dtype) for shape in shapes)
    return check_call(one(), {}, q, k, v, **how)


def codes(*args: Any, **how: Any) -> list[str]:
    with pytest.raises(CallError) as caught:
        call(*args, **how)
    return [diagnostic.code for diagnostic in caught.value.diagnostics]


SAME = ((2, 4, 5, 16), (2, 4, 7, 16), (2, 4, 7, 32))


def test_the_sizes_of_a_call() -> None:
    found = call((2, 6, 5, 16), (2, 3, 7, 16), (2, 3, 7, 32), enable_gqa=True)
    assert (found.batch, found.heads, found.kv_heads, found.q_len, found.kv_len) == (2, 6, 3, 5, 7)
    assert (found.head_dim, found.v_head_dim) == (16, 32)


def test_scale() -> None:
    assert call(*SAME).scale == 0.25
    assert call(*SAME, scale=-2).scale == -2.0
    assert call(*SAME, scale=0.0).scale == 0.0
    assert call(*SAME, scale=np.float32(0.5)).scale == 0.5
    for wrong in (float("inf"), True, "1", torch.tensor(1.0), 1j, [1.0]):
        assert codes(*SAME, scale=wrong) == ["bad-scale"]


def test_offsets() -> None:
    assert call(*SAME).q_offset == 0
    assert call(*SAME, q_offset=-(2**62)).q_offset == -(2**62)
    assert type(call(*SAME, q_offset=np.int64(3)).q_offset) is int
    for dtype in (torch.int8, torch.int32, torch.int64):
        tensor = torch.zeros(2, dtype=dtype)
        assert call(*SAME, q_offset=tensor).q_offset is tensor
    for wrong in (1.0, True, None, "0", torch.zeros(2), torch.zeros(2, dtype=torch.bool), torch.tensor(0)):
        assert codes(*SAME, q_offset=wrong) == ["bad-offset"]
    assert codes(*SAME, q_offset=2**62 + 1) == ["offset-too-large"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_taken(dtype: torch.dtype) -> None:
    assert call(*SAME, dtype=dtype).q.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_other_elements_are_not(dtype: torch.dtype) -> None:
    assert codes(*SAME, dtype=dtype) == ["wrong-dtype"] * 3


@pytest.mark.parametrize(
    "q_heads, kv_heads, enable_gqa, expected",
    [
        (4, 2, True, []),
        (4, 1, True, []),
        (0, 0, False, []),
        (0, 2, True, []),
        (4, 2, False, ["heads-mismatch"]),
        (4, 3, True, ["heads-do-not-divide"]),
        (2, 4, True, ["heads-do-not-divide"]),
        (2, 0, True, ["heads-do-not-divide"]),
        (2, 0, False, ["heads-mismatch"]),
    ],
)
def test_heads(q_heads: int, kv_heads: int, enable_gqa: bool, expected: list[str]) -> None:
    shapes = ((1, q_heads, 5, 8), (1, kv_heads, 5, 8), (1, kv_heads, 5, 8))
    if expected:
        assert codes(*shapes, enable_gqa=enable_gqa) == expected
    else:
        assert call(*shapes, enable_gqa=enable_gqa).heads == q_heads


def captured(**values: Any) -> list[str]:
    good = {"f": torch.zeros(2), "i": torch.zeros(1, 5, dtype=torch.int64), "c": torch.tensor(True)}
    q = torch.zeros(1, 2, 5, 8)
    try:
        check_call(one(CAPTURES), {**good, **values}, q, q, q)
    except CallError as error:
        return [diagnostic.code for diagnostic in error.diagnostics]
    return []


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, []),
        ({"f": torch.zeros(2, dtype=torch.bfloat16), "i": torch.zeros(1, 5, dtype=torch.uint8)}, []),
        ({"f": 1.0}, ["not-a-tensor"]),
        ({"f": torch.zeros(1, 2), "i": torch.zeros(5, dtype=torch.int64)}, ["tensor-rank", "tensor-rank"]),
        ({"f": torch.zeros(2, dtype=torch.int64), "c": torch.tensor(1)}, ["tensor-dtype", "tensor-dtype"]),
        ({"f": torch.zeros(2, 2, dtype=torch.bool, device="meta")}, ["tensor-rank", "tensor-dtype", "mixed-devices"]),
    ],
)
def test_captured_tensors(values: dict[str, Any], expected: list[str]) -> None:
    assert captured(**values) == expected


def test_kinds_of_elements() -> None:
    assert kind_of(torch.bool) is DType.BOOL
    assert kind_of(torch.uint8) is kind_of(torch.int64) is DType.I64
    assert kind_of(torch.bfloat16) is kind_of(torch.float64) is DType.F32
    assert kind_of(torch.complex64) is None


def plan(q_len: Any = 8, kv_len: Any = 8, **how: Any) -> list[str]:
    arguments = {"batch": 1, "heads": 1, "block": (128, 128), "q_offset": 0, **how}
    try:
        check_plan(q_len, kv_len, **arguments)
    except CallError as error:
        return [diagnostic.code for diagnostic in error.diagnostics]
    return []


@pytest.mark.parametrize(
    "how, expected",
    [
        ({}, []),
        ({"q_len": 0, "kv_len": 2**31 - 1, "batch": 0, "heads": 0}, []),
        ({"block": [16, 1], "q_offset": np.int64(-5)}, []),
        ({"batch": 2, "q_offset": torch.tensor([1, 2])}, []),
        ({"q_len": "8", "kv_len": 2**31, "batch": -1, "heads": 1.0}, ["bad-length"] * 4),
        ({"block": (128,)}, ["bad-block"]),
        ({"block": (128, -1), "q_offset": 0.5}, ["bad-block", "bad-offset"]),
        ({"batch": 3, "q_offset": torch.tensor([1, 2])}, ["bad-offset"]),
        ({"q_offset": 2**63}, ["offset-too-large"]),
    ],
)
def test_plans(how: dict[str, Any], expected: list[str]) -> None:
    assert plan(**how) == expected


def test_a_call_holds_the_tensors_it_was_given() -> None:
    q: Tensor = torch.zeros(1, 2, 5, 8)
    found = check_call(one(), {}, q, q, q)
    assert found.q is found.k is found.v is q
