"""Drops scores below thresholds that were calibrated once, and makes up for what is missing in divisor and output."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

PROGRAM = ad.parse("""
attention top_theta(theta: tensor[H, N], missing: tensor[N]) {
    mask        kv_idx <= q_idx
    score       score if score > theta[h, q_idx] else -inf
    let e = exp(score - row_max(score))
    normalizer  e / (row_sum(e) + missing[q_idx])
}
""")
ALL = ad.aux.mass(lambda kv_idx: kv_idx >= 0)


def inputs(size: Size, draw: Draw) -> Inputs:
    theta = draw.uniform(0.2, 0.8, size.heads, size.length)
    theta[:, : size.length // 4] = -torch.inf
    missing = draw.uniform(0.1, 2.0, size.length)
    missing[: size.length // 4] = 0.0
    return {**draw.qkv(size), "theta": theta, "missing": missing}


def run(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, missing: Tensor) -> Tensor:
    """The weight that rows lack goes to the mean of the values so far."""
    ad.require(theta.shape[1] >= q.shape[2], "`theta` has a threshold for every length of a row")
    ad.require(len(missing) >= q.shape[2], "`missing` has a number for every length of a row")
    ad.require(missing >= 0, "`missing` is a part of the divisor, at least 0")
    out, aux = PROGRAM.top_theta(theta=theta, missing=missing)(q, k, v, return_aux=[ALL])
    seen = torch.arange(1, v.shape[2] + 1, device=v.device)[:, None]
    return out + (1 - aux.mass)[..., None] * v.cumsum(2) / seen


def formula(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, missing: Tensor) -> Tensor:
    """p_ij = exp(s_ij - m_i) [s_ij > theta_i] / (their sum + c_i); o_i = sum p_ij v_j + (1 - sum p_ij) mean of v."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    largest = scores.masked_fill(~past, -torch.inf).amax(-1, keepdim=True)
    kept = past & (scores > theta[..., None])
    raised = torch.where(kept, (scores - largest).exp(), 0.0)
    total = raised.sum(-1, keepdim=True) + missing[:, None]
    weights = torch.where(total > 0, raised / total.clamp(min=1e-300), 0.0)
    mean = past.to(v) @ v / past.sum(-1, keepdim=True)
    return weights @ v + (1 - weights.sum(-1, keepdim=True)) * mean


ENTRY = Entry(
    systems=("Top-Theta Attention",),
    paper="Top-Theta Attention: Sparsifying Transformers by Compensated Thresholding",
    year=2025,
    conventions="Causal, thresholds before the softmax. Short rows are kept whole: their threshold is -inf and nothing "
    "is missing. What is missing was calibrated offline, relative to the exponential of the row's largest score.",
    pitfall="A threshold belongs to the length of the row, so it is read by the query's place; a row in which nothing "
    "survives is the mean of the values, not 0 and not NaN.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the authors' `TopK_LLamaAttention`: strictly above, offline-calibrated compensation of the divisor, V-mean "
    "compensation over the values so far",
    refuses={"theta": torch.zeros(4, 5), "missing": torch.zeros(5)},
    trained=False,
    usual=Size(1, 8, 4096, 128),
)
