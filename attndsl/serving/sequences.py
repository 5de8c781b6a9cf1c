"""Sequences laid end to end: where each begins, and for every token what its sequence is.

In: `cu_seqlens` of queries and keys, and the offset of queries. Out: `Sequences`, checked, with the tensors that packed
variants read, remembered for as long as the index tensors keep their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter, fail
from attndsl.runtime.arguments import is_integer
from attndsl.serving.remembered import Remembered

BOTTOM_RIGHT = "bottom_right"
"""The offset at which the last query of each sequence stands at its last key."""

INDICES = (torch.int32, torch.int64)
SHAPE = "(sequences + 1,)"


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Lengths and offsets of every sequence, on the host, and `tensors` by the roles of `rewrite.ROLES`.

    `is_alike`: queries and keys of a sequence are the same tokens.
    """

    q_lens: Tensor
    kv_lens: Tensor
    offsets: Tensor
    is_alike: bool
    tensors: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return len(self.q_lens)

    def distinct(self) -> set[tuple[int, int, int]]:
        """Lengths of queries and keys with the offset, of sequences that have queries."""
        rows = zip(self.q_lens.tolist(), self.kv_lens.tolist(), self.offsets.tolist(), strict=True)
        return {row for row in rows if row[0]}


_known: Remembered[Sequences] = Remembered()


def sequences_of(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, q_offset: int | Tensor | str, q_total: int | None, kv_total: int | None
) -> Sequences:
    """The sequences of a call; index tensors are read on the host once for each time they are written."""
    _check_kinds(cu_seqlens_q, cu_seqlens_k, q_offset)
    watched = tuple(one for one in (cu_seqlens_q, cu_seqlens_k, q_offset) if isinstance(one, Tensor))
    number = None if isinstance(q_offset, Tensor) else q_offset
    sequences = _known.use(watched, number, lambda: _read(cu_seqlens_q, cu_seqlens_k, q_offset))
    _check_totals(sequences, q_total, kv_total)
    return sequences


def _check_kinds(cu_seqlens_q: Any, cu_seqlens_k: Any, q_offset: Any) -> None:
    """What can be said without reading them."""
    reporter = Reporter(CallError)
    for name, given in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check_indices(reporter, name, given, 1, SHAPE)
    reporter.check()
    sizes = len(cu_seqlens_q), len(cu_seqlens_k)
    if 0 in sizes:
        message = "`cu_seqlens` is empty, expected 0 and the end of every sequence"
        reporter.error("bad-sequences", message)
    elif sizes[0] != sizes[1]:
        message = f"`cu_seqlens_q` is of {sizes[0] - 1} sequences, `cu_seqlens_k` of {sizes[1] - 1}"
        reporter.error("bad-sequences", message)
    if cu_seqlens_q.device != cu_seqlens_k.device:
        message = f"`cu_seqlens_q` is on {cu_seqlens_q.device}, `cu_seqlens_k` on {cu_seqlens_k.device}"
        reporter.error("mixed-devices", message)
    _check_offset(reporter, q_offset, sizes[0] - 1)
    reporter.check()


def check_indices(reporter: Reporter, name: str, given: Any, rank: int, shape: str) -> None:
    """Report what is no index tensor of that many dimensions."""
    if not isinstance(given, Tensor):
        reporter.error("not-a-tensor", f"`{name}` is of type {type(given).__name__}, expected an int tensor {shape}")
    elif given.dtype not in INDICES or given.dim() != rank:
        found = f"dtype {given.dtype} and shape {tuple(given.shape)}"
        reporter.error("bad-indices", f"`{name}` has {found}, expected int32 or int64 of shape {shape}")


def _check_offset(reporter: Reporter, q_offset: Any, count: int) -> None:
    if isinstance(q_offset, Tensor):
        check_indices(reporter, "q_offset", q_offset, 1, "(sequences,)")
        if q_offset.shape != (count,):
            message = f"`q_offset` has shape {tuple(q_offset.shape)}, there are {count} sequences"
            reporter.error("bad-offset", message)
    elif q_offset != BOTTOM_RIGHT and not is_integer(q_offset):
        help_ = f'pass an int, an int tensor with one for each sequence, or "{BOTTOM_RIGHT}"'
        reporter.error("bad-offset", f"`q_offset` is {q_offset!r}", help=help_)


