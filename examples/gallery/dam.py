"""Masks learnt offline: the attention of short texts, averaged and flattened, says what heads need of long ones."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

BLOCK = 16

attention = ad.attention(mask_mod=ad.masks.causal, name="dam")


def inputs(size: Size, draw: Draw) -> Inputs:
    """`maps` (H, n, n): the mean weight of blocks of short texts."""
    maps = draw.uniform(0.001, 1, size.heads, 4, 4) ** 4
    return {**draw.qkv(size, kv_heads=size.heads // 2), "maps": maps, "power": 0.5, "cut": -1.2, "match": 0.6}


def run(q: Tensor, k: Tensor, v: Tensor, maps: Tensor, power: float, cut: float, match: float) -> Tensor:
    """Within the map its own marks; beyond it, the diagonals and columns of the map that are marked almost through."""
    ad.require(power > 0, "`power` is that of the Box-Cox transform, above 0")
    ad.require(0 < match <= 1, "`match` is the share of a pattern that is marked, above 0 and at most 1")
    shaped("maps", maps, q.shape[1], maps.shape[-1], maps.shape[-1])
    ad.require((maps >= 0).all(), "`maps` are means of weights, at least 0")
    marked = (maps.double() ** power - 1) / power >= cut
    known, blocks = maps.shape[-1], -(-q.shape[2] // BLOCK)
    place, share = torch.arange(blocks, device=q.device), marked.double()
    past = torch.ones(known, known, dtype=torch.bool, device=q.device).tril()
    diagonals = torch.stack([share.diagonal(-back, 1, 2).mean(-1) for back in range(known)], -1) >= match
    columns = (share * past).sum(1) / past.sum(0) >= match
    back = (place[:, None] - place[None, :]).clamp(min=0)
    follows = diagonals[:, back.clamp(max=known - 1)] & (back < known)
    stands = (columns[:, place.clamp(max=known - 1)] & (place < known))[:, None, :]
    live = follows | stands
    live[:, :known, :known] = marked[:, :blocks, :blocks]
    return attention(q, k, v, enable_gqa=True, blocks=ad.BlockTable(live[None], block=(BLOCK, BLOCK)))


def formula(q: Tensor, k: Tensor, v: Tensor, maps: Tensor, power: float, cut: float, match: float) -> Tensor:
    """Pair by pair of blocks: marked where (p^l - 1) / l reaches the cut; outside the map, kept where the marks on the
    pair's diagonal or column of the map make up the share `match` of it."""
    (heads, known), length = maps.shape[:2], q.shape[2]
    flat = (maps**power - 1) / power
    live = torch.zeros(heads, length, length, dtype=torch.bool, device=q.device)
    for head in range(heads):
        for row in range(0, length, BLOCK):
            for column in range(0, row + BLOCK, BLOCK):
                i, j = row // BLOCK, column // BLOCK
                diagonal = [bool(flat[head, a, a - (i - j)] >= cut) for a in range(i - j, known)]
                standing = [bool(flat[head, a, j] >= cut) for a in range(j, known)]
                kept = any(line and sum(line) / len(line) >= match for line in (diagonal, standing))
                if i < known:
                    kept = bool(flat[head, i, j] >= cut)
                live[head, row : row + BLOCK, column : column + BLOCK] = kept
    live &= torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    k, v = (x.repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


ENTRY = Entry(
    systems=("DAM (dynamic attention mask)",),
    paper="DAM: Dynamic Attention Mask for Long-Context Large Language Model Inference Acceleration",
    year=2025,
    conventions="Causal; a mask for each head, in blocks of 16 where the paper has tokens. Patterns are all diagonals "
    "and all columns of the map, and every one that matches goes on.",
    pitfall="A head may keep no block for a query: its output there is 0.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the appendix in the authors' repository, HanzhiZhang-Ulrica/DAM, and its generation of masks",
    refuses={"power": 0.0, "match": [0.0, 1.5], "maps": [torch.full((4, 4, 4), -1.0), torch.ones(4, 3, 4)]},
    trained=False,
    usual=Size(1, 32, 4096, 128),
)
