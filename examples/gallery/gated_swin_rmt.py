"""Shifted windows attended along one axis and then the other, nearer places weighing more, outputs gated."""

import torch
from torch import Tensor
from torch.nn import functional

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped


@ad.mask_mod
def line(q_idx, kv_idx, *, width: int, window: int, shift: int):
    ad.require((window >= 1) & (window <= width), "`window` counts places along an axis, at most all of them")
    ad.require((shift >= 0) & (shift < window), "`shift` is less than the window")
    row, before = q_idx // width * width, window - shift
    start = row + (q_idx - row + before) // window * window - before
    return (kv_idx >= row) & (kv_idx < row + width) & (kv_idx >= start) & (kv_idx < start + window)


@ad.score_mod
def manhattan(score, h, q_idx, kv_idx, *, log_decay=ad.Tensor["H"]):
    return score + log_decay[h] * ad.abs(q_idx - kv_idx)


@ad.score_mod
def slanted(score, h, q_idx, kv_idx, *, slopes=ad.Tensor["H"]):
    return score + slopes[h] * (q_idx - kv_idx)


@ad.weight_mod
def nearer(weight, h, q_idx, kv_idx, *, log_decay=ad.Tensor["H"]):
    return weight * ad.exp(log_decay[h] * ad.abs(q_idx - kv_idx))


retention = ad.attention(mask_mod=line, score_mod=manhattan, name="swin_rmt_retention")
swat = ad.attention(
    mask_mod=line,
    score_mod=slanted,
    normalizer=ad.normalizers.sigmoid(),
    weight_mod=nearer,
    name="swin_rmt_swat",
)


def inputs(size: Size, draw: Draw) -> Inputs:
    height = int(size.length**0.5)
    width = size.length // height
    given = draw.qkv(Size(size.batch, size.heads, height * width, size.head_dim))
    gate = draw.normal(*given["v"].shape)
    tables = {"log_decay": draw.uniform(-1.0, -0.1, size.heads), "slopes": draw.normal(size.heads) / 4}
    return {**given, "gate": gate, **tables, "width": width, "window": 7, "shift": 3}


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    log_decay: Tensor,
    slopes: Tensor,
    width: int,
    window: int,
    shift: int,
) -> tuple[Tensor, Tensor]:
    """Along the columns it is the same attention of transposed tokens."""
    height = q.shape[2] // max(width, 1)
    ad.require(width >= 1 and height * width == q.shape[2], "`width` places to a row do not make up the tokens")
    shaped("log_decay", log_decay, q.shape[1])
    shaped("slopes", slopes, q.shape[1])
    shaped("gate", gate, *v.shape)
    ad.require((log_decay <= 0).all(), "`log_decay` is the logarithm of a decay, at most 0")
    how = {"log_decay": log_decay, "window": window, "shift": shift}
    q_turned, k_turned = _turned(q, width), _turned(k, width)

    def passes(attention: ad.Attention, values: Tensor, **more: Tensor) -> Tensor:
        rows = attention.bind(**how, **more, width=width)(q, k, values)
        columns = attention.bind(**how, **more, width=height)(q_turned, k_turned, _turned(rows, width))
        return _turned(columns, height)

    plain = passes(retention, v) * torch.sigmoid(gate)
    gated = passes(swat, functional.silu(gate) * v, slopes=slopes)
    return plain, functional.rms_norm(gated, gated.shape[-1:], eps=1e-6)


def _turned(tokens: Tensor, width: int) -> Tensor:
    return tokens.unflatten(2, (-1, width)).transpose(2, 3).flatten(2, 3)


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    log_decay: Tensor,
    slopes: Tensor,
    width: int,
    window: int,
    shift: int,
) -> tuple[Tensor, Tensor]:
    """A_y (A_x V): A = softmax(S + |d| log g), then sigmoid(gate) O; A = sigmoid(S + slope d) g^|d|, then RMS norm."""
    token = torch.arange(q.shape[2], device=q.device)
    axes = (token // width, token % width)
    logs, slants = log_decay[:, None, None], slopes[:, None, None]
    scores, values, switched = q @ k.mT / q.shape[-1] ** 0.5, v, v * gate * torch.sigmoid(gate)
    for along, across in ((axes[1], axes[0]), (axes[0], axes[1])):
        cut = torch.where(along < shift, -1, (along - shift) // window)
        live = (across[:, None] == across) & (cut[:, None] == cut)
        d = (along[:, None] - along).to(q.dtype)
        values = (scores + d.abs() * logs).masked_fill(~live, -torch.inf).softmax(-1) @ values
        weights = torch.where(live, torch.sigmoid(scores + d * slants) * torch.exp(logs * d.abs()), 0.0)
        switched = weights @ switched
    size = (switched.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return values * torch.sigmoid(gate), switched / size


ENTRY = Entry(
    systems=("Gated-SwinRMT (SWAT / Retention)",),
    paper="Gated-SwinRMT: Unifying Swin Windowed Attention with Retentive Manhattan Decay via Input-Dependent Gating",
    year=2026,
    conventions="Results: Retention, then SWAT. Places row by row; windows at the borders are what the cuts leave. The "
    "pass along the rows first, with the same queries and keys in both. Slopes have either sign. The convolution added "
    "before the gate is left out.",
    pitfall="SWAT's decay multiplies after the sigmoid: as a bias in the score it would mean another thing.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the paper's abstract",
    refuses={
        "width": [0, 7],
        "window": [0, 11],
        "shift": [-1, 7],
        "log_decay": [torch.ones(4), torch.zeros(5)],
        "slopes": torch.zeros(5),
        "gate": torch.zeros(4, 90, 32),
    },
    usual=Size(1, 4, 4096, 32),
)
