"""Captured tensors of every storage native kernels read, at every kind of place, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from compare import assert_rows_close
from launches import INTERPRETING, inputs

import attndsl as ad

pytestmark = pytest.mark.skipif(INTERPRETING, reason="native kernels run in the other tier")

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
PLACES = (
    "q_idx",
    "kv_idx",
    # Vectors of elements that lie side by side, in falling order: what an optimiser makes most of.
    pytest.param("q_idx - kv_idx", marks=pytest.mark.as_users),
    "kv_idx - q_idx + 149",
    "(q_idx + kv_idx) // 2",
)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers(dtype: torch.dtype) -> None:
    (documents,) = ad.parse("attention a(doc: int tensor[N]) { mask doc[q_idx] == doc[kv_idx] }")
    check(documents.bind(doc=(torch.arange(150) // 40).to(dtype)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_floats(place: str, dtype: torch.dtype) -> None:
    table = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    text = f"attention a(table: tensor[H, N]) {{ mask kv_idx <= q_idx score score + table[h, {place}] }}"
    (attention,) = ad.parse(text)
    check(attention.bind(table=table), attention.bind(table=table.double()))


def check(attention: ad.Attention, exact: ad.Attention | None = None) -> None:
    """Against the reference, of `exact` where the attention's own would compute in another dtype."""
    tensors = inputs(heads=2, q_len=150, head_dim=32)
    expected = (attention if exact is None else exact).reference(*(tensor.double() for tensor in tensors))
    assert_rows_close(attention(*tensors, backend="cpu"), expected, 1e-5)
