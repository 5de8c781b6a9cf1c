"""Attention trained to be simple: its rows of weights, and the groups its tokens fall into, are penalized for their
entropy."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(name="entropy_net")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "anchors": draw.normal(size.heads, 6, size.head_dim) / 2, "alpha": 4.0}


def run(q: Tensor, k: Tensor, v: Tensor, anchors: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the entropy of every row, and that of the soft groups of a head's tokens about its anchors.

    A token's distance to an anchor is taken less the token's own length, which cancels in its shares.
    """
    ad.require(alpha > 0, "`alpha` is how soft groups are, above 0")
    shaped("anchors", anchors, v.shape[1], anchors.shape[1], v.shape[-1])
    out, aux = attention(q, k, v, return_aux=["entropy"])
    nearness = 2 * out @ anchors.mT - anchors.square().sum(-1)[:, None]
    groups = (nearness / alpha).softmax(-1).mean(2)
    return out, aux.entropy, torch.special.entr(groups).sum(-1)


def formula(q: Tensor, k: Tensor, v: Tensor, anchors: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """o = A V; -sum_j a_ij log a_ij; -sum_c m_c log m_c, m_c the mean share exp(-|o_i - c|^2 / alpha) / sum of them."""
    logs = (q @ k.mT / q.shape[-1] ** 0.5).log_softmax(-1)
    out = logs.exp() @ v
    near = (-(out[:, :, :, None] - anchors[:, None]).square().sum(-1) / alpha).exp()
    groups = (near / near.sum(-1, keepdim=True)).mean(2)
    return out, -(logs.exp() * logs).sum(-1), -(groups * groups.log()).sum(-1)


ENTRY = Entry(
    systems=("EntropyNet (entropy regularisation)",),
    paper="Differentiable Entropy Regularization for Geometry and Neural Networks",
    year=2025,
    conventions="Not causal, for vision. Range-partition entropy with balls as ranges, over the tokens of one head; "
    "anchors are learnt. The loss adds the mean of the rows' entropies and that of the heads' with weights of its own.",
    pitfall="The entropy of a partition takes the logarithm of mean shares: the mean of every token's own entropy "
    "rewards tokens for being close to some anchor, not for sharing one.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the operators `range_entropy_soft` and `attn_row_entropy` of the Tessera programming model, which follow "
    "the paper; its own equations could not be read",
    refuses={"alpha": 0.0, "anchors": torch.zeros(3, 6, 32)},
    usual=Size(1, 12, 4096, 64),
)
