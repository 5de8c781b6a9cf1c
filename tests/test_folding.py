"""Few queries of heads that share keys: the same numbers as of heads one by one, from one walk over the keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from compare import assert_rows_close
from hypothesis import assume, given, settings
from launches import INTERPRETING, on_kernels
from strategies import Case, cases
from torch import Tensor

import attndsl as ad
from attndsl import folding
from attndsl.compiler import Compilation
from attndsl.reference import attend
from attndsl.runtime.arguments import Call

KEYS = 70 if INTERPRETING else 4500
"""Enough for native kernels to split them."""

native = pytest.mark.skipif(INTERPRETING, reason="of native kernels")

SLOPES = torch.linspace(0.01, 0.4, 71)
WINDOW = ad.attention(
    mask_mod=ad.masks.sliding_window(window=50),
    score_mod=lambda score, b, h, q, kv: score - SLOPES[h] * (q - kv),
)
SINK = ad.attention(mask_mod=ad.masks.causal, normalizer=ad.softmax(sink=SLOPES))


def tensors(
    heads: int, kv_heads: int, queries: int, keys: int = KEYS, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, queries, 32), (2, kv_heads, keys, 32), (2, kv_heads, keys, 16))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


class TestGroups:
    pytestmark = on_kernels

    @pytest.mark.parametrize("shape", [(6, 2, 3), (5, 1, 1), (7, 1, 16), (24, 2, 1), (71, 1, 1), (3, 3, 3)])
    def test_any_ratio(self, shape: tuple[int, int, int]) -> None:
        q, k, v = tensors(*shape)
        heads, _, queries = shape
        last = KEYS - queries
        # Sinks and slopes that belong to a group's other heads would show.
        for attention in (WINDOW, SINK.bind(sink=SLOPES[:heads])):
            for offset in (last, torch.tensor([last, 40])):
                how = {"enable_gqa": True, "q_offset": offset, "return_aux": ["lse", "max_score"]}
                out, aux = attention(q, k, v, **how)
                wanted, expected = attention.reference(q.double(), k.double(), v.double(), **how)
                assert_rows_close(out, wanted, 1e-5)
                assert_rows_close(aux.lse[..., None], expected.lse[..., None], 1e-5)
                assert_rows_close(aux.max_score[..., None], expected.max_score[..., None], 1e-5)
            if INTERPRETING:
                break


@native
def test_halves() -> None:
    for heads in ((8, 2), (71, 1)):
        q, k, v = tensors(*heads, 1, dtype=torch.bfloat16)
        out = WINDOW(q, k, v, enable_gqa=True, q_offset=KEYS - 1)
        wanted = WINDOW.reference(q.double(), k.double(), v.double(), enable_gqa=True, q_offset=KEYS - 1)
        assert_rows_close(out, wanted, 3e-2)


@native
@pytest.mark.parametrize("queries", [1, 40])
def test_rows_without_keys_and_short_windows_among_many_keys(queries: int) -> None:
    """A split is of the keys that are seen: none, one tile, all."""
    q, k, v = tensors(3, 1, queries)
    for offset in (-100, 0, 2200, KEYS - queries, 2 * KEYS):
        for attention in (WINDOW, ad.attention(mask_mod=ad.masks.causal)):
            out = attention(q, k, v, enable_gqa=True, q_offset=offset)
            wanted = attention.reference(q.double(), k.double(), v.double(), enable_gqa=True, q_offset=offset)
            assert_rows_close(out, wanted, 1e-5)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@native
@pytest.mark.usefixtures("threads")
def test_the_same_bits_at_any_number_of_threads() -> None:
    q, k, v = tensors(6, 2, 3)
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(WINDOW(q, k, v, enable_gqa=True, q_offset=KEYS - 3))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@native
def test_queries_may_lie_in_any_way() -> None:
    q, k, v = tensors(6, 2, 3)
    wanted = WINDOW(q, k, v, enable_gqa=True, q_offset=KEYS - 3)
    for way in (q.transpose(1, 2).contiguous().transpose(1, 2), q.repeat(1, 1, 1, 2)[..., :32], q.mT.contiguous().mT):
        assert torch.equal(WINDOW(way, k, v, enable_gqa=True, q_offset=KEYS - 3), wanted)


def call_of(case: Case, *given: Tensor) -> Call:
    return Call(*given, 0.3, case.q_offset, case.values)


@given(cases(tensor_offsets=True, weights=True))
@settings(max_examples=40, deadline=None)
@pytest.mark.skipif(INTERPRETING, reason="runs no kernel")
def test_random_programs_mean_the_same(case: Case) -> None:
    assume(case.q_heads > case.kv_heads)
    q, k, v = case.inputs(dtype=torch.float64)
    call = call_of(case, q, k, v)
    names = folding._names(case.variant)
    by_batch = isinstance(case.q_offset, Tensor)
    grouped = folding.Folded(Compilation(folding.fold(case.variant, names, by_batch)), folding.FactBook(), names)
    inner = grouped.call(call)
    assert inner.heads == inner.kv_heads
    found = attend(grouped.compilation.source, inner.values, inner.q, k, v, scale=0.3)
    rows = folding.unfolded(folding.Rows(found.out, found.lse, found.max_score), call)
    wanted = attend(case.variant, case.values, q, k, v, scale=0.3, enable_gqa=True, q_offset=case.q_offset)
    assert_rows_close(rows.out, wanted.out, 1e-9, repr(case))
    assert_rows_close(rows.max_score[..., None], wanted.max_score[..., None], 1e-9, repr(case))


def test_many_queries_and_calls_that_learn_stay_as_they_are() -> None:
    compilation = Compilation(WINDOW.variant)

    def is_folded(queries: int, *, heads: int = 2, learns: bool = False) -> bool:
        q = torch.zeros(1, heads, queries, 8, requires_grad=learns)
        kv = torch.zeros(1, 1, 5, 8)
        return folding.folded(compilation, Call(q, kv, kv, 1.0, 0, {})) is not None

    assert is_folded(1)
    assert is_folded(16)
    assert not is_folded(17)
    assert not is_folded(0)
    assert not is_folded(1, heads=1)
    assert not is_folded(1, learns=True)
    with torch.no_grad():
        assert is_folded(1, learns=True)
