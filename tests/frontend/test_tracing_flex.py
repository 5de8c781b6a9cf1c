"""FlexAttention's functions are traced verbatim: closures, partials, callable objects, combinators."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn.attention.flex_attention import and_masks, noop_mask, or_masks
from traced import K, Q, assert_same, causal, mask_of, near, window_mask

from attndsl.frontend.tracing import trace
from attndsl.ir import build
from attndsl.ir.ops import Op


def test_positional_arguments_under_any_names() -> None:
    assert mask_of(lambda w, x, y, z: w * y >= x * z) is mask_of(lambda b, h, q_idx, kv_idx: b * q_idx >= h * kv_idx)


def test_positional_ignores_names_where_asked() -> None:
    program = trace(mask_mod=lambda b, h, kv_idx, q_idx: kv_idx >= q_idx, positional=True)
    assert program.variant.mask is build.apply(Op.GE, Q, K)


def test_closures_become_parameters() -> None:
    program = trace(mask_mod=window_mask(8, 2))
    assert_same(
        program,
        "attention mask_(window: int = 8, sink: int = 2) { mask q_idx - kv_idx < window or kv_idx < sink }",
    )
    assert program.bindings.resolve() == {"window": 8, "sink": 2}


def test_torch_combinators() -> None:
    program = trace(mask_mod=and_masks(window_mask(8, 2), or_masks(noop_mask, causal)))
    text = """
    attention a(window: int = 8, sink: int = 2) {
        mask  true and (q_idx - kv_idx < window or kv_idx < sink) and (true or kv_idx <= q_idx)
    }"""
    assert_same(program, text)


def test_transformers_masks() -> None:
    masking = pytest.importorskip("transformers.masking_utils")
    starts, documents = torch.tensor([3, 4]), torch.zeros(2, 16, dtype=torch.int32)
    chunked = masking.add_offsets_to_mask_function(masking.chunked_causal_mask_function(4, starts), 2, 0)
    program = trace(
        mask_mod=masking.and_masks(
            chunked, masking.packed_sequence_mask_function(documents), masking.padding_mask_function(documents > 0)
        )
    )
    text = """
    attention a(chunk_size: int, left_padding: int tensor[B], q_offset: int, kv_offset: int,
                packed_sequence_mask: int tensor[B, N], padding_mask: bool tensor[B, K]) {
        let q = q_idx + q_offset
        let k = kv_idx + kv_offset
        let start = left_padding[b]
        mask  true and (true and (k - start) // chunk_size == (q - start) // chunk_size and k <= q)
              and packed_sequence_mask[b, q_idx] == packed_sequence_mask[b, kv_idx] and padding_mask[b, kv_idx]
    }"""
    assert_same(program, text)


def test_partials_and_defaults() -> None:
    def stride(b, h, q, k, step):
        return (q - k) % step == 0

    text = "attention stride(step: int = 3) { mask (q_idx - kv_idx) % step == 0 }"
    assert_same(trace(mask_mod=functools.partial(stride, step=3)), text)
    assert_same(trace(mask_mod=lambda b, h, q, k, step=3: (q - k) % step == 0), text)
    first = functools.partial(lambda step, b, h, q, k: (q - k) % step == 0, 3)
    assert_same(trace(mask_mod=first), text)
    assert_same(trace(mask_mod=and_masks(functools.partial(stride, step=3))), text.replace("mask (", "mask true and ("))


def test_partial_of_a_coordinate() -> None:
    def same(b, h, q_idx, kv_idx):
        return q_idx + h >= kv_idx + b

    program = trace(mask_mod=functools.partial(same, h=1))
    assert_same(program, "attention same(h_: int = 1) { mask q_idx + h_ >= kv_idx + b }")


def test_partial_of_a_mod() -> None:
    program = trace(mask_mod=functools.partial(near, window=4))
    assert_same(program, "attention near(window: int = 4) { mask q_idx - kv_idx < window }")


class SameDocument:
    def __init__(self, ids: torch.Tensor, limit: int) -> None:
        self.ids = ids
        self.limit = limit

    def __call__(self, b, h, q, k):
        return (self.ids[b, q] == self.ids[b, k]) & (q - k < self.limit)

    def method(self, b, h, q, k):
        return self(b, h, q, k)


class Bias(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = torch.nn.Parameter(torch.rand(4))

    def forward(self, score, b, h, q, k):
        return score - self.slopes[h] * (q - k)


def test_callable_objects() -> None:
    text = """
    attention a(ids: int tensor[B, N]) { mask ids[b, q_idx] == ids[b, kv_idx] and q_idx - kv_idx < 9 }"""
    instance = SameDocument(torch.zeros(2, 16, dtype=torch.int64), 9)
    assert_same(trace(mask_mod=instance), text)
    assert_same(trace(mask_mod=instance.method), text)
    module = Bias()
    program = trace(score_mod=module)
    assert_same(program, "attention a(slopes: tensor[H]) { score score - slopes[h] * (q_idx - kv_idx) }")
    assert program.bindings.resolve()["slopes"] is module.slopes


def test_source_may_be_unavailable() -> None:
    function = eval("lambda b, h, q, k: (0 < q) & (k <= q)")
    program = trace(mask_mod=function)
    assert_same(program, "attention a() { mask 0 < q_idx and kv_idx <= q_idx }")
    assert program.variant.origins.of(program.variant.mask) == ()
