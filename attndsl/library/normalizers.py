"""Normalizers: from the final scores of a row to its weights, over the keys the query sees."""

from __future__ import annotations

from typing import Any

import torch

from attndsl.diagnostics import CallError, fail
from attndsl.frontend import math
from attndsl.frontend.decorators import Mod, normalizer
from attndsl.frontend.symbols import Symbol

SINK_SHAPES = ("()", "(H,)", "(B, H)", "(B, H, Nq)")


def softmax(sink: torch.Tensor | float | None = None) -> Mod:
    """exp(s) over the sum of exp(s) over the row, plus exp(sink) if there is one.

    `sink` is a logit that takes weight from the row and gives nothing back: a float, or a float tensor of shape (),
    (H,), (B, H) or (B, H, Nq), which may require grad.
    """
    if isinstance(sink, torch.Tensor) and sink.ndim >= len(SINK_SHAPES):
        message = f"a sink of softmax has shape {tuple(sink.shape)}"
        raise fail(CallError, "sink-shape", message, None, f"allowed are {', '.join(SINK_SHAPES)}")
    if sink is None:
        return _softmax
    return _softmax_with_sink.bind(sink=float(sink) if isinstance(sink, int) else sink)


@normalizer
def _softmax(score: Symbol) -> Any:
    weight = math.exp(score - math.row_max(score))
    return weight / math.row_sum(weight)


@normalizer
def _softmax_with_sink(score: Symbol, b: Symbol, h: Symbol, q_idx: Symbol, *, sink: Any) -> Any:
    if isinstance(sink, torch.Tensor) and sink.ndim > 0:
        sink = sink[h] if sink.ndim == 1 else sink[(b, h, q_idx)[: sink.ndim]]
    shift = math.row_max(score)
    weight = math.exp(score - shift)
    return weight / (math.exp(sink - shift) + math.row_sum(weight))
