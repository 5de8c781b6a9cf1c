"""Single-head gated attention in chunks, on moving averages, with weights that no row sum divides."""

import math

import torch
from torch import Tensor
from torch.nn import functional

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

PROGRAM = """
def keys_of(place, chunk, kv_len) = min(chunk, kv_len - place // chunk * chunk)

attention mega_laplace(chunk: int = 32, bias: tensor[D]) {
    require     chunk >= 1, "`chunk` counts tokens, at least 1"
    mask        kv_idx // chunk == q_idx // chunk
    score       score / keys_of(q_idx, chunk, kv_len) + bias[kv_idx - q_idx + chunk - 1]
    normalizer  0.5 * (1.0 + erf((score - 0.7071067811865476) / 0.3989422804014327))
}

attention mega_relu2(chunk: int = 32, bias: tensor[D]) {
    require     chunk >= 1, "`chunk` counts tokens, at least 1"
    mask        kv_idx // chunk == q_idx // chunk
    score       score / keys_of(q_idx, chunk, kv_len) + bias[kv_idx - q_idx + chunk - 1]
    normalizer  max(score, 0.0) ** 2
}
"""
programs = ad.parse(PROGRAM)
laplace, relu2 = programs.mega_laplace, programs.mega_relu2


def inputs(size: Size, draw: Draw) -> Inputs:
    chunk, width = 32 if size.length < 1024 else 128, 2 * size.head_dim
    tokens = (size.batch, size.length)
    return {
        "z": draw.normal(*tokens, size.head_dim),
        "v": draw.normal(*tokens, width),
        "scales": 1 + draw.normal(2, size.head_dim) / 4,
        "shifts": draw.normal(2, size.head_dim) / 4,
        "bias": draw.normal(2 * chunk - 1) / 4,
        "reset": draw.normal(*tokens, width),
        "chunk": chunk,
    }


def run(
    z: Tensor, v: Tensor, scales: Tensor, shifts: Tensor, bias: Tensor, reset: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Query and key are two affine views of one tensor; the reset gate multiplies the output."""
    ad.require(len(bias) >= 2 * chunk - 1, "`bias` has fewer distances than there are in a chunk")
    shared = functional.silu(z)
    q, k = (shared * scale + shift for scale, shift in zip(scales, shifts, strict=True))
    values, gate = functional.silu(v)[:, None], functional.silu(reset)
    bound = (attention.bind(chunk=chunk, bias=bias) for attention in (laplace, relu2))
    first, second = (attention(q[:, None], k[:, None], values, scale=1.0)[:, 0] for attention in bound)
    return first * gate, second * gate


def formula(
    z: Tensor, v: Tensor, scales: Tensor, shifts: Tensor, bias: Tensor, reset: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """SiLU(R) f(Q K^T / n + B) V in chunks of n tokens, f(x) = (1 + erf((x - mu) / (sigma sqrt 2))) / 2 or relu^2."""
    mu, sigma = math.sqrt(0.5), math.sqrt(0.25 / math.pi)
    shared, values = z * torch.sigmoid(z), v * torch.sigmoid(v)
    laplaces, squares = [], []
    for start in range(0, z.shape[1], chunk):
        here = shared[:, start : start + chunk]
        length = here.shape[1]
        q, k = here * scales[0] + shifts[0], here * scales[1] + shifts[1]
        place = torch.arange(length, device=z.device)
        scores = q @ k.mT / length + bias[place - place[:, None] + chunk - 1]
        own = values[:, start : start + chunk]
        laplaces.append((1 + torch.erf((scores - mu) / (sigma * math.sqrt(2)))) / 2 @ own)
        squares.append(scores.relu().square() @ own)
    gate = reset * torch.sigmoid(reset)
    return torch.cat(laplaces, 1) * gate, torch.cat(squares, 1) * gate


ENTRY = Entry(
    systems=("Mega",),
    paper="Mega: Moving Average Equipped Gated Attention",
    year=2022,
    conventions="Mega-chunk, not causal, a bias for each distance. Results: Laplace weights, then squared ReLU; the "
    "softmax is plain and divides by the root of the width. The moving average before `z` is a scan of its own.",
    pitfall="Scores are divided by the length of the chunk, the last one's shorter, before the bias is added; "
    "queries and keys come from one tensor, so their gradients add up.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="`element_attention` of the authors' facebookresearch/mega: the length divides the product alone",
    refuses={"chunk": 0, "bias": torch.zeros(62)},
    usual=Size(1, 1, 4096, 64),
)
