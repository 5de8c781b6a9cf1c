"""Causal attention on a small FPGA: a prompt in tiles, in reverse order, then one token at a time over the cache."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TILE = 16

attention = ad.attention(mask_mod=ad.masks.causal, name="tellme")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size, kv_heads=size.heads // 2), "prompt": size.length - 3}


def run(q: Tensor, k: Tensor, v: Tensor, prompt: int) -> Tensor:
    """The prompt at once; every further token against what is cached by then, itself included."""
    ad.require(1 <= prompt <= q.shape[2], "`prompt` counts tokens, 1 to all of them")
    parts = [attention(q[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt], enable_gqa=True)]
    for place in range(prompt, q.shape[2]):
        cached = slice(place + 1)
        step = attention(q[:, :, place : place + 1], k[:, :, cached], v[:, :, cached], enable_gqa=True, q_offset=place)
        parts.append(step)
    return torch.cat(parts, 2)


def formula(q: Tensor, k: Tensor, v: Tensor, prompt: int) -> Tensor:
    """Tiles of keys from the last to the first with a running maximum and sum: the order does not matter."""
    group, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    places = torch.arange(length, device=q.device)
    state: tuple[Tensor, Tensor, Tensor] | None = None
    for first in reversed(range(0, length, TILE)):
        keys = slice(first, first + TILE)
        dead = places[keys] > places[:, None]
        scores = (q @ k[:, :, keys].mT / q.shape[-1] ** 0.5).masked_fill(dead, -torch.inf)
        m = scores.amax(-1, keepdim=True).clamp(min=-1e30)
        p = (scores - m).exp()
        part = (m, p.sum(-1, keepdim=True), p @ v[:, :, keys])
        state = part if state is None else _joined(state, part)
    assert state is not None
    return state[2] / state[1]


def _joined(one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    m = torch.maximum(one[0], other[0])
    a, b = (one[0] - m).exp(), (other[0] - m).exp()
    return m, one[1] * a + other[1] * b, one[2] * a + other[2] * b


ENTRY = Entry(
    systems=("TeLLMe v2",),
    paper="TeLLMe v2: An Efficient End-to-End Ternary LLM Prefill and Decode Accelerator with Table-Lookup Matmul on "
    "Edge FPGAs",
    year=2025,
    conventions="Causal, grouped heads. Decoding passes the number of cached tokens as the query's offset.",
    pitfall="A single query aligned with the first key would see that key alone: the offset says where it stands.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"prompt": 0},
    trained=False,
    usual=Size(1, 16, 1024, 64),
)
