"""A long history is read once by a window of observers; everything after talks to what they made of it."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

reading = ad.attention(name="tlinformer_context")
writing = ad.attention(mask_mod=ad.masks.causal, name="tlinformer_generation")


def inputs(size: Size, draw: Draw) -> Inputs:
    history = Size(size.batch, size.heads, size.length - size.length // 4, size.head_dim)
    recent = Size(size.batch, size.heads, size.length // 4, size.head_dim)
    past = {f"past_{name}": tokens for name, tokens in draw.qkv(history).items()}
    weight = (size.heads, size.head_dim, size.head_dim)
    inner = {name: draw.normal(*weight) / size.head_dim**0.5 for name in ("w_q", "w_k", "w_v")}
    return {**draw.qkv(recent), **past, **inner, "window": size.length // 8}


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_q: Tensor,
    past_k: Tensor,
    past_v: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Generation in the first layer and in a middle one; the context in a middle layer and restored by the last."""
    ad.require(1 <= window <= past_q.shape[2], "`window` counts the last tokens of the history, 1 to all of them")
    context = reading(past_q[:, :, -window:], past_k, past_v)
    keys, values = context @ w_k, context @ w_v
    own = writing(q, k, v)
    first, middle = own + reading(q, past_k, past_v), own + reading(q, keys, values)
    return first, middle, reading(context @ w_q, keys, values), reading(past_q, keys, values)


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_q: Tensor,
    past_k: Tensor,
    past_v: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X = A(Q, K, V) + A(Q, K_h, V_h), later + A(Q, K_C, V_C), C = A(Q_h[-w:], K_h, V_h); restored A(Q_h, K_C, V_C)."""
    scale = q.shape[-1] ** -0.5

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return (queries @ keys.mT * scale).softmax(-1) @ values

    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    own = (q @ k.mT * scale).masked_fill(future, -torch.inf).softmax(-1) @ v
    context = attend(past_q[:, :, past_q.shape[2] - window :], past_k, past_v)
    inner = context @ w_k, context @ w_v
    first, middle = own + attend(q, past_k, past_v), own + attend(q, *inner)
    return first, middle, attend(context @ w_q, *inner), attend(past_q, *inner)


ENTRY = Entry(
    systems=("TLinFormer",),
    paper="Rethinking Transformer Connectivity: TLinFormer, A Path to Exact, Full Context-Aware Linear Attention",
    year=2025,
    conventions="Queries and keys already rotated. The layers' residuals and feed-forward parts are left out. In the "
    "first layer generation reads the whole history, in later ones the window's states.",
    pitfall="A token's attention to its own window and to the context are two softmaxes whose outputs are added.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the author's `TransformerBlockInnerLayer`: two calls, added, and not one softmax over both",
    refuses={"window": 0},
)
