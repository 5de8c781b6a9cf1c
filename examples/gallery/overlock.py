"""A convolution whose kernel, at each place, is made from what the place makes of an overview of the whole image."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

PROGRAM = """
def start(place, size, length) = clamp(place - size // 2, 0, length - size)

attention contmix(size: int = 5, width: int = 16, logits: tensor[B, H, N, S], bias: tensor[H, R, R]) {
    require  size >= 1, "`size` counts places along an axis, at least 1"
    require  size <= width and size * width <= kv_len, "`size` is larger than the image"
    let height = kv_len // width
    let qy = q_idx // width
    let qx = q_idx % width
    let ky = kv_idx // width
    let kx = kv_idx % width
    let y = ky - start(qy, size, height)
    let x = kx - start(qx, size, width)
    let first = start(qy, size, height) * width
    mask   kv_idx >= first and kv_idx < first + size * width and x >= 0 and x < size
    score  logits[b, h, q_idx, y * size + x] + bias[h, ky - qy + size - 1, kx - qx + size - 1]
}
"""
attention = ad.parse(PROGRAM).contmix
REGIONS, SMALL, LARGE = 7, 5, 7
"""Regions along an axis, and the sizes of the two kernels of the last stages."""


def inputs(size: Size, draw: Draw) -> Inputs:
    height = int(size.length**0.5)
    width = size.length // height
    return {
        "q": draw.normal(size.batch, size.heads, height * width, size.head_dim),
        "overview": draw.normal(size.batch, size.heads, REGIONS**2, size.head_dim),
        "mixing": draw.normal(REGIONS**2, SMALL**2 + LARGE**2) / REGIONS,
        "near": draw.normal(size.heads, 2 * SMALL - 1, 2 * SMALL - 1),
        "far": draw.normal(size.heads, 2 * LARGE - 1, 2 * LARGE - 1),
        "v": draw.normal(size.batch, 2 * size.heads, height * width, size.head_dim),
        "width": width,
    }


def run(q: Tensor, overview: Tensor, mixing: Tensor, near: Tensor, far: Tensor, v: Tensor, width: int) -> Tensor:
    """The logits are given, so the attention has no use for queries and keys: the values stand in for both."""
    ad.require(width >= 1 and v.shape[2] % width == 0, "`width` places to a row do not make up the tokens")
    small, large = ((each.shape[-1] + 1) // 2 for each in (near, far))
    offsets = small**2 + large**2
    ad.require(mixing.shape[1] == offsets, "`mixing` has a column for each place of the kernels of `near` and `far`")
    fits = all(each.shape[-2:] == (2 * size - 1,) * 2 for each, size in ((near, small), (far, large)))
    ad.require(fits, "`near` and `far` have 2 size - 1 offsets along either axis")
    logits = (q @ overview.mT / q.shape[-1] ** 0.5 @ mixing).split([small**2, large**2], -1)
    halves = []
    for values, size, own, bias in zip(v.chunk(2, 1), (small, large), logits, (near, far), strict=True):
        bound = attention.bind(size=size, width=width, logits=own, bias=bias)
        halves.append(bound(values.detach(), values.detach(), values))
    return torch.cat(halves, 1)


def formula(q: Tensor, overview: Tensor, mixing: Tensor, near: Tensor, far: Tensor, v: Tensor, width: int) -> Tensor:
    """o_i = sum over a window of softmax(W (q_i k_l)_l + B)(delta) v, the window moved inwards at a border."""
    height = v.shape[2] // width
    logits = (q @ overview.mT / q.shape[-1] ** 0.5) @ mixing
    token = torch.arange(v.shape[2], device=v.device)
    places, first, halves = (token // width, token % width), 0, []
    for values, bias in zip(v.chunk(2, 1), (near, far), strict=True):
        size = (bias.shape[-1] + 1) // 2
        offset = torch.arange(size, device=v.device)
        starts = [
            (place - size // 2).clamp(0, length - size) for place, length in zip(places, (height, width), strict=True)
        ]
        rows = (starts[0][:, None] + offset)[:, :, None].expand(-1, size, size).flatten(1)
        columns = (starts[1][:, None] + offset)[:, None, :].expand(-1, size, size).flatten(1)
        moved = bias[:, rows - places[0][:, None] + size - 1, columns - places[1][:, None] + size - 1]
        weights = (logits[..., first : first + size**2] + moved).softmax(-1)
        halves.append(torch.einsum("bhns,bhnsd->bhnd", weights, values[:, :, rows * width + columns]))
        first += size**2
    return torch.cat(halves, 1)


ENTRY = Entry(
    systems=("OverLoCK (ContMix)",),
    paper="OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels",
    year=2025,
    conventions="Places row by row. The first half of the channels takes the small kernel, the second the large one; "
    "both have logits from every head. Windows keep their size at a border. Gate and convolutions are outside.",
    pitfall="The linear map from regions to offsets comes first and the softmax over offsets second; the weights come "
    "from the overview and never from the neighbours' keys.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the authors' `DynamicConvBlock`, which calls NATTEN's `na2d_av`, as several repositories carry it",
    refuses={
        "width": 6,
        "mixing": torch.zeros(49, 73),
        "near": torch.zeros(4, 9, 8),
        "far": torch.zeros(4, 12, 13),
    },
    usual=Size(1, 4, 4096, 32),
)
