"""Attention that is asked where its sink comes from: with a learned key that has no value, without a divisor, or with
other similarities than the exponential."""

import torch
from torch import Tensor
from torch.nn import functional as F

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

FIRST = ad.aux.mass(lambda kv_idx: kv_idx == 0)
PROGRAMS = ad.parse("""
attention with_key_bias(sink: tensor[B, H, N]) { mask kv_idx <= q_idx  normalizer softmax(sink = sink[b, h, q_idx]) }
attention sigmoids() { mask kv_idx <= q_idx  normalizer sigmoid(score) }
attention shares(raised: int) {
    mask        kv_idx <= q_idx
    let similarity = sigmoid(score) if raised == 0 else score
    normalizer  similarity / row_sum(similarity)
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "key_bias": draw.normal(size.heads, size.head_dim)}


def run(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor) -> tuple[Tensor, ...]:
    """Each with the weight of the first key, which is what a sink takes."""
    shaped("key_bias", key_bias, q.shape[1], q.shape[-1])
    logits = torch.einsum("bhnd,hd->bhn", q, key_bias) / q.shape[-1] ** 0.5
    above = F.elu(q) + 1, F.elu(k) + 1
    calls = (
        PROGRAMS.with_key_bias(sink=logits)(q, k, v, return_aux=[FIRST]),
        PROGRAMS.sigmoids()(q, k, v, return_aux=[FIRST]),
        PROGRAMS.shares(raised=0)(q, k, v, return_aux=[FIRST]),
        PROGRAMS.shares(raised=1)(*above, v, return_aux=[FIRST]),
    )
    return tuple(out for out, _ in calls) + tuple(aux.mass.detach() for _, aux in calls)


def formula(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor) -> tuple[Tensor, ...]:
    """o_i = sum_j sim(q_i, k_j) v_j / Z_i: exp, with exp(q_i k*) in Z; sigmoid, Z = 1; sigmoid; elu + 1."""
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = q @ k.mT / q.shape[-1] ** 0.5
    column = q @ key_bias[:, :, None] / q.shape[-1] ** 0.5
    extended = torch.cat((column, scores.masked_fill(~past, -torch.inf)), -1).softmax(-1)[..., 1:]
    similar = torch.where(past, 1 / (1 + (-scores).exp()), 0.0)
    q, k = (torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in (q, k))
    kernel = torch.where(past, q @ k.mT, 0.0)
    shares = [each / each.sum(-1, keepdim=True) for each in (similar, kernel)]
    weights = extended, similar, *shares
    return tuple(each @ v for each in weights) + tuple(each[..., 0].detach() for each in weights)


ENTRY = Entry(
    systems=("Attention-sink variants (sigmoid, key bias, kernels)",),
    paper="When Attention Sink Emerges in Language Models: An Empirical View",
    year=2024,
    conventions="Causal. In order: softmax with a learned key whose value is 0, sigmoids as they are, sigmoids divided "
    "by their sum, the features elu + 1 divided by theirs (`raised`); then the first key's weight in each.",
    pitfall="The learned key takes weight and gives nothing, so it is a sink that depends on the query; the weight of "
    "a masked key is 0 for a sigmoid as well, whose value at -inf it happens to be.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"key_bias": [torch.zeros(3, 32), torch.zeros(4, 31)]},
)
