"""A Gemma-2 shaped attention, from mathematics to a checked result.

Soft-capped logits, a sliding window, two query heads to each key head; written once as Python functions and once as
text, which are the same program. Prints the program, what is skipped, the Triton it becomes and its error.

    python examples/quickstart.py

Without a GPU, Triton's interpreter runs the same kernel on CPU tensors.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

import attndsl as ad

CAP, WINDOW, LENGTH = 50.0, 64, 193


@ad.score_mod
def soft_cap(score, *, cap):
    return cap * ad.tanh(score / cap)


@ad.mask_mod
def sliding_window(q_idx, kv_idx, *, window):
    return (kv_idx <= q_idx) & (q_idx - kv_idx < window)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, which is later

    attention = ad.attention(score_mod=soft_cap(cap=CAP), mask_mod=sliding_window(window=WINDOW), name="gemma2")
    print(title("the program"), attention.ir(), sep="\n")

    from_text = ad.load(Path(__file__).with_name("gemma2.attn")).gemma2(cap=CAP, window=WINDOW)
    assert attention.fingerprint == from_text.fingerprint
    print(f"gemma2.attn is the same program: fingerprint {from_text.fingerprint[:12]}")

    print(title("what is skipped"), attention.plan(LENGTH, block=(16, 16)), sep="\n")
    print(title("the kernel"), attention.source(dtype=torch.float32, head_dim=32), sep="\n")

    torch.manual_seed(0)
    q = torch.randn(1, 4, LENGTH, 32, device=device)
    k, v = torch.randn(2, 1, 2, LENGTH, 32, device=device)
    out = attention(q, k, v, enable_gqa=True, backend="triton")
    expected = by_hand(q.double(), k.double(), v.double())
    error = (out - expected).abs().max().item()
    print(title("the result"), f"largest error against float64: {error:.1e}", sep="\n")
    assert error < 1e-5


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same attention by its formula, densely."""
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    score = CAP * torch.tanh(q @ k.mT / q.shape[-1] ** 0.5 / CAP)
    distance = torch.arange(LENGTH, device=q.device)[:, None] - torch.arange(LENGTH, device=q.device)
    return score.masked_fill((distance < 0) | (distance >= WINDOW), float("-inf")).softmax(dim=-1) @ v


def title(text: str) -> str:
    return f"\n--- {text} " + "-" * (70 - len(text))


if __name__ == "__main__":
    main()
