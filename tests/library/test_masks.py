"""The library against its docstrings, written out by hand."""

from __future__ import annotations

import pytest
import torch

import attndsl as ad
from attndsl.frontend.parse import parse
from attndsl.frontend.tracing import trace

N = 17
Q, K = torch.arange(N)[:, None], torch.arange(N)[None, :]
DOC = torch.tensor([0] * 5 + [1] * 7 + [2] * 5)

MASKS = {
    "full": (ad.masks.full, torch.ones(N, N, dtype=torch.bool)),
    "causal": (ad.masks.causal, K <= Q),
    "sliding_window": (ad.masks.sliding_window(window=4), (K <= Q) & (K > Q - 4)),
    "band": (ad.masks.band(left=3, right=1), (K >= Q - 3) & (K <= Q + 1)),
    "dilated_window": (ad.masks.dilated_window(window=3, dilation=2), (K == Q) | (K == Q - 2) | (K == Q - 4)),
    "sinks_and_window": (ad.masks.sinks_and_window(sink=2, window=3), (K <= Q) & ((K < 2) | (K > Q - 3))),
    "chunked": (ad.masks.chunked(chunk=5), (K <= Q) & (torch.div(K, 5).floor() == torch.div(Q, 5).floor())),
    "block_causal": (ad.masks.block_causal(block=3, window=2), (K // 3 <= Q // 3) & (K // 3 > Q // 3 - 2)),
    "block_causal_sink": (
        ad.masks.block_causal(block=3, window=2, sink=1),
        (K // 3 <= Q // 3) & ((K // 3 > Q // 3 - 2) | (K < 3)),
    ),
    "block_causal_own": (ad.masks.block_causal(block=4, window=1), K // 4 == Q // 4),
    "between": (
        ad.masks.between(first=torch.arange(N) - 2, end=torch.arange(N) % 5),
        (K >= Q - 2) & (K < Q % 5),
    ),
    "prefix_lm": (ad.masks.prefix_lm(prefix=6), (K <= Q) | (K < 6)),
    "document": (ad.masks.document(doc=DOC), DOC[:, None] == DOC[None, :]),
    "padding": (ad.masks.padding(lengths=9), (K < 9) & (Q >= 0)),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask_on_tensors(name: str) -> None:
    mod, expected = MASKS[name]
    zero = torch.zeros((), dtype=torch.int64)
    seen = torch.as_tensor(mod.evaluate({"b": zero, "h": zero, "q_idx": Q, "kv_idx": K}))
    assert torch.equal(seen.expand(N, N), expected)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_sliding_window_shows_exactly_its_keys(window: int) -> None:
    seen = ad.masks.sliding_window(window=window)(Q, K)
    assert torch.equal(seen.sum(1), torch.arange(1, N + 1).clamp(max=window))
    assert seen.diagonal().all()


def test_values_by_batch() -> None:
    lengths = torch.tensor([3, 9])
    for mod in (ad.masks.padding(lengths=lengths), ad.masks.prefix_lm(prefix=lengths)):
        (param,) = trace(mask_mod=mod).variant.tensors
        assert param.dims == ("B",)
    batched = DOC.expand(2, N)
    (param,) = trace(mask_mod=ad.masks.document(doc=batched)).variant.tensors
    assert param.dims == ("B", "N")
    bounds = torch.zeros(2, N, dtype=torch.int64)
    first, end = trace(mask_mod=ad.masks.between(first=bounds, end=bounds.clone())).variant.tensors
    assert first.dims == end.dims == ("B", "Q")


@pytest.mark.parametrize("wrong", [{"block": 0}, {"window": 0}, {"sink": -1}])
def test_block_causal_refuses(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ad.DiagnosticError, match=f"`{name}` counts"):
        ad.masks.block_causal(**{"block": 3, "window": 2, **wrong})(Q, K)


SCORES = {
    "alibi": (
        lambda: ad.scores.alibi(slopes=torch.rand(4)),
        "attention a(slopes: tensor[H]) { score score - slopes[h] * (q_idx - kv_idx) }",
    ),
    "soft_cap": (
        lambda: ad.scores.soft_cap(cap=50.0),
        "attention a(cap: float) { score cap * tanh(score / cap) }",
    ),
    "temperature": (
        lambda: ad.scores.temperature(factor=torch.rand(4)),
        "attention a(factor: tensor[H]) { score score * factor[h] }",
    ),
    "temperature number": (
        lambda: ad.scores.temperature(factor=0.5),
        "attention a(factor: float) { score score * factor }",
    ),
    "bias of pairs": (
        lambda: ad.scores.bias(table=torch.rand(N, N)),
        "attention a(table: tensor[Q, K]) { score score + table[q_idx, kv_idx] }",
    ),
    "bias": (
        lambda: ad.scores.bias(table=torch.rand(2, 4, N, N)),
        "attention a(table: tensor[B, H, Q, K]) { score score + table[b, h, q_idx, kv_idx] }",
    ),
    "relative_bias": (
        lambda: ad.scores.relative_bias(table=torch.rand(4, 9), max_distance=4),
        """attention a(table: tensor[H, D1], max_distance: int) {
            score score + table[h, clamp(kv_idx - q_idx, -max_distance, max_distance) + max_distance]
        }""",
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_score(name: str) -> None:
    make, text = SCORES[name]
    assert trace(score_mod=make()).variant.score is parse(text)[0].score
