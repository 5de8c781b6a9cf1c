"""Requirements of calls that are rewritten before they run: packed sequences, keys in pages, heads as rows of one.

A rewritten program has other lengths and no requirements, so the call as the user made it is what they are asked of.
"""

from __future__ import annotations

import pytest
import torch
from launches import INTERPRETING
from torch import Tensor

import attndsl as ad
from attndsl import folding
from attndsl.runtime.arguments import Call

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of the host")

PAIRS = ad.parse("""
attention pairs(window: int = 5) {
    require q_len <= 2, "at most two queries"
    require kv_len % 2 == 0, "keys come in pairs"
    require window >= 1, "a window counts keys"
    mask q_idx - kv_idx < window
}
""").pairs()
NARROW = PAIRS.bind(window=0)


def tensors(q_len: int, kv_len: int, heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    k = torch.ones(1, 1, kv_len, 8)
    return torch.ones(1, heads, q_len, 8), k, k


class TestHeadsAsRows:
    """Two queries of four heads are eight rows."""

    def test_calls_are_asked_before_they_are_folded(self) -> None:
        q, k, v = tensors(2, 6)
        folded = folding.folded(PAIRS._compilation, Call(q, k, v, 1.0, 0, {"window": 5}))
        assert folded is not None
        assert folded.compilation.source.demands == ()
        for _ in range(2):  # the second of a kind is looked up
            torch.testing.assert_close(PAIRS(q, k, v, enable_gqa=True, backend="cpu"), torch.ones(1, 4, 2, 8))
            with pytest.raises(ad.DiagnosticError, match="a window counts keys"):
                NARROW(q, k, v, enable_gqa=True, backend="cpu")
            with pytest.raises(ad.DiagnosticError, match="at most two queries"):
                PAIRS(*tensors(3, 6), enable_gqa=True, backend="cpu")
            with pytest.raises(ad.DiagnosticError, match="keys come in pairs"):
                PAIRS(*tensors(2, 5), enable_gqa=True, backend="cpu")


class TestPackedSequences:
    """Every sequence is asked, and what they are together is not."""

    @staticmethod
    def call(attention: ad.Attention, *lengths: int) -> Tensor:
        x, ends = torch.ones(sum(lengths), 1, 8), torch.tensor([0, *lengths]).cumsum(0)
        ad.packed(attention, ends)
        out: Tensor = ad.varlen(attention, x, x, x, ends, backend="reference")
        return out

    def test_sequences_that_meet_them(self) -> None:
        assert self.call(PAIRS, 2, 2, 2).shape == (6, 1, 8)

    @pytest.mark.parametrize(
        "lengths, message", [((1, 1), "keys come in pairs"), ((2, 4), "at most two queries")], ids=["odd", "long"]
    )
    def test_one_that_does_not(self, lengths: tuple[int, ...], message: str) -> None:
        with pytest.raises(ad.DiagnosticError, match=message):
            self.call(PAIRS, *lengths)
        ends = torch.tensor([0, *lengths]).cumsum(0)
        with pytest.raises(ad.DiagnosticError, match=message):
            ad.packed(PAIRS, ends)

    def test_values_are_those_of_the_call(self) -> None:
        with pytest.raises(ad.DiagnosticError, match="a window counts keys"):
            self.call(NARROW, 2, 2)


class TestKeysInPages:
    """Every sequence is asked about the keys it has; the pages have room for three, or for six."""

    @staticmethod
    def call(attention: ad.Attention, *lengths: int, queries: int = 1) -> Tensor:
        pool = torch.ones(2 * len(lengths), 3, 1, 8)
        table = torch.arange(2 * len(lengths), dtype=torch.int32).view(-1, 2)
        cache = ad.PagedCache(pool, pool, table, torch.tensor(lengths, dtype=torch.int32))
        out: Tensor = ad.paged(attention, torch.ones(len(lengths), 1, queries, 8), cache, backend="reference")
        return out

    def test_sequences_that_meet_them(self) -> None:
        assert self.call(PAIRS, 4, 2).shape == (2, 1, 1, 8)

    def test_one_that_does_not(self) -> None:
        with pytest.raises(ad.DiagnosticError, match="keys come in pairs"):
            self.call(PAIRS, 4, 5)
        with pytest.raises(ad.DiagnosticError, match="at most two queries"):
            self.call(PAIRS, 4, 4, queries=3)

    def test_values_are_those_of_the_call(self) -> None:
        with pytest.raises(ad.DiagnosticError, match="a window counts keys"):
            self.call(NARROW, 4, 2)
