"""A language model that translates while it listens: source and target count their positions apart, and a target token
sees of the source what had been read when it was written."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.shapes import shaped
from examples.gallery.turned import turned


@ad.mask_mod
def read_so_far(b, q_idx, kv_idx, kv_len, *, source: int, read=ad.IntTensor["B, Q"]):
    ad.require((source >= 0) & (source <= kv_len), "`source` counts tokens at the start of the sequence")
    in_target = ad.where(kv_idx < source, kv_idx < read[b, q_idx], True)
    return (kv_idx <= q_idx) & ((q_idx < source) | in_target)


attention = ad.attention(mask_mod=read_so_far, name="group_positions")


def inputs(size: Size, draw: Draw) -> Inputs:
    source = size.length // 2
    waited = draw.integers(0, 3, size.batch, size.length - source).cumsum(1) + 3
    read = torch.cat((torch.zeros(size.batch, source, dtype=torch.int64), waited.clamp(max=source)), 1)
    return {**draw.qkv(size), "source": source, "read": read, "start": 0}


def run(q: Tensor, k: Tensor, v: Tensor, source: int, read: Tensor, start: int) -> Tensor:
    ad.require(start >= 0, "`start` is the first position of the target, at least 0")
    shaped("read", read, len(q), q.shape[2])
    ad.require((read >= 0).all(), "`read` counts source tokens, at least 0")
    places = torch.arange(q.shape[2], device=q.device)
    places = torch.where(places < source, places, places - source + start)
    return attention.bind(source=source, read=read)(rotate(q, places), rotate(k, places), v)


def formula(q: Tensor, k: Tensor, v: Tensor, source: int, read: Tensor, start: int) -> Tensor:
    """Source rows are causal; a target row sees `read` source tokens and the target so far, at positions of theirs."""
    length, dim = q.shape[2:]
    target = length - source
    places = torch.cat((torch.arange(source), start + torch.arange(target))).to(q.device)
    q, k = turned(q, places), turned(k, places)
    live = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().repeat(q.shape[0], 1, 1, 1)
    unread = torch.arange(source, device=q.device) >= read[:, None, source:, None]
    live[:, :, source:, :source] &= ~unread
    return ((q @ k.mH).real / dim**0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("Group Position Encoding",),
    paper="LLM as Effective Streaming Processor: Bridging Streaming-Batch Mismatches with Group Position Encoding",
    year=2025,
    conventions="All of the source is stored before the target; `read` holds, for a target row, how many source "
    "tokens it sees, and means nothing in source rows. The target's positions count from `start`.",
    pitfall="A token's position is not where it is stored, and the released masks shift the source bound by one row: "
    "the row that predicts a word has the bound of that word, not of the one it reads.",
    source="the training masks and positions of the authors' repository, EIT-NLP/StreamingLLM",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"source": [-1, 98], "start": -1, "read": [torch.full((2, 97), -1), torch.zeros(2, 98).int()]},
)
