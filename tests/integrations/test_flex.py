"""`ad.flex_attention` in the place of torch's: the same arguments, the same results, and gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flexing
import pytest
import torch
from compare import assert_rows_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask, create_mask, noop_mask, or_masks

import attndsl as ad

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
DOCUMENTS = torch.tensor([[0] * 30 + [1] * 10 + [2] * 35, [0] * 47 + [1] * 28])
RELATIVE = flexing.normal(4, 200, seed=9)


def causal(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return q >= kv


def window(size: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: (q_idx - kv_idx <= size) & (q_idx >= kv_idx)


def documents(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return DOCUMENTS[b, q] == DOCUMENTS[b, kv]


def by_head(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return q - kv < 10 * (h + 1)


def alibi(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
    return score + SLOPES[h] * (kv - q)


def soft_cap(score: Any, b: Any, h: Any, q: Any, kv: Any, cap: float = 3.0) -> Any:
    return cap * torch.tanh(score / cap)


def relative(score: Any, batch: Any, head: Any, token_q: Any, token_kv: Any) -> Any:
    return score + RELATIVE[head, token_q - token_kv + 100]


MASKS: dict[str, Callable[..., Any]] = {
    "noop": noop_mask,
    "causal": causal,
    "window": window(27),
    "documents": documents,
    "causal documents": and_masks(causal, documents),
    "prefix": or_masks(causal, lambda b, h, q, kv: kv < 21),
    "by head": by_head,
    "partial": functools.partial(lambda size, b, h, q, kv: (q - kv).abs() < size, 15),
}
SCORES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "alibi": alibi,
    "soft cap": soft_cap,
    "relative": relative,
    "partial": functools.partial(soft_cap, cap=2.0),
}
SIZES = (2, 4, 75, 75)


def check(score_mod: Any, block_mask: Any, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> None:
    """Output, lse, largest score and gradients against the dense formula in float64."""
    request = ad.AuxRequest(lse=True, max_scores=True)
    out, aux = ad.flex_attention(q, k, v, score_mod, block_mask, return_aux=request, **more)
    more.pop("enable_gqa", None)
    expected = flexing.dense(q, k, v, score_mod, block_mask, **more)
    for found, wanted in zip((out, aux.lse, aux.max_scores), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    upstream, of_lse = flexing.normal(*out.shape, seed=7).double(), flexing.normal(*aux.lse.shape, seed=8).double()
    finite = expected[1].isfinite()
    found, wanted = (
        torch.autograd.grad([x, lse[finite]], [q, k, v], [upstream, of_lse[finite]])
        for x, lse in ((out, aux.lse), expected[:2])
    )
    for one, other in zip(found, wanted, strict=True):
        assert_rows_close(one, other, 1e-9)


def test_the_signature_is_torchs() -> None:
    ours, theirs = (inspect.signature(one).parameters for one in (ad.flex_attention, torch_flex.flex_attention))
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default)
    assert ad.AuxRequest is torch_flex.AuxRequest
    assert ad.AuxOutput is torch_flex.AuxOutput


@pytest.mark.usefixtures("densely")
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_call_is_what_the_formula_says(mask: str, score: str) -> None:
    counts = {"documents": (2, None), "causal documents": (2, None), "by head": (None, 4)}.get(mask, (None, None))
    block_mask = create_block_mask(MASKS[mask], *counts, 75, 75, device="cpu", BLOCK_SIZE=16)
    check(SCORES[score], block_mask, *flexing.inputs(SIZES))


@pytest.mark.usefixtures("densely")
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_function_stands_for_its_block_mask(mask: str) -> None:
    check(None, MASKS[mask], *flexing.inputs(SIZES))


@pytest.mark.parametrize("block", [16, (32, 64), (64, 32), 128])
@pytest.mark.parametrize("lengths", [(75, 75), (64, 129), (1, 90), (90, 40)])
def test_any_block_size_and_lengths(lengths: tuple[int, int], block: Any) -> None:
    sizes = (2, 4, *lengths)
    check(alibi, create_block_mask(causal, 2, 4, *lengths, device="cpu", BLOCK_SIZE=block), *flexing.inputs(sizes))


def test_lists_of_one_block_for_all_lengths() -> None:
    lists = (torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 1))
    block_mask = BlockMask.from_kv_blocks(
        *(one.int() for one in lists), BLOCK_SIZE=1 << 30, mask_mod=causal, seq_lengths=(1, 1)
    )
    check(None, block_mask, *flexing.inputs((2, 4, 75, 40)))


def test_grouped_queries_count_query_heads() -> None:
    block_mask = create_block_mask(by_head, None, 4, 75, 75, device="cpu", BLOCK_SIZE=16)
    check(alibi, block_mask, *flexing.inputs(SIZES, kv_heads=2), enable_gqa=True, scale=0.3)


def test_one_batch_of_keys_serves_all_queries() -> None:
    q, k, v = flexing.inputs((2, 4, 75, 75))
    k, v = (x[:1].detach().requires_grad_() for x in (k, v))
    check(None, create_block_mask(documents, 2, None, 75, 75, device="cpu", BLOCK_SIZE=16), q, k, v)
    check(None, causal, q, k, v)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_torch_gives_the_same(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    q, k, v = (x.detach() for x in flexing.inputs((2, 4, 75, 75), dtype=dtype))
    block_mask = create_block_mask(and_masks(causal, documents), 2, None, 75, 75, device="cpu")
    with_lse = {"return_aux": ad.AuxRequest(lse=True)}
    found, aux = ad.flex_attention(q, k, v, alibi, block_mask, **with_lse)
    wanted, theirs = torch_flex.flex_attention(q, k, v, alibi, block_mask, **with_lse)
    assert (found.dtype, aux.lse.dtype, aux.max_scores) == (wanted.dtype, theirs.lse.dtype, theirs.max_scores)
    assert_rows_close(found, wanted, tolerance)
    assert_rows_close(aux.lse, theirs.lse, 1e-3)


def test_what_is_returned_is_what_was_asked_for() -> None:
    q, k, v = flexing.inputs((1, 1, 20, 20))
    out = ad.flex_attention(q, k, v)
    pair = ad.flex_attention(q, k, v, return_lse=True)
    assert torch.equal(pair[0], out)
    assert pair[1].shape == (1, 1, 20)
    for request in (ad.AuxRequest(), ad.AuxRequest(lse=True), ad.AuxRequest(max_scores=True)):
        out, aux = ad.flex_attention(q, k, v, return_aux=request)
        assert isinstance(aux, ad.AuxOutput)
        assert ((aux.lse is not None), (aux.max_scores is not None)) == request


def test_keys_of_another_dtype_are_computed_in_the_querys() -> None:
    q, k, v = flexing.inputs((1, 2, 33, 33), dtype=torch.float32)
    found = ad.flex_attention(q, k.bfloat16(), v.bfloat16(), None, causal)
    assert found.dtype is torch.float32
    assert_rows_close(found, flexing.dense(q, k.bfloat16().float(), v.bfloat16().float(), None, causal)[0], 1e-5)


# Lists made by hand.


def random_lists(seed: int, counts: tuple[int, int], sizes: tuple[int, ...], block: tuple[int, int]) -> tuple[Any, ...]:
    """Maps of partial and of full blocks."""
    shape = (*counts, *(-(-size // side) for size, side in zip(sizes[2:], block, strict=True)))
    kind = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed))
    return kind == 1, kind == 2


@pytest.mark.usefixtures("densely")
@pytest.mark.parametrize(
    "counts, mask",
    [
        *(((1, 1), mask) for mask in (causal, noop_mask, window(11))),
        *(((2, 4), mask) for mask in (causal, noop_mask, window(11), documents, by_head)),
    ],
)
@pytest.mark.parametrize("block", [(16, 16), (32, 16), (24, 40)])
def test_full_blocks_are_live_without_the_mask(counts: tuple[int, int], block: tuple[int, int], mask: Any) -> None:
    partial, full = random_lists(3, counts, SIZES, block)
    lists = (*flexing.ordered(partial), *flexing.ordered(full))
    block_mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=block, mask_mod=mask, seq_lengths=(75, 75))
    check(alibi, block_mask, *flexing.inputs(SIZES))


@pytest.mark.parametrize("mask", [causal, noop_mask, documents])
def test_blocks_that_are_not_listed_are_dead(mask: Any) -> None:
    partial, _ = random_lists(4, (2, 1), SIZES, (16, 16))
    block_mask = BlockMask.from_kv_blocks(*flexing.ordered(partial), BLOCK_SIZE=16, mask_mod=mask, seq_lengths=(75, 75))
    check(None, block_mask, *flexing.inputs(SIZES))


@pytest.mark.usefixtures("densely")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_lists(data: st.DataObject) -> None:
    sizes = (*data.draw(st.tuples(*[st.integers(1, 2)] * 2)), *data.draw(st.tuples(*[st.integers(1, 40)] * 2)))
    block = data.draw(st.tuples(*[st.sampled_from([1, 3, 8, 16, 64])] * 2))
    counts = tuple(data.draw(st.sampled_from([1, size])) for size in sizes[:2])
    partial, full = random_lists(data.draw(st.integers(0, 99)), counts, sizes, block)
    lists = (*flexing.ordered(partial), *(flexing.ordered(full) if data.draw(st.booleans()) else ()))
    mask = data.draw(st.sampled_from([causal, noop_mask, window(5), lambda b, h, q, kv: (q * kv) % 3 != 1]))
    block_mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=block, mask_mod=mask, seq_lengths=sizes[2:])
    check(None, block_mask, *flexing.inputs(sizes))


def test_lists_without_batch_and_head() -> None:
    partial, full = random_lists(5, (1, 1), SIZES, (32, 32))
    lists = (*flexing.ordered(partial[0, 0]), *flexing.ordered(full[0, 0]))
    shapes = {"BLOCK_SIZE": (32, 32), "seq_lengths": (75, 75), "mask_mod": causal}
    q, k, v = flexing.inputs(SIZES)
    found = ad.flex_attention(q, k, v, None, BlockMask.from_kv_blocks(*lists, **shapes))
    lists = (*flexing.ordered(partial), *flexing.ordered(full))
    torch.testing.assert_close(found, ad.flex_attention(q, k, v, None, BlockMask.from_kv_blocks(*lists, **shapes)))


def test_lists_written_in_place_are_read_again() -> None:
    block_mask = create_block_mask(causal, None, None, 75, 75, device="cpu", BLOCK_SIZE=16)
    check(None, block_mask, *flexing.inputs(SIZES))
    block_mask.kv_num_blocks[0, 0, 2] = 0
    check(None, block_mask, *flexing.inputs(SIZES))
    block_mask.full_kv_num_blocks = torch.zeros_like(block_mask.full_kv_num_blocks)
    check(None, block_mask, *flexing.inputs(SIZES))
    block_mask.mask_mod = noop_mask
    check(None, block_mask, *flexing.inputs(SIZES))


def test_adjusted_sliced_and_moved_block_masks() -> None:
    block_mask = create_block_mask(window(20), None, None, 100, 100, device="cpu", BLOCK_SIZE=16)
    check(None, block_mask._adjust(75, 75).to("cpu"), *flexing.inputs(SIZES))
    sliced = block_mask[:, :, 2:4]
    sliced.mask_mod = lambda b, h, q, kv: window(20)(b, h, q + 32, kv)
    sliced.seq_lengths = (32, 100)
    check(None, sliced, *flexing.inputs((2, 4, 32, 100)))


def test_helpers_make_the_same_mask() -> None:
    mask = or_masks(and_masks(causal, documents), lambda b, h, q, kv: kv < 3)
    dense = create_mask(mask, 2, 1, 75, 75, device="cpu")
    q, k, v = flexing.inputs(SIZES)
    found = ad.flex_attention(q, k, v, None, mask)
    torch.testing.assert_close(found, flexing.dense(q, k, v, None, lambda b, h, q, kv: dense)[0])


# Captured tensors.


@pytest.mark.usefixtures("densely")
@pytest.mark.parametrize(
    "shape, score_mod",
    [
        ((4,), lambda t: lambda s, b, h, q, kv: s * t[h]),
        ((75,), lambda t: lambda s, b, h, q, kv: s + t[q] + t[kv]),
        ((4, 149), lambda t: lambda s, b, h, q, kv: s + t[h, q - kv + 74]),
        ((2, 4, 75, 75), lambda t: lambda s, b, h, q, kv: s + t[b, h, q, kv]),
        ((3, 4), lambda t: lambda s, b, h, q, kv: s + torch.sigmoid(t)[1][h]),
        ((), lambda t: lambda s, b, h, q, kv: t * torch.tanh(s / t)),
    ],
    ids=["head", "query and key", "distance", "pair", "derived", "number"],
)
def test_gradients_reach_captured_tensors(shape: tuple[int, ...], score_mod: Callable[..., Any]) -> None:
    table = (1.0 + 0.1 * flexing.normal(*shape, seed=5)).double().requires_grad_()
    q, k, v = flexing.inputs(SIZES)
    block_mask = create_block_mask(window(30), None, None, 75, 75, device="cpu", BLOCK_SIZE=16)
    found = ad.flex_attention(q, k, v, score_mod(table), block_mask)
    wanted = flexing.dense(q, k, v, score_mod(table), block_mask)[0]
    upstream = flexing.normal(*found.shape, seed=7).double()
    (one,), (other,) = (torch.autograd.grad(x, [table], upstream) for x in (found, wanted))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# What FlexAttention gets wrong.


def test_lists_for_other_numbers_of_heads_are_refused() -> None:
    block_mask = create_block_mask(by_head, None, 2, 75, 75, device="cpu", BLOCK_SIZE=16)
    with pytest.raises(ad.DiagnosticError, match="lists for 2 heads, the call has 4"):
        ad.flex_attention(*flexing.inputs(SIZES), None, block_mask)


def test_lists_of_one_head_for_a_mask_of_several_are_refused() -> None:
    block_mask = create_block_mask(by_head, None, None, 75, 75, device="cpu", BLOCK_SIZE=16)
    with pytest.raises(ad.DiagnosticError, match=r"block-mask-broadcast.*depends on `h`"):
        ad.flex_attention(*flexing.inputs(SIZES), None, block_mask)
    check(None, by_head, *flexing.inputs(SIZES))


def test_lists_of_one_batch_that_hold_for_all_are_taken() -> None:
    tails = torch.tensor([10, 40])
    everywhere = torch.ones(1, 1, 5, 3, dtype=torch.bool)  # all the blocks that either batch needs
    block_mask = BlockMask.from_kv_blocks(
        *flexing.ordered(everywhere), BLOCK_SIZE=16, mask_mod=lambda b, h, q, kv: kv < tails[b], seq_lengths=(75, 75)
    )
    block_mask.kv_indices = block_mask.kv_indices.clone()
    check(None, block_mask, *flexing.inputs(SIZES))


def test_tensors_written_after_the_mask_was_made() -> None:
    ids = DOCUMENTS.clone()
    mask = lambda b, h, q, kv: ids[b, q] == ids[b, kv]  # noqa: E731
    block_mask = create_block_mask(mask, 2, None, 75, 75, device="cpu", BLOCK_SIZE=16)
    check(None, mask, *flexing.inputs(SIZES))
    check(None, block_mask, *flexing.inputs(SIZES))
    ids[:, 20:40] = 5
    check(None, mask, *flexing.inputs(SIZES))  # a function has nothing that could be out of date
    check(None, block_mask, *flexing.inputs(SIZES))  # lists stand, and the mask is read as it is


def test_sparsity_is_never_negative() -> None:
    block_mask = create_block_mask(causal, None, None, 130, 130, device="cpu", BLOCK_SIZE=128)
    assert block_mask.sparsity() < 0
    assert ad.attention(mask_mod=causal).plan(130, block=(128, 128)).sparsity == 0.25


def test_a_block_beyond_the_keys_is_cut_off() -> None:
    q, k, v = flexing.inputs((1, 1, 24, 24))
    whole = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    lists = (*flexing.ordered(~whole), *flexing.ordered(whole))
    block_mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=16, mask_mod=causal, seq_lengths=(24, 24))
    check(None, block_mask, q, k, v)
    beyond = BlockMask.from_kv_blocks(
        torch.full((1, 1, 2), 2), torch.tensor([[[[0, 2], [0, 1]]]]), BLOCK_SIZE=16, seq_lengths=(24, 24),
        compute_q_blocks=False,
    )  # fmt: skip
    with pytest.raises(ad.DiagnosticError, match="lists block 2"):
        ad.flex_attention(q, k, v, None, beyond)


# Refusals.


def refused(**changes: Any) -> Any:
    q, k, v = (x.detach() for x in flexing.inputs((2, 2, 40, 40)))
    return ad.flex_attention(**{"query": q, "key": k, "value": v, **changes})


MADE = create_block_mask(causal, None, None, 40, 40, device="cpu", BLOCK_SIZE=16)
REFUSALS: dict[str, dict[str, Any]] = {
    "not-a-tensor": {"query": [1.0]},
    "nested-tensor": {"key": torch.nested.nested_tensor([torch.zeros(2, 3, 4)], layout=torch.jagged)},
    "wrong-rank": {"query": torch.zeros(2, 40, 8)},
    "wrong-dtype": {"value": torch.zeros(2, 2, 40, 5, dtype=torch.int32)},
    "head-dim-mismatch": {"key": torch.zeros(2, 2, 40, 4, dtype=torch.float64)},
    "heads-mismatch": {"query": torch.zeros(2, 4, 40, 8, dtype=torch.float64)},
    "heads-do-not-divide": {"query": torch.zeros(2, 3, 40, 8, dtype=torch.float64), "enable_gqa": True},
    "batch-mismatch": {"query": torch.zeros(4, 2, 40, 8, dtype=torch.float64), "block_mask": MADE},
    "bad-aux": {"return_lse": True, "return_aux": ad.AuxRequest(lse=True)},
    "block-mask-length": {"block_mask": create_block_mask(causal, None, None, 48, 40, device="cpu")},
    "sliced-block-mask": {"block_mask": MADE[:, :, 0:1]},
    "bad-block-mask": {"block_mask": torch.ones(40, 40, dtype=torch.bool)},
    "mixed-devices": {"block_mask": MADE.to("meta")},
    "kernel-option": {"kernel_options": {"BACKEND": "FASTEST", "OUTPUT_MAX": True}},
    "unknown-argument": {"score_mod": lambda score, q: score},
    "mask-not-boolean": {"block_mask": lambda b, h, q, kv: q - kv},
}


@pytest.mark.parametrize("code", REFUSALS)
def test_what_does_not_fit_is_refused(code: str, golden: Callable[..., None]) -> None:
    with pytest.raises(ad.DiagnosticError) as caught:
        refused(**REFUSALS[code])
    found = caught.value.diagnostics
    assert code in [diagnostic.code for diagnostic in found]
    if all(diagnostic.span is None for diagnostic in found):
        golden(str(caught.value), "flex")


def test_kernel_options_change_nothing_and_say_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attndsl.integrations.flex._warned", set())
    expected = refused()
    with pytest.warns(ad.KernelOptionsWarning, match=r"`BLOCK_M`, `num_warps`"):
        found = refused(kernel_options={"BLOCK_M": 64, "num_warps": 8})
    assert torch.equal(found, expected)
    refused(kernel_options={"BLOCK_M": 32})


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which dynamo looks at itself
def test_torch_compile_leaves_the_call_as_it_is() -> None:
    q, k, v = flexing.inputs((1, 2, 40, 40))
    block_mask = create_block_mask(window(9), None, None, 40, 40, device="cpu", BLOCK_SIZE=16)

    def around(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ad.flex_attention(q * 1.0, k, v, soft_cap, block_mask) + 1.0

    found = torch.compile(around, backend="aot_eager")(q, k, v)
    assert torch.equal(found, around(q, k, v))
    alone = torch.compile(ad.flex_attention, backend="aot_eager")(q, k, v, soft_cap, block_mask)
    assert torch.equal(alone + 1.0, found)
    (one,), (other,) = (torch.autograd.grad(out.sum(), [q]) for out in (found, around(q, k, v)))
    assert torch.equal(one, other)
