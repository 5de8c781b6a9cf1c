"""Hierarchical pruning: ranges of keys are halved round by round, and only those whose middle key looks best go on."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

QUERIES, KEYS = 16, 4
"""Tokens of a block of queries, and of the ranges of keys that are left at the end."""

attention = ad.attention(mask_mod=ad.masks.causal, name="hip")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "keep": 4, "sink": 1, "window": 4}


def run(q: Tensor, k: Tensor, v: Tensor, keep: int, sink: int, window: int) -> Tensor:
    """All blocks of queries at once; `sink` and `window` count blocks of keys that are always kept."""
    ad.require(keep >= 1, "`keep` counts ranges of keys, at least 1")
    ad.require(sink >= 0 and window >= 0, "`sink` and `window` count blocks of keys, at least 0")
    length, blocks = q.shape[2], -(-q.shape[2] // QUERIES)
    rounds = _rounds(length, keep)
    width = KEYS * 2**rounds
    last = (torch.arange(1, blocks + 1, device=q.device) * QUERIES - 1).clamp(max=length - 1)
    padded = torch.nn.functional.pad(q, (0, 0, 0, blocks * QUERIES - length), value=torch.nan)
    starts = (torch.arange(keep, device=q.device) * width).expand(*q.shape[:2], blocks, keep)
    for _ in range(rounds):
        width //= 2
        starts = torch.cat((starts, starts + width), -1)
        middle = (starts + width // 2).clamp(max=length - 1)
        asked = padded.unflatten(2, (blocks, QUERIES))
        found = torch.einsum("bhnqd,bhnrd->bhnqr", asked, _gathered(k, middle)).nan_to_num(-torch.inf).amax(3)
        barred = starts + width // 2 > last[:, None]
        order = found.masked_fill(barred, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        starts = starts.gather(-1, order[..., :keep])
    places = torch.arange(-(-length // KEYS), device=q.device)
    chosen = (starts[..., None] // KEYS == places).any(-2)
    always = (places < sink) | (places > last[:, None] // KEYS - window - QUERIES // KEYS + 1)
    return attention(q, k, v, blocks=ad.BlockTable(chosen | always, block=(QUERIES, KEYS)))


def formula(q: Tensor, k: Tensor, v: Tensor, keep: int, sink: int, window: int) -> Tensor:
    """Block by block of queries, with lists of ranges, and softmax over what is left, the first and the latest keys."""
    length = q.shape[2]
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for first in range(0, length, QUERIES):
                rows = q[b, h, first : first + QUERIES]
                last = first + len(rows) - 1
                width = KEYS * 2 ** _rounds(length, keep)
                ranges = [n * width for n in range(keep)]
                while width > KEYS:
                    width //= 2
                    ranges = [*ranges, *(start + width for start in ranges)]
                    middles = [start + width // 2 for start in ranges]
                    likes = [float((rows @ k[b, h, at]).max()) if at <= last else -torch.inf for at in middles]
                    best = sorted(range(len(ranges)), key=lambda n: -likes[n])[:keep]
                    ranges = [ranges[n] for n in best]
                recent = last // KEYS - window - QUERIES // KEYS + 1
                blocks = {start // KEYS for start in ranges} | set(range(sink)) | {*range(recent + 1, last // KEYS + 1)}
                keys = torch.tensor(sorted(j for j in range(last + 1) if j // KEYS in blocks))
                dead = keys > torch.arange(first, last + 1)[:, None]
                scores = (rows @ k[b, h, keys].mT / q.shape[-1] ** 0.5).masked_fill(dead.to(q.device), -torch.inf)
                out[b, h, first : last + 1] = scores.softmax(-1).nan_to_num(0.0) @ v[b, h, keys]
    return out


def _rounds(length: int, keep: int) -> int:
    """Halvings from `keep` ranges that cover the keys to ranges of `KEYS`."""
    rounds = 0
    while keep * KEYS * 2**rounds < length:
        rounds += 1
    return rounds


def _gathered(k: Tensor, places: Tensor) -> Tensor:
    """The keys at (B, H, blocks, ranges)."""
    return k.gather(2, places.flatten(2)[..., None].expand(-1, -1, -1, k.shape[-1])).unflatten(2, places.shape[2:])


ENTRY = Entry(
    systems=("HiP",),
    paper="A Training-free Sub-quadratic Cost Transformer Model Serving Framework With Hierarchically Pruned Attention",
    year=2024,
    conventions="Causal. A range looks as good as the product of its middle key with the best query of the block; "
    "ranges whose middle is not yet seen lose, the first of equals wins.",
    pitfall="The first keys and the latest ones are kept besides: a key that is chosen twice must count once.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="descriptions of the paper's mask estimation: a range is represented by its centre",
    refuses={"keep": 0, "sink": -1, "window": -1},
    trained=False,
    usual=Size(1, 8, 4096, 128),
)
