"""Packed sequences, each held against the reference of that sequence alone, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from launches import INTERPRETING, on_kernels
from strategies import Case, cases
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention
from attndsl.compiler import Compilation
from attndsl.frontend.bindings import Bindings, Bound, Leaf
from attndsl.ir.variant import Variant
from attndsl.reference import attend, live_pairs

Value = int | float | Tensor
Lengths = Sequence[int]

HQ, HKV, D, DV = 4, 2, 32, 16
SMALL = ((5, 0, 17, 16, 1, 20), (5, 3, 0, 16, 33, 12))
LARGE = ((5, 0, 130, 64, 1, 77), (70, 3, 0, 129, 1, 64))
QUERIES, KEYS = SMALL if INTERPRETING else LARGE
"""Lengths of queries and of keys: on both sides of tile edges, with empty sequences, and queries without keys."""

on_reference = pytest.mark.skipif(INTERPRETING, reason="runs no kernel")
native = pytest.mark.skipif(INTERPRETING, reason="of native kernels")


def ends(lengths: Lengths, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def tokens(q_lens: Lengths, kv_lens: Lengths, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((sum(q_lens), HQ, D), (sum(kv_lens), HKV, D), (sum(kv_lens), HKV, DV))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def one_by_one(
    variant: Variant,
    values: Mapping[str, Value],
    tensors: tuple[Tensor, Tensor, Tensor],
    q_lens: Lengths,
    kv_lens: Lengths,
    offsets: Lengths,
) -> tuple[Tensor, Tensor | None]:
    """Every sequence as one batch of a padded call of its own lengths: outputs and log divisors, tokens first."""
    count, outs, logs = len(q_lens), [], []
    for i, (q_lo, kv_lo) in enumerate(zip(ends(q_lens).tolist(), ends(kv_lens).tolist(), strict=False)):
        if i == count:
            break
        places = (slice(q_lo, q_lo + q_lens[i]), *(slice(kv_lo, kv_lo + kv_lens[i]),) * 2)
        own = (tensor[place].transpose(0, 1)[None] for tensor, place in zip(tensors, places, strict=True))
        q, k, v = (tensor.expand(count, -1, -1, -1) for tensor in own)
        found = attend(variant, values, q, k, v, enable_gqa=True, q_offset=offsets[i])
        outs.append(found.out[i].transpose(0, 1))
        logs.append(None if found.lse is None else found.lse[i].transpose(0, 1))
    known = [one for one in logs if one is not None]
    return torch.cat(outs), torch.cat(known) if known else None


def check(
    attention: Attention, q_lens: Lengths, kv_lens: Lengths, q_offset: Any = 0, tolerance: float = 1e-5, **how: Any
) -> None:
    """Outputs and log divisors of a call against those of its sequences."""
    tensors = tokens(q_lens, kv_lens, how.pop("dtype", torch.float32))
    given = how.pop("kv_ends", ends(kv_lens))
    found, aux = ad.varlen(
        attention, *tensors, ends(q_lens), given, enable_gqa=True, q_offset=q_offset, return_aux=["lse"], **how
    )
    offsets = [kv - q if q_offset == "bottom_right" else q_offset for q, kv in zip(q_lens, kv_lens, strict=True)]
    precise = tuple(tensor.double() for tensor in tensors)
    out, lse = one_by_one(attention.variant, attention._values(), precise, q_lens, kv_lens, offsets)  # type: ignore[arg-type]
    assert lse is not None
    assert found.is_contiguous()
    assert found.dtype is tensors[0].dtype
    assert_rows_close(found, out, tolerance)
    assert_rows_close(aux.lse[..., None], lse[..., None], tolerance)


@ad.score_mod
def learned(
    score: Any,
    b: Any,
    h: Any,
    q_idx: Any,
    kv_idx: Any,
    *,
    slopes: Tensor,
    rel: Tensor,
    by_key: Tensor,
    by_query: Tensor,
) -> Any:
    far = rel[h, ad.clamp(q_idx - kv_idx, 0, 39)]
    return score - slopes[b, h] * (q_idx - kv_idx) + far + by_key[b, kv_idx] + by_query[q_idx]


@ad.mask_mod
def window_or_first(q_idx: Any, kv_idx: Any, *, window: int) -> Any:
    return (kv_idx <= q_idx) & ((q_idx - kv_idx < window) | (kv_idx < 2))


@ad.score_mod
def of_lengths(score: Any, q_len: Any, kv_len: Any, q_idx: Any) -> Any:
    return score * ad.log(kv_len + 1.0) + 0.01 * (q_len - q_idx)


def captured(seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"slopes": (6, HQ), "rel": (HQ, 40), "by_key": (6, 130), "by_query": (130,)}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


CAUSAL = ad.attention(mask_mod=ad.masks.causal)
BIASED = ad.attention(
    score_mod=learned(**captured()),
    mask_mod=window_or_first(window=9),
    normalizer=ad.softmax(sink=torch.linspace(-1, 1, HQ)),
)


@pytest.mark.parametrize("how", ["same", "unequal", "bottom_right", "offset"])
class TestCalls:
    """One attention, so that kernels are few."""

    pytestmark = on_kernels

    def test_sequences_do_not_see_each_other(self, how: str) -> None:
        kv_lens = QUERIES if how == "same" else KEYS
        offset = {"bottom_right": "bottom_right", "offset": 3}.get(how, 0)
        attention = BIASED
        if how == "bottom_right":
            # Positions below 0 are no index of a table.
            attention = ad.attention(mask_mod=window_or_first(window=9), score_mod=of_lengths)
        if how == "offset":
            attention = BIASED.bind(by_query=torch.zeros(140))
        check(attention, QUERIES, kv_lens, offset)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@native
def test_other_dtypes(dtype: torch.dtype) -> None:
    check(
        ad.attention(mask_mod=ad.masks.causal),
        QUERIES,
        KEYS,
        dtype=dtype,
        tolerance=3e-2 if dtype is torch.bfloat16 else 1e-12,
    )


@pytest.mark.parametrize("lengths", [(0,), (0, 0, 7, 0), (1, 1, 1, 1), (64, 64), (129,)])
@native
def test_lengths_that_are_edges(lengths: Lengths) -> None:
    check(CAUSAL, lengths, lengths)


@pytest.mark.parametrize("same", [True, False])
class TestGradients:
    pytestmark = on_kernels

    def test_gradients_are_those_of_each_sequence(self, same: bool) -> None:
        kv_lens = QUERIES if same else KEYS
        values = {name: tensor.requires_grad_() for name, tensor in captured().items()}
        attention = ad.attention(score_mod=learned(**values), mask_mod=window_or_first(window=9))
        leaves = tuple(tensor.requires_grad_() for tensor in tokens(QUERIES, kv_lens))
        out, aux = ad.varlen(attention, *leaves, ends(QUERIES), ends(kv_lens), enable_gqa=True, return_aux=["lse"])
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        finite = torch.where(aux.lse.isfinite(), aux.lse, 0.0)
        found = torch.autograd.grad((out * weights).sum() + finite.square().sum(), (*leaves, *values.values()))

        precise = {name: tensor.detach().double().requires_grad_() for name, tensor in values.items()}
        exact = tuple(tensor.detach().double().requires_grad_() for tensor in leaves)
        names = {param.name for param in attention.variant.params}
        bound: dict[str, Value] = {**attention._values(), **{k: v for k, v in precise.items() if k in names}}
        out, lse = one_by_one(attention.variant, bound, exact, QUERIES, kv_lens, [0] * len(QUERIES))  # type: ignore[arg-type]
        assert lse is not None
        finite = torch.where(lse.isfinite(), lse, 0.0)
        wanted = torch.autograd.grad((out * weights).sum() + finite.square().sum(), (*exact, *precise.values()))
        for one, other in zip(found, wanted, strict=True):
            assert_rows_close(one, other, 2e-5)


def attention_of(case: Case) -> Attention:
    """A random program as users hold one."""
    captured = {param.name: Bound(case.values[param.name], param.dtype, Leaf()) for param in case.variant.params}
    return Attention(Compilation(case.variant), Bindings(captured, {}, tuple(captured)))


@st.composite
def packings(draw: Any, **how: Any) -> tuple[Case, list[int], list[int]]:
    """A program, and a sequence no longer than its call for each of its batches."""
    case = draw(cases(max_programs=8, **how))
    q_lens, kv_lens = (
        [draw(st.integers(0, length)) for _ in range(case.batch)] for length in (case.q_len, case.kv_len)
    )
    return case, q_lens, q_lens if draw(st.booleans()) and max(q_lens) <= case.kv_len else kv_lens


def inputs_of(case: Case, q_lens: Lengths, kv_lens: Lengths) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    sizes = (
        (sum(q_lens), case.q_heads, case.head_dim),
        (sum(kv_lens), case.kv_heads, case.head_dim),
        (sum(kv_lens), case.kv_heads, case.v_head_dim),
    )
    q, k, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return q, k, v


@on_reference
@given(packings(tensor_offsets=True, weights=True))
@settings(max_examples=40, deadline=None)
def test_random_programs_mean_the_same(packing: tuple[Case, list[int], list[int]]) -> None:
    case, q_lens, kv_lens = packing
    tensors = inputs_of(case, q_lens, kv_lens)
    offsets = case.q_offset.tolist() if isinstance(case.q_offset, Tensor) else [case.q_offset] * case.batch
    wanted, _ = one_by_one(case.variant, case.values, tensors, q_lens, kv_lens, offsets)
    found = ad.varlen(
        attention_of(case),
        *tensors,
        ends(q_lens),
        ends(kv_lens),
        enable_gqa=True,
        q_offset=case.q_offset,
        backend="reference",
    )
    assert_rows_close(found, wanted, 1e-9, repr(case))


@on_reference
@given(packings(scores=False, sinks=False))
@settings(max_examples=40, deadline=None)
def test_plans_skip_no_live_tile(packing: tuple[Case, list[int], list[int]]) -> None:
    case, q_lens, kv_lens = packing
    assume(sum(q_lens) and sum(kv_lens) and isinstance(case.q_offset, int))
    over = ad.packed(attention_of(case), ends(q_lens), ends(kv_lens), q_offset=case.q_offset)
    sizes = {"batch": 1, "heads": case.q_heads, "q_len": sum(q_lens), "kv_len": sum(kv_lens)}
    live = live_pairs(over.variant, over._values(), **sizes)  # type: ignore[arg-type]
    q_at, kv_at = (torch.arange(len(q_lens)).repeat_interleave(torch.tensor(one)) for one in (q_lens, kv_lens))
    assert not (live & (q_at[:, None] != kv_at)).any()
    classes = over.plan(sum(q_lens), sum(kv_lens), heads=case.q_heads, block=(16, 16)).classes()
    for row in range(classes.shape[2]):
        for column in range(classes.shape[3]):
            tile = live[:, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].flatten(2)
            found = classes[:, :, row, column]
            assert not (tile.any(-1) & (found == 0)).any(), repr(case)
            assert not (~tile.all(-1) & (found == 2)).any(), repr(case)


@native
@given(packings(max_length=200))
@settings(max_examples=2, deadline=None)
def test_random_programs_on_kernels(packing: tuple[Case, list[int], list[int]]) -> None:
    case, q_lens, kv_lens = packing
    assume(isinstance(case.q_offset, int))
    tensors = inputs_of(case, q_lens, kv_lens)
    wanted, _ = one_by_one(case.variant, case.values, tensors, q_lens, kv_lens, [case.q_offset] * case.batch)  # type: ignore[list-item]
    found = ad.varlen(
        attention_of(case), *tensors, ends(q_lens), ends(kv_lens), enable_gqa=True, q_offset=case.q_offset
    )
    assert_rows_close(found, wanted, 1e-9, repr(case))


@native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_keys_of_a_sequence_without_queries_are_never_read(backend: str) -> None:
    q_lens, kv_lens = (5, 0, 19), (5, 40, 19)
    q, k, v = tokens(q_lens, kv_lens)
    clean = ad.varlen(CAUSAL, q, k, v, ends(q_lens), ends(kv_lens), enable_gqa=True, backend=backend)
    k[5:45], v[5:45] = torch.nan, torch.nan
    found = ad.varlen(CAUSAL, q, k, v, ends(q_lens), ends(kv_lens), enable_gqa=True, backend=backend)
    assert_rows_close(found, clean, 1e-6)


@on_reference
def test_causality_over_same_lengths_needs_no_table() -> None:
    for lengths, others in ((LARGE[0], LARGE[0]), LARGE):
        plan = ad.packed(CAUSAL, ends(lengths), ends(others)).plan(sum(lengths), sum(others))
        assert plan.strategy == "closed_form"


@on_reference
def test_masses_count_within_sequences() -> None:
    lengths, uniform = (3, 0, 10), ad.attention(score_mod=lambda score, b, h, q, kv: score * 0)
    tensors = tokens(lengths, lengths)
    how = {"enable_gqa": True, "backend": "reference"}
    mass = ad.aux.mass(lambda kv_idx: kv_idx < 2)
    _, aux = ad.varlen(uniform, *tensors, ends(lengths), return_aux=[mass, "max_score"], **how)
    assert aux.mass.shape == (13, HQ)
    assert aux.lse is None
    torch.testing.assert_close(aux.mass[:, 0], torch.tensor([2 / 3] * 3 + [0.2] * 10))
    _, aux = ad.varlen(uniform, *tensors, ends(lengths), return_aux=[mass, mass], **how)
    assert torch.equal(aux.mass[0], aux.mass[1])


@on_reference
def test_index_tensors_are_read_anew_when_they_change() -> None:
    lengths = ends((4, 6))
    q, k, v = tokens((10,), (10,))
    how = {"enable_gqa": True, "backend": "reference"}
    first = ad.varlen(CAUSAL, q, k, v, lengths, **how)
    assert torch.equal(first, ad.varlen(CAUSAL, q, k, v, lengths, **how))
    lengths[1] = 7
    second = ad.varlen(CAUSAL, q, k, v, lengths, **how)
    assert torch.equal(second, ad.varlen(CAUSAL, q, k, v, ends((7, 3), torch.int64), **how))
    assert not torch.equal(first, second)


@on_reference
def test_values_bound_later_are_used() -> None:
    lengths = (4, 6)
    tensors = tokens(lengths, lengths)
    how = {"enable_gqa": True, "backend": "reference"}
    narrow = ad.attention(mask_mod=ad.masks.sliding_window(window=2))
    wide = ad.varlen(narrow.bind(window=10), *tensors, ends(lengths), **how)
    assert_rows_close(wide, ad.varlen(CAUSAL, *tensors, ends(lengths), **how), 1e-6)


@on_reference
def test_requirements_are_of_every_sequence() -> None:
    grid = ad.grid(y=4, x=4, tile=(2, 2))
    attention = ad.attention(mask_mod=ad.masks.neighborhood(grid, window=3))
    for lengths in ((16, 16), (0, 16)):
        tensors = tokens(lengths, lengths, torch.float64)
        found = ad.varlen(attention, *tensors, ends(lengths), enable_gqa=True, backend="reference")
        wanted, _ = one_by_one(attention.variant, attention._values(), tensors, lengths, lengths, [0, 0])  # type: ignore[arg-type]
        assert_rows_close(found, wanted, 1e-12)
    with pytest.raises(ad.DiagnosticError, match=r"error\[requirement\]"):
        ad.varlen(attention, *tokens((16, 15), (16, 15)), ends((16, 15)), enable_gqa=True)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "list": ({"cu_seqlens_q": [0, 10]}, r"not-a-tensor.*`cu_seqlens_q` is of type list"),
    "float": ({"cu_seqlens_q": torch.tensor([0.0, 10.0])}, r"bad-indices.*torch\.float32"),
    "matrix": ({"cu_seqlens_q": torch.zeros(1, 2, dtype=torch.int32)}, r"bad-indices.*\(1, 2\)"),
    "empty": ({"cu_seqlens_q": torch.zeros(0, dtype=torch.int32)}, "bad-sequences.*empty"),
    "count": ({"cu_seqlens_k": ends((5, 5))}, "of 1 sequences, `cu_seqlens_k` of 2"),
    "first": ({"cu_seqlens_q": torch.tensor([1, 10])}, "begins with 1, expected 0"),
    "order": ({"cu_seqlens_q": torch.tensor([0, 12, 10])}, "decreases: 12 is followed by 10 at index 2"),
    "total": ({"cu_seqlens_q": ends((9,))}, r"ends at 9, `q` has 10 tokens(.|\n)*`k` has 10 tokens"),
    "beyond": ({"cu_seqlens_q": torch.tensor([0, 2**31])}, "length-too-large"),
    "offset": ({"q_offset": "top"}, "bad-offset.*'top'"),
    "offsets": ({"q_offset": torch.zeros(3, dtype=torch.int64)}, r"bad-offset.*\(3,\), there are 1"),
    "offset-dtype": ({"q_offset": torch.zeros(1)}, "bad-indices.*`q_offset`"),
    "rank": ({"q": torch.zeros(1, 10, HQ, D)}, "wrong-rank.*expected 3"),
    "number": ({"q": 3}, "not-a-tensor.*`q` is of type int"),
    "device": ({"cu_seqlens_k": torch.zeros(2, dtype=torch.int32, device="meta")}, "mixed-devices"),
    "q-device": ({"q": torch.zeros(10, HQ, D, device="meta")}, "mixed-devices.*`cu_seqlens_q` is on cpu, `q` on meta"),
    "heads": ({"enable_gqa": False}, "heads-mismatch"),
}


@on_reference
@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistakes_are_named(mistake: str) -> None:
    q, k, v = tokens((10,), (10,))
    changed, message = MISTAKES[mistake]
    given = {"q": q, "k": k, "v": v, "cu_seqlens_q": ends((10,)), "enable_gqa": True, **changed}
    with pytest.raises(ad.DiagnosticError, match=message):
        ad.varlen(CAUSAL, **given)


@on_reference
def test_a_table_too_short_for_the_sequences_is_refused() -> None:
    attention = ad.attention(score_mod=lambda score, b, h, q, kv: score + torch.zeros(2)[b])
    ad.varlen(attention, *tokens((3, 4), (3, 4)), ends((3, 4)), enable_gqa=True, backend="reference")
    with pytest.raises(ad.DiagnosticError, match="index-out-of-bounds"):
        ad.varlen(attention, *tokens((3, 4, 1), (3, 4, 1)), ends((3, 4, 1)), enable_gqa=True)
