"""A normalizer and a weight mod that no library has, a few lines each.

The normalizer is a softmax p that is less sure the fewer keys it rests on, by a learned amount for each head:

    w = p / (1 + caution * sum p^2)

The sum is the chance that two draws from the row are the same key: a row that many keys share keeps all of its weight,
one that a single key rules gives caution / (1 + caution) of it away. The weight mod forgets as people do, by a power of
the distance: w * (1 + distance)^-rate.

Nothing else is written: how the sums stream over the keys and what the gradients are is derived. Prints the program,
what was derived, and how far output and gradients of the emitted kernels are from the formula, differentiated by torch
in float64.

    python examples/own_normalizer.py

Without a GPU, Triton's interpreter runs the same kernels on CPU tensors.
"""

from __future__ import annotations

import os

import torch

import attndsl as ad

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 193, 32


@ad.normalizer
def cautious(score, h, *, caution):
    e = ad.exp(score - ad.row_max(score))
    total = ad.row_sum(e)
    return e / (total + caution[h] * ad.row_sum(e * e) / total)


@ad.weight_mod
def forgetting(weight, h, q_idx, kv_idx, *, rate):
    return weight * ad.exp(-rate[h] * ad.log(1.0 + (q_idx - kv_idx)))


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, which is later
    caution, rate = (torch.rand(HEADS, device=device).requires_grad_() for _ in range(2))
    attention = ad.attention(
        mask_mod=ad.masks.causal,
        normalizer=cautious(caution=caution),
        weight_mod=forgetting(rate=rate),
        name="cautious",
    )
    print(title("the program"), attention.ir(), sep="\n")
    print(title("what is derived"), attention.explain(LENGTH, head_dim=WIDTH), sep="\n")

    q, k, v = (torch.randn(BATCH, HEADS, LENGTH, WIDTH, device=device, requires_grad=True) for _ in range(3))
    named = {"q": q, "k": k, "v": v, "caution": caution, "rate": rate}
    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in named.items()}
    out, expected = attention(q, k, v, backend="triton"), by_hand(**wide)
    direction = torch.randn_like(out)
    found = torch.autograd.grad(out, list(named.values()), direction)
    wanted = torch.autograd.grad(expected, list(wide.values()), direction.double())
    print(title("against float64"))
    for name, one, other in zip(("output", *named), (out, *found), (expected, *wanted), strict=True):
        error = ((one - other).abs().max() / other.abs().max()).item()
        print(f"{name:<8} {error:.0e} of its largest element")
        assert error < 1e-5, name


def by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, caution: torch.Tensor, rate: torch.Tensor
) -> torch.Tensor:
    """The same attention by its formula, densely."""
    distance = torch.arange(LENGTH, device=q.device)[:, None] - torch.arange(LENGTH, device=q.device)
    p = (q @ k.mT / WIDTH**0.5).masked_fill(distance < 0, float("-inf")).softmax(-1)
    weights = p / (1 + caution[:, None, None] * (p * p).sum(-1, keepdim=True))
    return (weights * (1 + distance.clamp(min=0)) ** -rate[:, None, None]) @ v


def title(text: str) -> str:
    return f"\n--- {text} " + "-" * (70 - len(text))


if __name__ == "__main__":
    main()
