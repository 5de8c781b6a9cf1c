"""Attention as a filter of a noisy linear system: a value weighs the more, the more certain it still is after the time
since, and the better its key, decayed and rotated to the query's time, predicts the query."""

from typing import Any

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.shapes import shaped
from examples.gallery.turned import turned

TEXT = """
attention adaptive_filter(q_size: tensor[B, H, Q], k_size: tensor[B, H, K], mu: tensor[H], sigma2: tensor[H],
                          eta2: tensor[H], gamma2: tensor[H], nu: tensor[H], tau2: tensor[H]) {
    let kept = exp(-mu[h] * abs(q_idx - kv_idx))
    let variance = sigma2[h] * (1 - kept ** 2) / (2 * mu[h]) + eta2[h] * kept ** 2 + gamma2[h]
    let residual = q_size[b, h, q_idx] + kept ** 2 * k_size[b, h, kv_idx] - 2 * kept * score
    mask    kv_idx <= q_idx
    score   -tau2[h] * (log(variance) + log(1 + residual / (nu[h] * variance)))
    weight  kept * weight
}
"""
declared = ad.parse(TEXT).adaptive_filter
HEADS = ("mu", "sigma2", "eta2", "gamma2", "nu", "tau2")


def inputs(size: Size, draw: Draw) -> Inputs:
    of_heads = {name: draw.uniform(0.05, 0.5, size.heads) for name in HEADS}
    return {
        **draw.qkv(size),
        **of_heads,
        "nu": draw.uniform(0.5, 2.0, size.heads),
        "tau2": draw.uniform(1.0, 4.0, size.heads),
    }


def run(q: Tensor, k: Tensor, v: Tensor, nu: Tensor, **of_heads: Any) -> Tensor:
    places = torch.arange(q.shape[2], device=q.device)
    for name, value in {"nu": nu, **of_heads}.items():
        shaped(name, value, q.shape[1])
        above = name in ("mu", "nu", "gamma2")
        ad.require((value > 0 if above else value >= 0).all(), f"`{name}` is {'above' if above else 'at least'} 0")
    sizes = {"q_size": q.square().sum(-1), "k_size": k.square().sum(-1)}
    attention = declared(**sizes, nu=nu * (q.shape[-1] // 2), **of_heads)
    return rotate(attention(*(rotate(x, -places) for x in (q, k, v)), scale=1.0), places)


def formula(q: Tensor, k: Tensor, v: Tensor, nu: Tensor, **of_heads: Tensor) -> Tensor:
    """o_i = Rot(t_i) sum_j A_ij E_ij Rot(-t_j) v_j, A the softmax of tau^2 log of a Student-t precision."""
    mu, sigma2, eta2, gamma2, tau2 = (of_heads[name][:, None, None] for name in HEADS if name != "nu")
    places = torch.arange(q.shape[2], device=q.device)
    q, k, v = (turned(each, -places) for each in (q, k, v))
    kept = torch.exp(-mu * (places[:, None] - places).abs())
    variance = sigma2 * (1 - kept**2) / (2 * mu) + eta2 * kept**2 + gamma2
    sizes = q.abs().square().sum(-1)[..., None], k.abs().square().sum(-1)[..., None, :]
    residual = sizes[0] + kept**2 * sizes[1] - 2 * kept * (q @ k.mH).real
    scores = -tau2 * (variance.log() + (1 + residual / (nu[:, None, None] * q.shape[-1] * variance)).log())
    live = places[:, None] >= places
    weights = kept * scores.masked_fill(~live, -torch.inf).softmax(-1)
    o = weights.to(v.dtype) @ v
    o = turned(torch.cat((o.real, o.imag), -1), places)
    return torch.cat((o.real, o.imag), -1)


ENTRY = Entry(
    systems=("AFA (Adaptive Filter Attention)",),
    paper="Attention as an Adaptive Filter",
    year=2025,
    conventions="The isotropic form, causal, scale 1: one decay and three variances (of the process, the measurement "
    "and the key) to a head; nu counts by pair of columns, a pair being one complex number. Values are rotated to a "
    "common time and back.",
    pitfall="The decay multiplies the normalized weight, so rows do not sum to 1; the paper's per-channel form needs "
    "a tensor of (N, N, D).",
    source="the isotropic module of the authors' repository, PCR-git/Adaptive-Filter-Attention, with its robust "
    "weights",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={name: [torch.full((4,), -1.0), torch.ones(5)] for name in HEADS},
)
