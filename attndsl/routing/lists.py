"""Lists of blocks with counts, checked and turned into a map.

In: `indices` [B, H, query blocks, M] and `counts` [B, H, query blocks]. Out: a bool map [B, H, query blocks, key
blocks], or one error that lists every reason why the lists mean none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter


def listed_blocks(indices: Tensor, counts: Tensor, kv_blocks: int) -> Tensor:
    """The map of checked lists."""
    # What stands beyond the counts goes to one more block, which is dropped.
    places = torch.where(_is_listed(indices, counts), indices.long(), kv_blocks)
    live = places.new_zeros((*places.shape[:3], kv_blocks + 1), dtype=torch.bool)
    return live.scatter_(3, places, True)[..., :kv_blocks].contiguous()


def check_lists(indices: Any, counts: Any, kv_blocks: Any) -> None:
    """Raise everything that is wrong with lists of blocks."""
    reporter = Reporter(CallError)
    _check_kinds(reporter, indices, counts, kv_blocks)
    reporter.check()
    _check_shapes(reporter, indices, counts)
    reporter.check()
    _check_counts(reporter, indices, counts)
    _check_range(reporter, indices, counts, kv_blocks)
    reporter.check()
    _check_duplicates(reporter, indices, counts, kv_blocks)
    reporter.check()


def _check_kinds(reporter: Reporter, indices: Any, counts: Any, kv_blocks: Any) -> None:
    for name, tensor in (("indices", indices), ("counts", counts)):
        if not isinstance(tensor, Tensor):
            reporter.error("not-a-tensor", f"`{name}` is a {type(tensor).__name__}, expected an int tensor")
        elif tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool:
            reporter.error("table-dtype", f"`{name}` has dtype {tensor.dtype}, expected integers")
    if not isinstance(kv_blocks, int) or isinstance(kv_blocks, bool) or kv_blocks < 0:
        reporter.error("bad-block", f"`kv_blocks` is {kv_blocks!r}, expected the number of key blocks")


def _check_shapes(reporter: Reporter, indices: Tensor, counts: Tensor) -> None:
    if indices.dim() != 4 or counts.shape != indices.shape[:3]:
        message = f"`indices` has shape {tuple(indices.shape)} and `counts` {tuple(counts.shape)}"
        help_ = "shape them (batch or 1, heads or 1, query blocks, most blocks of a row) and the same without the last"
        reporter.error("table-rank", message, help=help_)
    if indices.device != counts.device:
        reporter.error("mixed-devices", f"`indices` is on {indices.device}, `counts` on {counts.device}")


def _check_counts(reporter: Reporter, indices: Tensor, counts: Tensor) -> None:
    width = indices.shape[3]
    bad = (counts < 0) | (counts > width)
    if bad.any():
        at = _first(bad)
        message = f"`counts` is {int(counts[at])} at {_place(at)}, but `indices` lists up to {width} blocks a row"
        reporter.error("count-beyond-table", message)


def _check_range(reporter: Reporter, indices: Tensor, counts: Tensor, kv_blocks: int) -> None:
    bad = _is_listed(indices, counts) & ((indices < 0) | (indices >= kv_blocks))
    if bad.any():
        at = _first(bad)
        message = f"`indices` lists block {int(indices[at])} at {_place(at)}, of {kv_blocks} key blocks"
        reporter.error("block-out-of-range", message, help="what is not to be read belongs beyond `counts`")


def _check_duplicates(reporter: Reporter, indices: Tensor, counts: Tensor, kv_blocks: int) -> None:
    # What is not listed differs from every block and from its neighbours.
    distinct = kv_blocks + torch.arange(indices.shape[3], device=indices.device)
    ordered = torch.where(_is_listed(indices, counts), indices.long(), distinct).sort(-1).values
    bad = ordered[..., 1:] == ordered[..., :-1]
    if bad.any():
        at = _first(bad)
        message = f"`indices` lists block {int(ordered[at])} twice at {_place(at[:3])}"
        reporter.error("duplicate-block", message, help="list each block once: a pair is live or it is not")


def _is_listed(indices: Tensor, counts: Tensor) -> Tensor:
    return torch.arange(indices.shape[3], device=indices.device) < counts[..., None]


def _first(bad: Tensor) -> tuple[int, ...]:
    return tuple(bad.nonzero()[0].tolist())


def _place(at: tuple[int, ...]) -> str:
    names = ("batch", "head", "query block", "entry")
    return ", ".join(f"{name} {index}" for name, index in zip(names, at, strict=False))
