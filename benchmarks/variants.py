"""The variants that are measured, each written once as FlexAttention functions, which attndsl and its peer both run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Mod = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A variant in FlexAttention's terms; `None` is no score mod, no mask."""

    name: str
    score_mod: Mod | None = None
    mask_mod: Mod | None = None


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def window(size: int) -> Mod:
    """The last `size` keys, the query itself included."""

    def sliding_window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx >= kv_idx) & (q_idx - kv_idx < size)

    return sliding_window


def documents(length: int, device: str, mean: int = 512) -> Mod:
    """Causal attention inside packed documents of uneven length, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(mean // 4, 2 * mean, (4 * length // mean + 4,), generator=generator).cumsum(0)
    doc = torch.searchsorted(ends, torch.arange(length), right=True).int().to(device)

    def same_document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (doc[q_idx] == doc[kv_idx]) & (q_idx >= kv_idx)

    return same_document


def alibi(heads: int, device: str) -> Mod:
    """A bias that falls linearly with distance, one slope per head."""
    slopes = torch.exp2(-8.0 * torch.arange(1, heads + 1) / heads).to(device)

    def linear_bias(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + slopes[h] * (kv_idx - q_idx)

    return linear_bias


def soft_cap(cap: float) -> Mod:
    """Scores squeezed smoothly into (-cap, cap)."""

    def capped(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return cap * torch.tanh(score / cap)

    return capped


def cases(length: int, heads: int, device: str) -> list[Case]:
    """Every variant for tensors of this length and head count on this device."""
    return [
        Case("dense"),
        Case("causal", mask_mod=causal),
        Case("window 1024", mask_mod=window(1024)),
        Case("documents", mask_mod=documents(length, device)),
        Case("alibi", score_mod=alibi(heads, device), mask_mod=causal),
        Case("soft cap", score_mod=soft_cap(50.0), mask_mod=causal),
    ]
