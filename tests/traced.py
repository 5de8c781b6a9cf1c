"""Traced functions and the programs their text says, compared node by node."""

from __future__ import annotations

import attndsl as ad
from attndsl.frontend.parse import parse
from attndsl.frontend.tracing import Program, trace
from attndsl.ir import build

Q, K, H, B = build.Q, build.K, build.H, build.B


@ad.mask_mod
def causal(q_idx, kv_idx):
    return kv_idx <= q_idx


@ad.mask_mod
def near(q_idx, kv_idx, *, window):
    return q_idx - kv_idx < window


@ad.score_mod
def alibi(score, h, q_idx, kv_idx, *, slopes):
    return score - slopes[h] * (q_idx - kv_idx)


def assert_same(program: Program, text: str) -> None:
    """The traced program is node for node the one the text says."""
    (expected,) = parse(text)
    traced = program.variant
    for name in ("mask", "score", "normalizer", "weight"):
        assert getattr(traced, name) is getattr(expected, name), (name, getattr(traced, name))
    assert {param.name: type(param) for param in traced.params} == {
        param.name: type(param) for param in expected.params
    }


def mask_of(function) -> object:
    return trace(mask_mod=function).variant.mask


def window_mask(window: int, sink: int):
    def mask(b, h, q, k):
        return (q - k < window) | (k < sink)

    return mask