def _read(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, q_offset: int | Tensor | str) -> Sequences:
    refuse_capture("`cu_seqlens`", cu_seqlens_q)
    q_ends, kv_ends = (one.detach().to("cpu", torch.int64) for one in (cu_seqlens_q, cu_seqlens_k))
    reporter = Reporter(CallError)
    _check_ends(reporter, "cu_seqlens_q", q_ends)
    _check_ends(reporter, "cu_seqlens_k", kv_ends)
    reporter.check()
    q_lens, kv_lens = q_ends.diff(), kv_ends.diff()
    if isinstance(q_offset, Tensor):
        offsets = q_offset.detach().to("cpu", torch.int64)
    elif q_offset == BOTTOM_RIGHT:
        offsets = kv_lens - q_lens
    else:
        offsets = torch.full_like(q_lens, int(q_offset))
    is_alike = torch.equal(q_ends, kv_ends) and not offsets.any()
    tensors = _tensors(q_ends, kv_ends, offsets)
    placed = {role: tensor.to(cu_seqlens_q.device, torch.int32) for role, tensor in tensors.items()}
    return Sequences(q_lens, kv_lens, offsets, is_alike, placed)


def refuse_capture(what: str, tensor: Tensor) -> None:
    """Raise where a graph is being captured, in which no tensor can be read on the host."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        message = f"{what} must be read on the host, which graph capture does not allow"
        help_ = "call the attention once with the same tensors before the capture"
        raise fail(CallError, "graph-capture", message, help=help_)


def _check_ends(reporter: Reporter, name: str, ends: Tensor) -> None:
    steps = ends.diff()
    if int(ends[0]) != 0:
        reporter.error("bad-sequences", f"`{name}` begins with {int(ends[0])}, expected 0")
    if bool((steps < 0).any()):
        at = int((steps < 0).int().argmax())
        message = f"`{name}` decreases: {int(ends[at])} is followed by {int(ends[at + 1])} at index {at + 1}"
        reporter.error("bad-sequences", message, help="pass cumulated lengths: `lengths.cumsum(0)` after a 0")
    if int(ends.max()) > torch.iinfo(torch.int32).max:
        reporter.error("length-too-large", f"`{name}` goes to {int(ends.max())}, beyond 2**31 - 1")


def _tensors(q_ends: Tensor, kv_ends: Tensor, offsets: Tensor) -> dict[str, Tensor]:
    q_lens, kv_lens = q_ends.diff(), kv_ends.diff()
    numbers = torch.arange(len(q_lens))
    of_query, of_key = numbers.repeat_interleave(q_lens), numbers.repeat_interleave(kv_lens)
    return {
        "sequence": of_query,
        "q_start": (q_ends[:-1] - offsets)[of_query],
        "kv_start": kv_ends[:-1][of_query],
        "kv_end": kv_ends[1:][of_query],
        "q_lens": q_lens[of_query],
        "kv_lens": kv_lens[of_query],
        "key_sequence": of_key,
        "key_start": kv_ends[:-1][of_key],
        "key_q_lens": q_lens[of_key],
        "key_kv_lens": kv_lens[of_key],
    }


def _check_totals(sequences: Sequences, q_total: int | None, kv_total: int | None) -> None:
    """That every token is one of a sequence."""
    reporter = Reporter(CallError)
    for what, lens, total in (("q", sequences.q_lens, q_total), ("k", sequences.kv_lens, kv_total)):
        if total is not None and int(lens.sum()) != total:
            message = f"`cu_seqlens_{what}` ends at {int(lens.sum())}, `{what}` has {total} tokens"
            reporter.error("bad-sequences", message, help=f"pass `{what}[:{int(lens.sum())}]` to leave out padding")
    reporter.check()
