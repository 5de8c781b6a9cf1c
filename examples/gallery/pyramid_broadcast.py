"""Attention of a video diffusion step that is computed anew only now and then: outputs of earlier steps stand in."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

PATCHES = 16
KINDS = ("spatial", "temporal", "cross")

within_frames = ad.attention(
    mask_mod=lambda q_idx, kv_idx: q_idx // PATCHES == kv_idx // PATCHES, name="pyramid_spatial"
)
across_frames = ad.attention(
    mask_mod=lambda q_idx, kv_idx: q_idx % PATCHES == kv_idx % PATCHES, name="pyramid_temporal"
)
to_text = ad.attention(name="pyramid_cross")


def inputs(size: Size, draw: Draw) -> Inputs:
    """Tensors of every step first; `every` says after how many steps each kind is computed again."""
    steps = 5
    video = Size(steps, size.heads, size.length // PATCHES * PATCHES, size.head_dim)
    text = draw.qkv(video, kv_length=21)
    return {**draw.qkv(video), "text_k": text["k"], "text_v": text["v"], "spatial": 2, "temporal": 3, "cross": 4}


def run(
    q: Tensor, k: Tensor, v: Tensor, text_k: Tensor, text_v: Tensor, spatial: int, temporal: int, cross: int
) -> tuple[Tensor, ...]:
    """Steps are batches: those computed are attended at once, and shown for the steps they stand in for."""
    for name, every in zip(KINDS, (spatial, temporal, cross), strict=True):
        ad.require(every >= 1, f"`{name}` counts steps, at least 1")
    shown = [torch.arange(len(q), device=q.device) // every for every in (spatial, temporal, cross)]
    return (
        within_frames(q[::spatial], k[::spatial], v[::spatial])[shown[0]],
        across_frames(q[::temporal], k[::temporal], v[::temporal])[shown[1]],
        to_text(q[::cross], text_k[::cross], text_v[::cross])[shown[2]],
    )


def formula(
    q: Tensor, k: Tensor, v: Tensor, text_k: Tensor, text_v: Tensor, spatial: int, temporal: int, cross: int
) -> tuple[Tensor, ...]:
    """Step by step: softmax over a frame, over a patch's own place in all frames, over the text, or the last output."""
    outs: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for step in range(len(q)):
        frames = [x[step].unflatten(1, (-1, PATCHES)) for x in (q, k, v)]
        fresh = {
            "spatial": _softmax(*frames).flatten(1, 2),
            "temporal": _softmax(*(x.transpose(1, 2) for x in frames)).transpose(1, 2).flatten(1, 2),
            "cross": _softmax(q[step], text_k[step], text_v[step]),
        }
        for kind, every in zip(KINDS, (spatial, temporal, cross), strict=True):
            outs[kind].append(fresh[kind] if step % every == 0 else outs[kind][-1])
    return tuple(torch.stack(outs[kind]) for kind in KINDS)


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


ENTRY = Entry(
    systems=("PAB (pyramid attention broadcast)",),
    paper="Real-Time Video Generation with Pyramid Attention Broadcast",
    year=2024,
    conventions="Tokens frame by frame, the patches of a frame together. Spatial outputs change fastest between steps "
    "and are reused least, cross attention's most.",
    pitfall="It is the attention's output that is broadcast, not its weights: values of a skipped step are never read.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"spatial": 0, "temporal": 0, "cross": 0},
    trained=False,
    usual=Size(1, 16, 4096, 64),
)
