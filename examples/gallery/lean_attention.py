"""Decoding over contexts of unlike lengths: keys are shared out evenly among processors and the parts are joined."""

from itertools import groupby

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.padding(lengths=ad.IntTensor["B"]), name="lean_attention")
TILE, WORKERS = 64, 5


def inputs(size: Size, draw: Draw) -> Inputs:
    """One query to a sequence, and more keys than are left to one processor."""
    keys = 4300 + size.length
    given = draw.qkv(Size(size.batch, size.heads, 1, size.head_dim), kv_heads=size.heads // 2, kv_length=keys)
    return {**given, "lengths": draw.integers(keys // 4, keys + 1, size.batch)}


def run(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    ad.require((lengths >= 1) & (lengths <= k.shape[2]), "`lengths` counts keys of each sequence, 1 to all")
    return attention.bind(lengths=lengths)(q, k, v, enable_gqa=True)


def formula(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    """Tiles of all heads in a row are cut into equal spans; parts (m, l, o) of a head are weighed by exp(m_i - m)."""
    heads, group, counts = q.shape[1], q.shape[1] // k.shape[1], lengths.tolist()
    tiles = [(b, h, at) for b, count in enumerate(counts) for h in range(heads) for at in range(0, count, TILE)]
    span = -(-len(tiles) // WORKERS)
    parts: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = {}
    for first in range(0, len(tiles), span):
        for (b, h), mine in groupby(tiles[first : first + span], key=lambda tile: tile[:2]):
            starts = [tile[2] for tile in mine]
            keys = slice(starts[0], min(starts[-1] + TILE, counts[b]))
            scores = k[b, h // group, keys] @ q[b, h, 0] / q.shape[-1] ** 0.5
            raised = (scores - scores.amax()).exp()
            parts.setdefault((b, h), []).append((scores.amax(), raised.sum(), raised @ v[b, h // group, keys]))
    rows = []
    for found in parts.values():
        m, total, o = (torch.stack(each) for each in zip(*found, strict=True))
        shares = (m - m.amax()).exp()
        rows.append(shares @ o / (shares @ total))
    return torch.stack(rows).view(*q.shape[:3], -1)


ENTRY = Entry(
    systems=("LeanAttention",),
    paper="Lean Attention: Hardware-Aware Scalable Attention Mechanism for the Decode-Phase of Transformers",
    year=2024,
    conventions="One query to a sequence, grouped heads, keys padded at their end. Keys are split here too, into "
    "chunks of each sequence; the paper's spans, which the formula follows, may end in one head and begin in the next.",
    pitfall="Parts of a head have maxima of their own: weigh them by exp(m_i - m), divide once, do not average.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"lengths": torch.zeros(2, dtype=torch.int64)},
    trained=False,
    usual=Size(1, 32, 4096, 128),
)
