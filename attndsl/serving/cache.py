"""Keys and values in pages of a pool, and the table that says which pages a sequence has.

In: pools, a page table and lengths. Out: a `PagedCache`, its shapes checked when it is made, its index tensors when
they are first used and again after each write to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter
from attndsl.runtime.arguments import is_integer
from attndsl.serving.remembered import Remembered
from attndsl.serving.sequences import BOTTOM_RIGHT, check_indices, refuse_capture

INT32 = torch.iinfo(torch.int32).max


@dataclass(frozen=True, slots=True, eq=False)
class PagedCache:
    """`PagedCache(k, v, page_table, kv_lens)`: pools `(pages, page_size, Hkv, D)`, as vLLM keeps them.

    With `heads_first` pools are `(pages, Hkv, page_size, D)`. Sequence i has `kv_lens[i]` keys: key j lies in page
    `page_table[i, j // page_size]`, at place `j % page_size`. `page_table` is an int tensor (sequences, most pages),
    `kv_lens` (sequences,). Sequences may share pages. What stands in the table beyond the keys of a sequence is
    ignored, and pages it does not name are never read. Writes to pools and index tensors between calls are seen.
    """

    k: Tensor
    v: Tensor
    page_table: Tensor
    kv_lens: Tensor
    heads_first: bool = False

    def __post_init__(self) -> None:
        reporter = Reporter(CallError)
        _check_pools(reporter, self.k, self.v, self.heads_first)
        check_indices(reporter, "page_table", self.page_table, 2, "(sequences, most pages of a sequence)")
        check_indices(reporter, "kv_lens", self.kv_lens, 1, "(sequences,)")
        reporter.check()
        if len(self.page_table) != len(self.kv_lens):
            message = f"`page_table` is of {len(self.page_table)} sequences, `kv_lens` of {len(self.kv_lens)}"
            reporter.error("bad-pages", message)
        for name in ("v", "page_table", "kv_lens"):
            if getattr(self, name).device != self.k.device:
                message = f"`{name}` is on {getattr(self, name).device}, `k` on {self.k.device}"
                reporter.error("mixed-devices", message)
        reporter.check()

    @property
    def page_size(self) -> int:
        """How many keys a page holds."""
        return self.k.shape[2 if self.heads_first else 1]

    @property
    def pools(self) -> tuple[Tensor, Tensor]:
        """Views of the pools as kernels read them, `(pages, Hkv, page_size, D)`."""
        k, v = (pool if self.heads_first else pool.transpose(1, 2) for pool in (self.k, self.v))
        return k, v

    def __repr__(self) -> str:
        sequences, most = self.page_table.shape
        return f"PagedCache({sequences} sequences, at most {most} of {len(self.k)} pages of {self.page_size} keys each)"


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """Index tensors that have been checked, as kernels read them, and the offset of a sequence's first query.

    `distinct` are lengths of keys with offsets, those that occur.
    """

    table: Tensor
    kv_lens: Tensor
    q_offset: int | Tensor
    distinct: frozenset[tuple[int, int]]


_known: Remembered[Pages] = Remembered()


def pages_of(cache: PagedCache, q_len: int, q_offset: int | Tensor | str) -> Pages:
    """The pages of a call with so many queries; index tensors are read on the host once for each time they are
    written."""
    watched = tuple(one for one in (cache.page_table, cache.kv_lens, q_offset) if isinstance(one, Tensor))
    number = None if isinstance(q_offset, Tensor) else q_offset
    more = (cache.k.shape[0], cache.page_size, q_len, number)
    return _known.use(watched, more, lambda: _read(cache, q_len, q_offset))


def _read(cache: PagedCache, q_len: int, q_offset: int | Tensor | str) -> Pages:
    refuse_capture("a page table", cache.page_table)
    table, lens = (one.detach().to("cpu", torch.int64) for one in (cache.page_table, cache.kv_lens))
    reporter = Reporter(CallError)
    _check_values(reporter, table, lens, cache.page_size, len(cache.k))
    offset = _offset(reporter, q_offset, cache.kv_lens, q_len)
    reporter.check()
    on_host = torch.as_tensor(offset).detach().to("cpu", torch.int64).expand(len(lens))
    return Pages(
        cache.page_table.detach().to(torch.int32).contiguous(),
        cache.kv_lens.detach().to(torch.int32).contiguous(),
        offset,
        frozenset(zip(lens.tolist(), on_host.tolist(), strict=True)),
    )


def _offset(reporter: Reporter, q_offset: int | Tensor | str, kv_lens: Tensor, q_len: int) -> int | Tensor:
    if isinstance(q_offset, Tensor):
        check_indices(reporter, "q_offset", q_offset, 1, "(sequences,)")
        if q_offset.shape != kv_lens.shape:
            message = f"`q_offset` has shape {tuple(q_offset.shape)}, there are {len(kv_lens)} sequences"
            reporter.error("bad-offset", message)
            return 0
        return q_offset
    if q_offset == BOTTOM_RIGHT:
        return kv_lens.detach().long() - q_len
    if not is_integer(q_offset):
        help_ = f'pass an int, an int tensor with one for each sequence, or "{BOTTOM_RIGHT}"'
        reporter.error("bad-offset", f"`q_offset` is {q_offset!r}", help=help_)
        return 0
    return int(q_offset)


def _check_values(reporter: Reporter, table: Tensor, lens: Tensor, page_size: int, pages: int) -> None:
    room = table.shape[1] * page_size
    if room > INT32:
        reporter.error("length-too-large", f"a sequence has room for {room} keys, more than 2**31 - 1")
    for at in _some((lens < 0) | (lens > room)):
        message = f"sequence {at} has {int(lens[at])} keys, its {table.shape[1]} pages have room for 0 to {room}"
        reporter.error("bad-pages", message)
    used = torch.arange(table.shape[1]) * page_size < lens[:, None]
    bad = used & ((table < 0) | (table >= pages))
    for at in _some(bad.any(1)):
        place = int(bad[at].int().argmax())
        message = f"`page_table[{at}, {place}]` is {int(table[at, place])}, there are {pages} pages"
        reporter.error("bad-pages", message, None, f"sequence {at} has {int(lens[at])} keys, {page_size} in a page")


def _some(bad: Tensor, most: int = 4) -> Iterator[int]:
    """The first few places at which something holds."""
    yield from bad.nonzero().flatten()[:most].tolist()


def _check_pools(reporter: Reporter, k: object, v: object, heads_first: bool) -> None:
    shape = "(pages, heads, page_size, head_dim)" if heads_first else "(pages, page_size, heads, head_dim)"
    for name, pool in (("k", k), ("v", v)):
        if not isinstance(pool, Tensor):
            reporter.error("not-a-tensor", f"`{name}` is of type {type(pool).__name__}, expected a pool {shape}")
        elif pool.dim() != 4:
            message = f"`{name}` has shape {tuple(pool.shape)}, expected 4 dimensions"
            reporter.error("wrong-rank", message, help=f"shape it {shape}")
    if isinstance(k, Tensor) and isinstance(v, Tensor) and k.dim() == v.dim() == 4:
        if k.shape[:3] != v.shape[:3]:
            message = f"`k` {tuple(k.shape)} and `v` {tuple(v.shape)} differ in more than head_dim"
            reporter.error("bad-pages", message, help=f"shape both {shape}")
        elif 0 in k.shape[:3]:
            reporter.error("bad-pages", f"`k` has shape {tuple(k.shape)}, expected a page, a head and a key at least")
