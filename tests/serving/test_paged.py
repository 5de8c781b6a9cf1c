"""Caches in pages, each sequence held against the reference over its keys alone, in float64; unused places hold NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import INTERPRETING, on_kernels
from strategies import Case, cases
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention
from attndsl.compiler import Compilation
from attndsl.frontend.bindings import Bindings, Bound, Leaf
from attndsl.ir.variant import Variant
from attndsl.reference import attend

Value = int | float | Tensor

HQ, HKV, D, DV = 6, 2, 32, 16
LENGTHS = (40, 0, 17, 33, 1) if INTERPRETING else (300, 0, 65, 128, 1)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
PAGE_SIZES = (1, 7, 16, 64, 128)

on_reference = pytest.mark.skipif(INTERPRETING, reason="runs no kernel")
native = pytest.mark.skipif(INTERPRETING, reason="of native kernels")


def keys(lengths: Sequence[int], dtype: torch.dtype = torch.float32, width: int = D, seed: int = 1) -> list[Tensor]:
    """The keys of each sequence, (length, HKV, width)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, HKV, width, generator=generator).to(dtype) for length in lengths]


def cache_of(k: list[Tensor], v: list[Tensor], page_size: int, heads_first: bool = False) -> ad.PagedCache:
    """Keys and values in pages taken at random from pools of NaN; the rest of the table is no page at all."""
    most = max(1, max(-(-len(one) // page_size) for one in k) + 1)
    count = sum(-(-len(one) // page_size) for one in k) + 3
    order = iter(torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist())
    table = torch.full((len(k), most), -(2**30), dtype=torch.int32)
    pools = [torch.full((count, page_size, *of[0].shape[1:]), torch.nan, dtype=of[0].dtype) for of in (k, v)]
    for b, (own_k, own_v) in enumerate(zip(k, v, strict=True)):
        for place, start in enumerate(range(0, len(own_k), page_size)):
            table[b, place] = page = next(order)
            for pool, own in zip(pools, (own_k, own_v), strict=True):
                part = own[start : start + page_size]
                pool[page, : len(part)] = part
    if heads_first:
        pools = [pool.transpose(1, 2).contiguous() for pool in pools]
    lens = torch.tensor([len(one) for one in k], dtype=torch.int32)
    return ad.PagedCache(*pools, table, lens, heads_first=heads_first)


def one_by_one(
    variant: Variant,
    values: Mapping[str, Value],
    q: Tensor,
    k: list[Tensor],
    v: list[Tensor],
    offsets: Sequence[int],
) -> tuple[Tensor, Tensor | None]:
    """Every sequence in float64 over its own keys."""
    outs, logs = [], []
    for b, (own_k, own_v) in enumerate(zip(k, v, strict=True)):
        tensors = (own.transpose(0, 1)[None].expand(len(q), -1, -1, -1).double() for own in (own_k, own_v))
        found = attend(variant, values, q.double(), *tensors, enable_gqa=True, q_offset=offsets[b])
        outs.append(found.out[b])
        logs.append(None if found.lse is None else found.lse[b])
    known = [one for one in logs if one is not None]
    return torch.stack(outs), torch.stack(known) if known else None


def check(
    attention: Attention,
    q_len: int,
    page_size: int,
    *,
    lengths: Sequence[int] = LENGTHS,
    dtype: torch.dtype = torch.float32,
    heads_first: bool = False,
    offset: Any = "bottom_right",
    **how: Any,
) -> None:
    k, v = keys(lengths, dtype), keys(lengths, dtype, DV, seed=2)
    q = torch.randn(len(lengths), HQ, q_len, D, generator=torch.Generator().manual_seed(3)).to(dtype)
    cache = cache_of(k, v, page_size, heads_first)
    found, aux = ad.paged(attention, q, cache, enable_gqa=True, q_offset=offset, return_aux=True, **how)
    offsets = [length - q_len if offset == "bottom_right" else int(offset) for length in lengths]
    out, lse = one_by_one(attention.variant, attention._values(), q, k, v, offsets)  # type: ignore[arg-type]
    assert found.dtype is dtype
    assert_rows_close(found, out, TOLERANCE[dtype])
    if lse is not None:
        assert_rows_close(aux.lse[..., None], lse[..., None], TOLERANCE[dtype])


CAUSAL = ad.attention(mask_mod=ad.masks.causal)
BIASED = ad.attention(
    mask_mod=ad.masks.sliding_window(window=30),
    score_mod=lambda score, b, h, q_idx, kv_idx: score - 0.01 * (h + b) * (q_idx - kv_idx),
    normalizer=ad.softmax(sink=torch.linspace(-1, 1, HQ)),
)
TABLED = ad.attention(mask_mod=lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (kv_idx % 5 != b))
LOOKED_UP = ad.attention(
    mask_mod=lambda b, h, q_idx, kv_idx: kv_idx * 0.01 < q_idx, normalizer=ad.normalizers.sigmoid()
)


class TestCalls:
    pytestmark = on_kernels

    @pytest.mark.parametrize("page_size", (7, 64) if INTERPRETING else PAGE_SIZES)
    @pytest.mark.parametrize("q_len", (1, 18) if INTERPRETING else (1, 5, 20))
    def test_pages_are_looked_up(self, q_len: int, page_size: int) -> None:
        for heads_first in (False, True):
            check(BIASED, q_len, page_size, heads_first=heads_first)

    @pytest.mark.parametrize("name", ["tabled", "looked_up", "plain", "sparse", "offset"])
    def test_any_walk_and_normalizer(self, name: str) -> None:
        known = {
            "tabled": TABLED,
            "looked_up": LOOKED_UP,
            "plain": ad.attention(),
            "sparse": ad.attention(mask_mod=ad.masks.causal, normalizer=ad.normalizers.sparsemax()),
        }
        check(known.get(name, CAUSAL), 3, 16, offset=7 if name == "offset" else "bottom_right")

    def test_lengths_of_the_sequence_are_those_a_variant_sees(self) -> None:
        attention = ad.attention(
            score_mod=lambda score, b, h, q, k: score,
            mask_mod=ad.mask_mod(lambda kv_idx, kv_len: kv_len - kv_idx <= 20),
        )
        check(attention, 2, 16)


@native
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    for q_len, page_size in ((1, 16), (6, 64), (130, 16), (130, 64)):
        check(CAUSAL, q_len, page_size, dtype=dtype)


@native
def test_long_caches_are_split() -> None:
    for page_size in (16, 64):
        check(CAUSAL, 1, page_size, lengths=(9000, 4097, 3, 0, 8192))


@native
def test_sequences_may_share_pages() -> None:
    k, v = keys((48,)), keys((48,), width=DV)
    cache = cache_of(k, v, 16)
    table = torch.cat((cache.page_table, cache.page_table.flip(1)))
    table[1, :4] = cache.page_table[0, torch.tensor([0, 2, 1, 3])]
    shared = ad.PagedCache(cache.k, cache.v, table, torch.tensor([48, 48], dtype=torch.int32))
    q = torch.randn(1, HQ, 1, D).expand(2, -1, -1, -1)
    found = ad.paged(ad.attention(), q, shared, enable_gqa=True)
    assert_rows_close(found[0], found[1], 1e-6)


@native
def test_pools_may_be_views_of_one_tensor() -> None:
    k, v = keys(LENGTHS), keys(LENGTHS, seed=2)
    apart = cache_of(k, v, 16)
    for joined in (torch.stack((apart.k, apart.v)).unbind(0), torch.stack((apart.k, apart.v), -1).unbind(-1)):
        cache = ad.PagedCache(*joined, apart.page_table.long(), apart.kv_lens.long())
        q = torch.randn(len(LENGTHS), HQ, 2, D)
        wanted = ad.paged(CAUSAL, q, apart, enable_gqa=True)
        assert_rows_close(ad.paged(CAUSAL, q, cache, enable_gqa=True, check=True), wanted, 1e-6)


@native
def test_a_cache_grows_in_place() -> None:
    k, v = keys((33,)), keys((33,), width=DV)
    cache = cache_of(k, v, 16)
    q = torch.randn(1, HQ, 1, D)
    for length in (15, 16, 17, 32, 33):
        cache.kv_lens.fill_(length)
        wanted, _ = one_by_one(CAUSAL.variant, {}, q, [k[0][:length]], [v[0][:length]], [length - 1])
        assert_rows_close(ad.paged(CAUSAL, q, cache, enable_gqa=True), wanted, 1e-5)
    cache.page_table[0, 0] = len(cache.k)
    with pytest.raises(ad.DiagnosticError, match="bad-pages"):
        ad.paged(CAUSAL, q, cache, enable_gqa=True)


@st.composite
def caches(draw: Any, **how: Any) -> tuple[Case, list[int], int]:
    """A program, and for each of its batches a number of keys within its call; a page size."""
    case = draw(cases(max_programs=8, **how))
    return case, [draw(st.integers(0, case.kv_len)) for _ in range(case.batch)], draw(st.sampled_from(PAGE_SIZES))


def compare(case: Case, lengths: list[int], page_size: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(7)
    k, v = (
        [torch.randn(length, case.kv_heads, width, generator=generator, dtype=torch.float64) for length in lengths]
        for width in (case.head_dim, case.v_head_dim)
    )
    q = torch.randn(case.batch, case.q_heads, case.q_len, case.head_dim, generator=generator, dtype=torch.float64)
    captured = {param.name: Bound(case.values[param.name], param.dtype, Leaf()) for param in case.variant.params}
    attention = Attention(Compilation(case.variant), Bindings(captured, {}, tuple(captured)))
    offset = case.q_offset
    offsets = offset.tolist() if isinstance(offset, Tensor) else [offset] * case.batch
    wanted, _ = one_by_one(case.variant, case.values, q, k, v, offsets)
    found = ad.paged(attention, q, cache_of(k, v, page_size), enable_gqa=True, q_offset=case.q_offset, backend=backend)
    assert_rows_close(found, wanted, 1e-9, repr(case))


@on_reference
@given(caches(tensor_offsets=True, weights=True))
@settings(max_examples=30, deadline=None)
def test_random_programs_mean_the_same(drawn: tuple[Case, list[int], int]) -> None:
    compare(*drawn, "reference")


@native
@given(caches(max_length=200))
@settings(max_examples=2, deadline=None)
def test_random_programs_on_kernels(drawn: tuple[Case, list[int], int]) -> None:
    compare(*drawn, "cpu")


def pools(pages: int = 4, page_size: int = 16) -> dict[str, Tensor]:
    shape = (pages, page_size, HKV, D)
    table = torch.arange(4).view(2, 2).int()
    return {"k": torch.zeros(shape), "v": torch.zeros(shape), "page_table": table, "kv_lens": torch.tensor([32, 3])}


CACHES: dict[str, tuple[dict[str, Any], str]] = {
    "list": ({"page_table": [[0, 1]]}, "not-a-tensor.*`page_table` is of type list"),
    "floats": ({"kv_lens": torch.tensor([1.0, 2.0])}, "bad-indices.*`kv_lens` has dtype torch.float32"),
    "sequences": ({"kv_lens": torch.tensor([1])}, "bad-pages.*of 2 sequences, `kv_lens` of 1"),
    "rank": ({"k": torch.zeros(4, 16, D)}, "wrong-rank.*`k` has shape"),
    "pool": ({"v": 3}, "not-a-tensor.*`v` is of type int"),
    "unlike": ({"v": torch.zeros(4, 8, HKV, D)}, "bad-pages.*differ in more than head_dim"),
    "none": ({"k": torch.zeros(0, 16, HKV, D), "v": torch.zeros(0, 16, HKV, D)}, "bad-pages.*a page, a head and a key"),
    "device": ({"kv_lens": torch.zeros(2, dtype=torch.int32, device="meta")}, "mixed-devices.*`kv_lens` is on meta"),
}


@on_reference
@pytest.mark.parametrize("mistake", sorted(CACHES))
def test_mistakes_in_a_cache_are_named(mistake: str) -> None:
    changed, message = CACHES[mistake]
    with pytest.raises(ad.DiagnosticError, match=message):
        ad.PagedCache(**{**pools(), **changed})


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "page": (
        {"page_table": torch.tensor([[0, 4], [-1, -1]])},
        {},
        r"`page_table\[0, 1\]` is 4, there are 4(.|\n)*\[1, 0\]",
    ),
    "long": ({"kv_lens": torch.tensor([33, 3])}, {}, "sequence 0 has 33 keys, its 2 pages have room for 0 to 32"),
    "negative": ({"kv_lens": torch.tensor([32, -1])}, {}, "sequence 1 has -1 keys"),
    "cache": ({}, {"cache": 3}, "bad-pages.*`cache` is of type int"),
    "query": ({}, {"q": 3}, "not-a-tensor.*`q` is of type int"),
    "rank": ({}, {"q": torch.zeros(2, HQ, D)}, "wrong-rank.*`q` has shape"),
    "batch": ({}, {"q": torch.zeros(3, HQ, 1, D)}, "batch-mismatch.*the cache is of 2 sequences"),
    "head-dim": ({}, {"q": torch.zeros(2, HQ, 1, 8)}, "head-dim-mismatch"),
    "dtype": ({}, {"q": torch.zeros(2, HQ, 1, D).half()}, "mixed-dtypes"),
    "gqa": ({}, {"enable_gqa": False}, "heads-mismatch"),
    "offset": ({}, {"q_offset": "last"}, "bad-offset.*'last'"),
    "offsets": ({}, {"q_offset": torch.tensor([1])}, "bad-offset.*there are 2 sequences"),
    "aux": ({}, {"return_aux": ["entropy"]}, "paged-aux"),
    "gradient": ({}, {"q": torch.zeros(2, HQ, 1, D, requires_grad=True)}, "paged-gradients"),
}


@on_reference
@pytest.mark.parametrize("mistake", sorted(CALLS))
def test_mistakes_in_a_call_are_named(mistake: str) -> None:
    changed, given, message = CALLS[mistake]
    cache = ad.PagedCache(**{**pools(), **changed})
    call = {"q": torch.zeros(2, HQ, 1, D), "cache": cache, "enable_gqa": True, **given}
    with pytest.raises(ad.DiagnosticError, match=message):
        ad.paged(CAUSAL, **call)


@on_reference
def test_parameters_of_a_model_are_no_obstacle_without_gradients() -> None:
    q = torch.zeros(2, HQ, 1, D, requires_grad=True)
    with torch.no_grad():
        out = ad.paged(CAUSAL, q, ad.PagedCache(**pools()), enable_gqa=True, backend="reference")
    assert not out.requires_grad


@on_reference
def test_a_room_beyond_32_bits_is_refused() -> None:
    big = torch.zeros(1, 1, HKV, D).expand(1, 2**20, HKV, D)
    cache = ad.PagedCache(big, big, torch.zeros(1, 2**11, dtype=torch.int32), torch.tensor([1]))
    with pytest.raises(ad.DiagnosticError, match="length-too-large"):
        ad.paged(CAUSAL, torch.zeros(1, HQ, 1, D), cache, enable_gqa=True)


@on_reference
def test_a_cache_says_what_it_is() -> None:
    assert repr(ad.PagedCache(**pools())) == "PagedCache(2 sequences, at most 2 of 4 pages of 16 keys each)"
    assert ad.PagedCache(**pools()).page_size == 16
