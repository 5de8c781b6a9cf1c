"""Tracks an object by mixed attention over target and search region, on fewer keys than queries: the search region sees
both, the target only itself."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.parse("""
attention mixformer(q_target: int, k_target: int) {
    require q_target >= 0 and q_target <= q_len, "`q_target` counts the queries of the target, which come first"
    require k_target >= 1 and k_target <= kv_len, "`k_target` counts the keys of the target, which come first"
    mask q_idx >= q_target or kv_idx < k_target
}
""").mixformer


def inputs(size: Size, draw: Draw) -> Inputs:
    keys = size.length // 4
    return {**draw.qkv(size, kv_length=keys), "q_target": size.length // 3, "k_target": keys // 3}


def run(q: Tensor, k: Tensor, v: Tensor, q_target: int, k_target: int) -> Tensor:
    return attention(q_target=q_target, k_target=k_target)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, q_target: int, k_target: int) -> Tensor:
    """Target: softmax(q_t k_t / sqrt(d)) v_t; search: softmax(q_s [k_t; k_s] / sqrt(d)) [v_t; v_s]."""
    scale = q.shape[-1] ** -0.5
    target = (q[:, :, :q_target] @ k[:, :, :k_target].mT * scale).softmax(-1) @ v[:, :, :k_target]
    search = (q[:, :, q_target:] @ k.mT * scale).softmax(-1) @ v
    return torch.cat((target, search), 2)


ENTRY = Entry(
    systems=("MixFormer (MAM)",),
    paper="MixFormer: End-to-End Tracking with Iterative Mixed Attention",
    year=2022,
    conventions="Queries are target tokens and then search tokens; so are the keys, of maps a convolution has shrunk.",
    pitfall="The border between target and search differs on the two sides, as keys are fewer than queries.",
    source="the asymmetric attention of the authors' repository, MCG-NJU/MixFormer, and of trackers built on it",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"q_target": -1, "k_target": 0},
)
