"""3D reconstruction from a stream of images: tokens see the frames up to their own, whose registers go with them."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = "attention frames(frame: int tensor[N]) { mask frame[kv_idx] <= frame[q_idx] }"
attention = ad.parse(TEXT).frames


def inputs(size: Size, draw: Draw) -> Inputs:
    """Frames of unlike length: the first has more register tokens than later ones."""
    image = size.length // 5
    first = size.length - 4 * image
    frame = torch.cat([torch.full((first if number == 0 else image,), number) for number in range(5)])
    return {**draw.qkv(size), "frame": frame}


def run(q: Tensor, k: Tensor, v: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """All frames at once, as in training, and the last one against a cache of those before it."""
    ad.require((frame[1:] >= frame[:-1]) & (len(frame) == k.shape[2]), "`frame` has the frame of each token, in order")
    causal = attention(frame=frame)
    last = int((frame < frame[-1]).sum())
    return causal(q, k, v), causal(q[:, :, last:], k, v, q_offset=last)


def formula(q: Tensor, k: Tensor, v: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the tokens of this frame and those before; the last frame sees everything."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    out = scores.masked_fill(frame[None, :] > frame[:, None], -torch.inf).softmax(-1) @ v
    return out, scores[:, :, frame == frame[-1]].softmax(-1) @ v


ENTRY = Entry(
    systems=("STream3R",),
    paper="STream3R: Scalable Sequential 3D Reconstruction with Causal Transformer",
    year=2025,
    conventions="Full inside a frame. `frame` names the frame of each token, camera and register tokens included.",
    pitfall="Frames are not equally long once registers count, so a frame is not its index divided by a length.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"frame": torch.tensor([1, 0])},
)
