"""A draft of the attention map at low resolution says which patches of a video meet at full resolution."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

FRAME, PATCH = (4, 8), (2, 4)
"""Rows and columns of a frame, and of the patches that are pooled to one token of the draft."""
TOKENS = PATCH[0] * PATCH[1]

attention = ad.attention(name="draft_attention")


def inputs(size: Size, draw: Draw) -> Inputs:
    """Tokens frame by frame, row by row, then `text` tokens of the prompt; `share` of the draft is kept."""
    frames = max(1, size.length // (FRAME[0] * FRAME[1]))
    total = frames * FRAME[0] * FRAME[1] + 5
    return {**draw.qkv(Size(size.batch, size.heads, total, size.head_dim)), "text": 5, "share": 0.3}


def run(q: Tensor, k: Tensor, v: Tensor, text: int, share: float) -> Tensor:
    """Tokens patch by patch make a patch a block; text is the last block, which always meets all."""
    ad.require(0 < share <= 1, "`share` of the patches' pairs is kept, above 0 and at most 1")
    ad.require((q.shape[2] - text) % (FRAME[0] * FRAME[1]) == 0 and 0 < text <= TOKENS, "`text` ends a video")
    order = _patch_major(q.shape[2] - text, text).to(q.device)
    draft = [x[:, :, order[:-text]].unflatten(2, (-1, TOKENS)).mean(3) for x in (q, k)]
    scores = (draft[0] @ draft[1].mT / q.shape[-1] ** 0.5).softmax(-1)
    count = max(1, int(share * scores.shape[-1] ** 2))
    least = scores.flatten(2).topk(count, -1).values[..., -1]
    live = torch.nn.functional.pad(scores >= least[..., None, None], (0, 1, 0, 1), value=True)
    out = attention(*(x[:, :, order] for x in (q, k, v)), blocks=ad.BlockTable(live, block=(TOKENS, TOKENS)))
    return out[:, :, order.argsort()]


def formula(q: Tensor, k: Tensor, v: Tensor, text: int, share: float) -> Tensor:
    """Every token's patch from its coordinates; a pair is live if its patches' entry is among the largest of its head's
    whole map softmax(q~ k~^T / sqrt(d)), or if one of the two is text."""
    video = q.shape[2] - text
    y, x = torch.arange(video) % (FRAME[0] * FRAME[1]) // FRAME[1], torch.arange(video) % FRAME[1]
    frame = torch.arange(video) // (FRAME[0] * FRAME[1])
    across, patches = FRAME[1] // PATCH[1], FRAME[0] * FRAME[1] // TOKENS
    patch = (frame * patches + y // PATCH[0] * across + x // PATCH[1]).to(q.device)
    members = torch.nn.functional.one_hot(patch).to(q.dtype).T / TOKENS
    scores = ((members @ q[:, :, :video]) @ (members @ k[:, :, :video]).mT / q.shape[-1] ** 0.5).softmax(-1)
    ranks = scores.flatten(2).argsort(-1, descending=True).argsort(-1).unflatten(-1, scores.shape[-2:])
    kept = ranks < max(1, int(share * scores.shape[-1] ** 2))
    live = torch.ones(*q.shape[:2], q.shape[2], q.shape[2], dtype=torch.bool, device=q.device)
    live[:, :, :video, :video] = kept[:, :, patch][..., patch]
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


def _patch_major(video: int, text: int) -> Tensor:
    """The place, frame by frame, of each token in the order of patches."""
    frames = torch.arange(video).reshape(-1, FRAME[0] // PATCH[0], PATCH[0], FRAME[1] // PATCH[1], PATCH[1])
    return torch.cat((frames.transpose(2, 3).flatten(), torch.arange(video, video + text)))


ENTRY = Entry(
    systems=("DraftAttention",),
    paper="DraftAttention: Fast Video Diffusion via Low-Resolution Attention Guidance",
    year=2025,
    conventions="Patches of 2 x 4 tokens of a frame (8 x 16 in the paper). The share is of a head's whole map, so rows "
    "keep different numbers of patches; text sees and is seen by all.",
    pitfall="The share is not one of each row: a row of the draft may keep no patch at all and sees the text alone; "
    "without text its output would be 0.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"share": [0.0, 1.5], "text": [0, 9, 6]},
    source="the authors' repository",
    trained=False,
    usual=Size(1, 8, 4096, 128),
)
