"""Heads that decide for every query whether the keys nearby are enough, from an estimate of what the others weigh."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.mask_mod
def far(b, h, q_idx, kv_idx, *, wanted=ad.BoolTensor["B, H, Q"], sink: int, window: int):
    return wanted[b, h, q_idx] & (kv_idx >= sink) & (q_idx - kv_idx >= window)


near_keys = ad.attention(mask_mod=ad.masks.sinks_and_window, name="qada_near")
far_keys = ad.attention(mask_mod=far, name="qada_far")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "sink": 4, "window": 16, "enough": 0.4}


def run(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, enough: float) -> Tensor:
    ad.require(0 < enough < 1, "`enough` is a share of the weight, between 0 and 1")
    ad.require(window >= 1, "`window` counts keys, the query's own among them, at least 1")
    ad.require(sink >= 0, "`sink` counts keys, at least 0")
    out, aux = near_keys.bind(sink=sink, window=window)(q, k, v, return_aux=["lse"])
    places = torch.arange(q.shape[2], device=q.device)
    others = (places - window - sink + 1).clamp(min=0)
    scaled, centre = q / q.shape[-1] ** 0.5, k.mean(2)
    spread = (k - centre[:, :, None]).mT @ (k - centre[:, :, None]) / k.shape[2]
    rest = others.log() + torch.einsum("bhnd,bhd->bhn", scaled, centre) + ((scaled @ spread) * scaled).sum(-1) / 2
    wanted = torch.sigmoid(aux.lse - rest) <= enough
    more = far_keys.bind(wanted=wanted, sink=sink, window=window)(q, k, v, return_aux=["lse"])
    return ad.merge((out, aux), more)[0]


def formula(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, enough: float) -> Tensor:
    """log N + q.mu + q^T Sigma q / 2 stands for the logarithm of what N far keys weigh; full softmax where that is too
    much, the sink and the window alone elsewhere."""
    i, j = torch.arange(q.shape[2], device=q.device)[:, None], torch.arange(k.shape[2], device=q.device)[None, :]
    past, local = j <= i, (j <= i) & ((j < sink) | (i - j < window))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weighs = scores.masked_fill(~local, -torch.inf).logsumexp(-1)
    mean = k.mean(2, keepdim=True)
    # The moments of the scores of all keys are those of their Gaussian.
    centred = scores - q @ mean.mT / q.shape[-1] ** 0.5
    count = (past & ~local).sum(-1)
    guess = count.log() + (scores - centred)[..., 0] + centred.square().mean(-1) / 2
    full = weighs.exp() <= enough * (weighs.exp() + guess.exp())
    live = torch.where(full[..., None], past, local)
    return scores.masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("QAdA (adaptive long-context heads)",),
    paper="Unveiling Simplicities of Attention: Adaptive Long-Context Head Identification",
    year=2025,
    conventions="Causal. Mean and covariance are those of all keys of the head; N counts the keys that are neither in "
    "the sink nor in the window.",
    pitfall="The choice is made query by query: in a tile of the far part some rows have no key, and add nothing.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"enough": 1.0, "window": 0, "sink": -1},
    trained=False,
    usual=Size(1, 32, 4096, 128),
)
