"""Small attentions, inputs for them, and softmax attention written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from launches import INTERPRETING
from torch import Tensor

import attndsl as ad
from attndsl import compiler
from attndsl.attention import Attention
from attndsl.codegen.plan import KernelPlan

not_interpreted = pytest.mark.skipif(INTERPRETING, reason="under the interpreter Triton's kernels run")
KERNELS = "triton" if INTERPRETING else "cpu"

CAUSAL = "attention causal {\n    mask  kv_idx <= q_idx\n}"
ALIBI = """
attention alibi(slopes: tensor[H], window: int = 64) {
    mask   kv_idx <= q_idx and q_idx - kv_idx < window
    score  score - slopes[h] * float(q_idx - kv_idx)
}
"""
DOCUMENTS = "attention documents(doc: int tensor[B, N]) {\n    mask  doc[b, q_idx] == doc[b, kv_idx]\n}"
PERMUTED = "attention a(order: int tensor[B, N], table: tensor[M]) {\n    score  score + table[order[b, kv_idx]]\n}"
SINK = "attention sink(sink: tensor[H]) {\n    mask  kv_idx < q_idx\n    normalizer  softmax(sink = sink[h])\n}"


def text(source: str, **values: Any) -> Attention:
    """The one attention of a text, with values."""
    (declared,) = ad.parse(source)
    bound: Attention = declared.bind(**values)
    return bound


def traced_alibi(slopes: Tensor, window: int = 64) -> Attention:
    @ad.mask_mod
    def near(q_idx: Any, kv_idx: Any, *, window: Any) -> Any:
        return (kv_idx <= q_idx) & (q_idx - kv_idx < window)

    @ad.score_mod
    def linear(score: Any, h: Any, q_idx: Any, kv_idx: Any, *, slopes: Any) -> Any:
        return score - slopes[h] * (q_idx - kv_idx)

    return ad.attention(mask_mod=near(window=window), score_mod=linear(slopes=slopes), name="alibi")


def qkv(
    batch: int = 1,
    heads: int = 2,
    q_len: int = 5,
    kv_len: int | None = None,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
    kv_heads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys = (batch, kv_heads or heads, q_len if kv_len is None else kv_len, dim)
    shapes = ((batch, heads, q_len, dim), keys, keys)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, live: Tensor, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Softmax attention written out: output and log of the divisor."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    scores = scores.masked_fill(~live, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1)


def lower(q_len: int, kv_len: int, offset: int = 0) -> Tensor:
    return torch.ones(q_len, kv_len).tril(offset).bool()


def poisoned() -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Inputs of 6 queries and 9 keys of which a window of 3 at offset 2 sees keys 0 to 7, clean and poisoned."""
    clean = qkv(1, 2, 6, 9)
    dirty = tuple(tensor.clone() for tensor in clean)
    dirty[1][:, :, 8], dirty[2][:, :, 8] = torch.nan, torch.inf
    return clean, (dirty[0], dirty[1], dirty[2])


def emissions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were emitted, one entry each."""
    found: list[str] = []
    original = compiler.plan_kernel

    def counted(derivation: Any, name: str, spec: Any) -> KernelPlan:
        found.append(name)
        return original(derivation, name, spec)

    monkeypatch.setattr(compiler, "plan_kernel", counted)
    return found
