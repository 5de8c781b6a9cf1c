"""Sparse attention for all queries, corrected by the error that is measured at every gamma-th of them."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.mask_mod
def recent(q_idx, kv_idx, *, sink: int, window: int):
    ad.require(sink >= 0, "`sink` counts the first tokens, 0 for none")
    ad.require(window >= 1, "`window` counts tokens, the query's own included")
    return ad.masks.sinks_and_window(q_idx, kv_idx, sink=sink, window=window)


@ad.mask_mod
def causal_from(q_idx, kv_idx, *, places=ad.IntTensor["Q"]):
    return kv_idx <= places[q_idx]


sparse = ad.attention(mask_mod=recent, name="delta_sparse")
dense = ad.attention(mask_mod=causal_from, name="delta_dense")


def inputs(size: Size, draw: Draw) -> Inputs:
    gamma, last = (8, 13) if size.length < 1024 else (64, 128)
    return {**draw.qkv(size), "sink": 4, "window": 32, "gamma": gamma, "last": last}


def run(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, gamma: int, last: int) -> Tensor:
    """The chosen queries go through one dense call, which is told at which places they stand."""
    ad.require(gamma >= 1, "`gamma` counts queries from one correction to the next, at least 1")
    ad.require(0 <= last <= q.shape[2], "`last` counts queries, 0 to all of them")
    first = q.shape[2] - last
    places = torch.cat([torch.arange(0, first, gamma), torch.arange(first, q.shape[2])]).to(q.device)
    out = sparse.bind(sink=sink, window=window)(q, k, v)
    exact = dense.bind(places=places.int())(q[:, :, places], k, v)
    strided, tail = exact.split([len(places) - last, last], 2)
    delta = strided - out[:, :, :first:gamma]
    return torch.cat([out[:, :, :first] + delta.repeat_interleave(gamma, 2)[:, :, :first], tail], 2)


def formula(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, gamma: int, last: int) -> Tensor:
    """O_i = S_i + (D - S) at gamma floor(i / gamma), and O_i = D_i for the last queries."""
    place = torch.arange(q.shape[2], device=q.device)
    past = place <= place[:, None]
    kept = past & ((place < sink) | (place[:, None] - place < window))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    full, cheap = (scores.masked_fill(~live, -torch.inf).softmax(-1) @ v for live in (past, kept))
    corrected = cheap + (full - cheap)[:, :, place // gamma * gamma]
    return torch.where((place >= q.shape[2] - last)[:, None], full, corrected)


ENTRY = Entry(
    systems=("Delta Attention",),
    paper="Delta Attention: Fast and Accurate Sparse Attention Inference by Delta Correction",
    year=2025,
    conventions="Causal. Sparse is a window and the first tokens; any other sparse attention can stand in its place.",
    pitfall="Every gamma-th query must be masked by the place it came from, not by its rank among the chosen.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"sink": -1, "window": 0, "gamma": 0, "last": [-1, 98]},
    trained=False,
    usual=Size(1, 8, 4096, 128),
)
