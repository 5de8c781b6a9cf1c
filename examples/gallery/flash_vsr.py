"""Streaming super-resolution: boxes of a video look at the boxes most like them nearby, now and in frames before."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

ROWS, COLUMNS = 3, 3
"""Boxes of a slice of time; `TOKENS` tokens lie in each, one box after the other."""
TOKENS = 8

attention = ad.attention(name="flash_vsr")


def inputs(size: Size, draw: Draw) -> Inputs:
    slices = -(-size.length // (ROWS * COLUMNS * TOKENS))
    video = Size(size.batch, size.heads, slices * ROWS * COLUMNS * TOKENS, size.head_dim)
    return {**draw.qkv(video), "reach": 1, "top_k": 12 * slices}


def run(q: Tensor, k: Tensor, v: Tensor, reach: int, top_k: int) -> Tensor:
    """Of a slice of time, the `top_k` pairs of boxes of largest weight are kept; those out of reach have none."""
    ad.require(reach >= 0, "`reach` counts boxes to each side, at least 0")
    ad.require(top_k >= 1, "`top_k` counts pairs of boxes, at least 1")
    ad.require(q.shape[2] % (ROWS * COLUMNS * TOKENS) == 0, "`q` holds whole slices of time")
    means = [x.unflatten(2, (-1, TOKENS)).mean(3) for x in (q, k)]
    boxes = means[0].shape[2]
    t, y, x = torch.unravel_index(torch.arange(boxes, device=q.device), (boxes, ROWS, COLUMNS))
    near = (t[:, None] >= t) & ((y[:, None] - y).abs() <= reach) & ((x[:, None] - x).abs() <= reach)
    scores = means[0] @ means[1].mT / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~near, -torch.inf).softmax(-1)
    maps = weights.unflatten(2, (-1, ROWS * COLUMNS)).flatten(3)
    chosen = maps.topk(min(top_k, maps.shape[-1]), -1).indices
    live = torch.zeros_like(maps, dtype=torch.bool).scatter(-1, chosen, True).reshape(weights.shape) & near
    return attention(q, k, v, blocks=ad.BlockTable(live, block=(TOKENS, TOKENS)))


def formula(q: Tensor, k: Tensor, v: Tensor, reach: int, top_k: int) -> Tensor:
    """Slice by slice of time: softmax over the tokens of kept boxes, a pair of boxes being kept if it is among the
    `top_k` largest entries of the slice's rows of softmax(mean(Q) mean(K)^T / sqrt(d)), over boxes in reach."""
    own, root = ROWS * COLUMNS, q.shape[-1] ** 0.5
    places = [divmod(box % own, COLUMNS) for box in range(q.shape[2] // TOKENS)]
    outs = []
    for first in range(0, len(places), own):
        past = (first + own) * TOKENS
        queries, keys = q[:, :, first * TOKENS : past], k[:, :, :past]
        near = [[max(abs(y - b), abs(x - a)) <= reach for b, a in places[: first + own]] for y, x in places[:own]]
        pooled = torch.einsum("bhitd,bhjud->bhij", queries.unflatten(2, (-1, TOKENS)), keys.unflatten(2, (-1, TOKENS)))
        far = ~torch.tensor(near, device=q.device)
        shares = (pooled / TOKENS**2 / root).masked_fill(far, -torch.inf).softmax(-1).detach()
        least = shares.flatten(2).sort(-1, descending=True).values[..., :top_k][..., -1, None, None]
        live = ((shares >= least) & ~far).repeat_interleave(TOKENS, 2).repeat_interleave(TOKENS, 3)
        weights = (queries @ keys.mT / root).masked_fill(~live, -1e30).softmax(-1) * live
        outs.append(weights @ v[:, :, :past])
    return torch.cat(outs, 2)


ENTRY = Entry(
    systems=("FlashVSR (locality-constrained sparse attention)",),
    paper="FlashVSR: Towards Real-Time Diffusion-Based Streaming Video Super-Resolution",
    year=2025,
    conventions="Tokens box by box. Locality is said of boxes; the own slice of time is seen in both directions. Pairs "
    "of boxes are chosen for each head and slice together.",
    pitfall="The count is not one of each box: after a softmax over its row a box may keep many pairs or none, and "
    "then its output is 0.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"reach": -1, "top_k": 0, "q": torch.zeros(2, 4, 97, 32)},
    source="`generate_draft_block_mask` of the released models, as several repositories carry it",
    usual=Size(1, 12, 4096, 128),
)
