"""Triton programs that share the keys of a query tile, and what joins their parts, in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compare import assert_rows_close
from launches import INTERPRETING, interpreted, program
from torch import Tensor

import attndsl as ad
from attndsl.compiler import Compilation
from attndsl.engines.kernels import Kernels
from attndsl.runtime.launch import splits_for
from attndsl.runtime.tiles import TileShape

KEYS = 75
PROGRAMS = {
    "sink": "attention test(sink: tensor[H]) { mask kv_idx <= q_idx normalizer softmax(sink = sink[h]) }",
    "window": "mask kv_idx <= q_idx and q_idx - kv_idx < 20 score score - 0.1 * float(q_idx - kv_idx)",
    "several": "mask kv_idx <= q_idx and (q_idx - kv_idx < 9 or kv_idx < 18)",
    "table": "mask kv_idx <= q_idx and kv_idx % 3 != 0",
    "dense": "attention test(keep: tensor[N]) { mask keep[kv_idx] < 0.5 }",
    "plain": "mask true",
}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
class TestParts:
    pytestmark = interpreted

    def test_parts_make_the_rows(self, name: str) -> None:
        captured = {"sink": torch.tensor([0.5, -1.0]), "keep": torch.linspace(0, 1, KEYS)}
        values = {key: value for key, value in captured.items() if f"{key}:" in PROGRAMS[name]}
        test = program(PROGRAMS[name], **values)
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, 2, n, 16, generator=generator) for n in (3, KEYS, KEYS))
        for offset in (KEYS - 3, -1):
            call = test.call(q, k, v, q_offset=offset)
            wanted = test.expected(call)
            for splits in (2, 7):
                kernels = replace(test.kernels(call, fast=test.is_fast(call)), splits=splits)
                rows = kernels.forward(call)
                assert_rows_close(rows.out, wanted.out, 1e-5)
                assert wanted.lse is not None
                assert rows.lse is not None
                assert_rows_close(rows.lse[..., None], wanted.lse[..., None], 1e-5)
                assert_rows_close(rows.max_score[..., None], wanted.max_score[..., None], 1e-5)


class TestPages:
    pytestmark = interpreted

    def test_parts_of_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Kernels, "_splits", lambda *_: 3)
        pool = torch.randn(5, 16, 1, 16)
        table = torch.tensor([[4, 1, 3], [2, -1, -1], [-1, -1, -1]])
        cache = ad.PagedCache(pool, pool, table, torch.tensor([41, 7, 0]))
        q = torch.randn(3, 2, 1, 16)
        attention = ad.attention(mask_mod=ad.masks.causal)
        found = ad.paged(attention, q, cache, enable_gqa=True)
        wanted = ad.paged(attention, q, cache, enable_gqa=True, backend="reference")
        assert_rows_close(found, wanted, 1e-5)


@pytest.mark.skipif(INTERPRETING, reason="runs no kernel")
class TestDecisions:
    def test_which_normalizers_have_parts(self) -> None:
        def has_parts(text: str) -> bool:
            (variant,) = (declared() for declared in ad.parse(f"attention test {{ {text} }}"))
            return Compilation(variant.variant).derivation.has_parts

        assert has_parts("mask kv_idx <= q_idx")
        assert not has_parts("normalizer sigmoid(score)")
        assert not has_parts("normalizer sparsemax()")
        assert not has_parts("normalizer softmax_plus_one()")
        assert not has_parts("weight weight * 0.5 + 0.1")

    def test_cpu_tensors_are_not_split(self) -> None:
        def call(*shape: int) -> Tensor:
            return torch.zeros(shape)

        test = program("mask true")
        whole = test.call(call(1, 1, 1, 16), call(1, 1, 9000, 16), call(1, 1, 9000, 16))
        assert splits_for(whole, TileShape(16, 16, 4, 1)) == 1
