"""Masks learnt offline: the attention of short texts, averaged and flattened, says what heads need of long ones."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

BLOCK = 16

attention = ad.attention(mask_mod=ad.masks.causal, name="dam")


def inputs(size: Size, draw: Draw) -> Inputs:
    """`maps` (H, n, n): the mean weight of blocks of short texts, above 0."""
    maps = draw.uniform(0.001, 1, size.heads, 4, 4) ** 4
    return {**draw.qkv(size, kv_heads=size.heads // 2), "maps": maps, "power": 0.5, "cut": -1.2}


def run(q: Tensor, k: Tensor, v: Tensor, maps: Tensor, power: float, cut: float) -> Tensor:
    """Diagonals and columns of the map that are large on average go on through the whole of a long text."""
    ad.require(power > 0, "`power` is that of the Box-Cox transform, above 0")
    shaped("maps", maps, q.shape[1], maps.shape[-1], maps.shape[-1])
    ad.require((maps >= 0).all(), "`maps` are means of weights, at least 0")
    flat = (maps.double() ** power - 1) / power
    known, blocks = maps.shape[-1], -(-q.shape[2] // BLOCK)
    place = torch.arange(blocks, device=q.device)
    past = torch.ones(known, known, dtype=torch.bool, device=q.device).tril()
    diagonals = torch.stack([flat.diagonal(-back, 1, 2).mean(-1) for back in range(known)], -1) >= cut
    columns = torch.where(past, flat, 0.0).sum(1) / past.sum(0) >= cut
    back = (place[:, None] - place[None, :]).clamp(min=0)
    follows = diagonals[:, back.clamp(max=known - 1)] & (back < known)
    stands = (columns[:, place.clamp(max=known - 1)] & (place < known))[:, None, :]
    table = ad.BlockTable((follows | stands)[None], block=(BLOCK, BLOCK))
    return attention(q, k, v, enable_gqa=True, blocks=table)


def formula(q: Tensor, k: Tensor, v: Tensor, maps: Tensor, power: float, cut: float) -> Tensor:
    """Pair by pair of blocks: kept where the mean of the pair's diagonal or column of (p^l - 1) / l reaches the cut."""
    (heads, known), length = maps.shape[:2], q.shape[2]
    flat = (maps**power - 1) / power
    live = torch.zeros(heads, length, length, dtype=torch.bool, device=q.device)
    for head in range(heads):
        for row in range(0, length, BLOCK):
            for column in range(0, row + BLOCK, BLOCK):
                i, j = row // BLOCK, column // BLOCK
                diagonal = [float(flat[head, a, a - (i - j)]) for a in range(i - j, known)]
                standing = [float(flat[head, a, j]) for a in range(j, known)]
                kept = any(line and sum(line) / len(line) >= cut for line in (diagonal, standing))
                live[head, row : row + BLOCK, column : column + BLOCK] = kept
    live &= torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    k, v = (x.repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


ENTRY = Entry(
    systems=("DAM (dynamic attention mask)",),
    paper="DAM: Dynamic Attention Mask for Long-Context Large Language Model Inference Acceleration",
    year=2025,
    conventions="Causal; a mask for each head, in blocks of 16. How the paper extends structure to long texts is not "
    "published in full: here diagonals and columns whose mean passes the cut go on.",
    pitfall="A head may keep no block for a query: its output there is 0.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"power": 0.0, "maps": [torch.full((4, 4, 4), -1.0), torch.ones(4, 3, 4)]},
    trained=False,
    usual=Size(1, 32, 4096, 128),
)
