"""Normalizers: from the final scores of a row to its weights, over the keys the query sees.

s stands for the final score, the sums and maxima are over the keys the query sees, and masked keys have weight 0. In a
text they have the same names and are called with the elements they read: `softmax(sink = sink[h])`, `topk(k)`,
`sparsemax`. `sigmoid` is the function there: `sigmoid(score + bias[h])`.
"""

from __future__ import annotations

from typing import Any

import torch

from attndsl.diagnostics import CallError, DiagnosticError, fail
from attndsl.frontend import math
from attndsl.frontend.declared import Open, held
from attndsl.frontend.decorators import Mod, normalizer
from attndsl.frontend.grids import require
from attndsl.frontend.normalizers import TOO_FEW_KEYS, TOO_SMALL_K
from attndsl.frontend.symbols import Symbol

SHAPES = ("()", "(H,)", "(B, H)", "(B, H, Nq)")
"""Of what is one value to a row."""

PRIOR_SHAPES = ("(Nk,)", "(B, Nk)", "(B, H, Nk)")


def softmax(sink: torch.Tensor | float | None = None) -> Mod:
    """exp(s) over the sum of exp(s), plus exp(sink) if there is one.

    `sink` is a logit that takes weight from the row and gives nothing back: a float, or a float tensor of shape (),
    (H,), (B, H) or (B, H, Nq), which may require grad.
    """
    return _softmax if sink is None else _softmax_with_sink.bind(sink=_of_row("softmax", "sink", sink))


def softmax_plus_one() -> Mod:
    """exp(s) over 1 + the sum of exp(s): a softmax with a sink at 0, which lets a row attend to nothing.

    Miller, "Attention is off by one", 2023.
    """
    return _softmax_plus_one


def sigmoid(bias: torch.Tensor | float = 0.0) -> Mod:
    """1 / (1 + exp(-(s + bias))): each key for itself; rows do not sum to 1.

    `bias` is a float, or a float tensor of shape (), (H,), (B, H) or (B, H, Nq). Minus the logarithm of the number of
    keys makes rows sum to about 1 at first. Ramapuram et al., "Theory, analysis, and best practices for sigmoid
    self-attention", 2024.
    """
    return _sigmoid.bind(bias=_of_row("sigmoid", "bias", bias))


def relu() -> Mod:
    """max(s, 0) / n, n being the number of keys of the call, `kv_len`, masked ones included.

    Wortsman et al., "Replacing softmax with ReLU in vision transformers", 2023.
    """
    return _relu


def relu2() -> Mod:
    """max(s, 0)^2 / n, n being the number of keys of the call, `kv_len`, masked ones included.

    So et al., "Primer", 2021, and Hua et al., "Transformer quality in linear time", 2022, scaled as `relu` is.
    """
    return _relu2


def taylor() -> Mod:
    """1 + s + s^2 / 2 over its sum: the second-order expansion of the exponential, which is positive everywhere.

    de Brebisson and Vincent, "An exploration of softmax alternatives belonging to the spherical loss family", 2016.
    """
    return _taylor


def temperature(factor: torch.Tensor | float = 1.0, log_n: bool = False) -> Mod:
    """The softmax of factor s, with `log_n` of factor log(n) s, n being the number of keys of the call, `kv_len`.

    `factor` is a float, or a float tensor of shape (), (H,), (B, H) or (B, H, Nq). The logarithm keeps weights as sharp
    over many keys as over few: Nakanishi, "Scalable-softmax is superior for attention", 2025.
    """
    factor = _of_row("temperature", "factor", factor)
    return (_log_n_temperature if log_n else _temperature).bind(factor=factor)


def unnormalised() -> Mod:
    """s itself, of either sign: linear attention, and with a decay as weight mod retention.

    Sun et al., "Retentive network", 2023.
    """
    return _unnormalised


def signed(factor: torch.Tensor | float = 1.0) -> Mod:
    """The softmax of s minus factor times the softmax of -s: weights of either sign that sum to 1 - factor.

    Keys of high score are added, keys of low score subtracted. `factor` is a float, or a float tensor of shape (),
    (H,), (B, H) or (B, H, Nq). Negative weights: Lv et al., "More expressive attention with negative weights", 2024.
    """
    return _signed.bind(factor=_of_row("signed", "factor", factor))


def prior(prior: torch.Tensor) -> Mod:
    """prior[j] exp(s) over its sum: a softmax that starts from a prior instead of from equal shares.

    `prior` is a tensor of shape (Nk,), (B, Nk) or (B, H, Nk) of numbers >= 0, which need not sum to 1 and may require
    grad; a key of prior 0 has weight 0.
    """
    given = held(prior)
    if not isinstance(given, torch.Tensor | Open) or not 1 <= given.ndim <= len(PRIOR_SHAPES):
        raise _misshapen("prior", "prior", given, PRIOR_SHAPES)
    return _prior.bind(prior=prior)


def sparsemax() -> Mod:
    """max(s - t, 0), t being such that the row sums to 1: the nearest point of the simplex, exactly 0 at low scores.

    Martins and Astudillo, "From softmax to sparsemax", 2016.
    """
    return _sparsemax


def entmax15() -> Mod:
    """max(s/2 - t, 0)^2, t being such that the row sums to 1: between softmax and sparsemax, exactly 0 at low scores.

    Entmax of alpha = 1.5, whose scores are halved: Peters, Niculae and Martins, "Sparse sequence-to-sequence models",
    2019.
    """
    return _entmax15


def topk(k: int) -> Mod:
    """The softmax over the k largest scores of the row, 0 elsewhere; of equal scores the lowest keys are taken.

    A row that sees fewer than k keys keeps all. A call of fewer than k keys is refused.
    """
    return _topk.bind(k=k)


def _of_row(mod: str, name: str, value: Any) -> Any:
    """A parameter that is one value to a row."""
    given = held(value)
    if isinstance(given, torch.Tensor | Open):
        if given.ndim >= len(SHAPES):
            raise _misshapen(mod, name, given, SHAPES)
        return value
    return float(value) if isinstance(value, int) else value


def _misshapen(mod: str, name: str, value: Any, shapes: tuple[str, ...]) -> DiagnosticError:
    is_tensor = isinstance(value, torch.Tensor)
    got = f"has shape {tuple(value.shape)}" if is_tensor else f"is of type {type(value).__name__}"
    got = f"is {value}" if isinstance(value, Open) else got
    code = "sink-shape" if name == "sink" else "parameter-shape"
    return fail(CallError, code, f"a {name} of {mod} {got}", None, f"allowed are {', '.join(shapes)}")


def _at_row(value: Any, b: Symbol, h: Symbol, q_idx: Symbol) -> Any:
    """The element of a row, read by as many coordinates as there are dimensions."""
    if isinstance(value, torch.Tensor) and value.ndim > 0:
        return value[h] if value.ndim == 1 else value[(b, h, q_idx)[: value.ndim]]
    return value


@normalizer
def _softmax(score: Symbol) -> Any:
    weight = math.exp(score - math.row_max(score))
    return weight / math.row_sum(weight)


@normalizer
def _softmax_with_sink(score: Symbol, b: Symbol, h: Symbol, q_idx: Symbol, *, sink: Any) -> Any:
    sink = _at_row(sink, b, h, q_idx)
    shift = math.row_max(score)
    weight = math.exp(score - shift)
    return weight / (math.exp(sink - shift) + math.row_sum(weight))


@normalizer
def _softmax_plus_one(score: Symbol) -> Any:
    shift = math.row_max(score)
    weight = math.exp(score - shift)
    return weight / (math.exp(-shift) + math.row_sum(weight))


@normalizer
def _sigmoid(score: Symbol, b: Symbol, h: Symbol, q_idx: Symbol, *, bias: Any) -> Any:
    return math.sigmoid(score + _at_row(bias, b, h, q_idx))


@normalizer
def _relu(score: Symbol, kv_len: Symbol) -> Any:
    return math.maximum(score, 0.0) / kv_len


@normalizer
def _relu2(score: Symbol, kv_len: Symbol) -> Any:
    positive = math.maximum(score, 0.0)
    return positive * positive / kv_len


@normalizer
def _taylor(score: Symbol) -> Any:
    weight = 1.0 + score + score * score / 2.0
    return weight / math.row_sum(weight)


@normalizer
def _temperature(score: Symbol, b: Symbol, h: Symbol, q_idx: Symbol, *, factor: Any) -> Any:
    scaled = score * _at_row(factor, b, h, q_idx)
    weight = math.exp(scaled - math.row_max(scaled))
    return weight / math.row_sum(weight)


@normalizer
def _log_n_temperature(score: Symbol, b: Symbol, h: Symbol, q_idx: Symbol, kv_len: Symbol, *, factor: Any) -> Any:
    scaled = score * (_at_row(factor, b, h, q_idx) * math.log(kv_len))
    weight = math.exp(scaled - math.row_max(scaled))
    return weight / math.row_sum(weight)


@normalizer
def _unnormalised(score: Symbol) -> Any:
    return score


@normalizer
def _signed(score: Symbol, b: Symbol, h: Symbol, q_idx: Symbol, *, factor: Any) -> Any:
    high = math.exp(score - math.row_max(score))
    low = math.exp(-score - math.row_max(-score))
    return high / math.row_sum(high) - _at_row(factor, b, h, q_idx) * (low / math.row_sum(low))


@normalizer
def _prior(score: Symbol, b: Symbol, h: Symbol, kv_idx: Symbol, *, prior: Any) -> Any:
    weight = prior[(*(b, h)[: prior.ndim - 1], kv_idx)] * math.exp(score - math.row_max(score))
    return weight / math.row_sum(weight)


@normalizer
def _sparsemax(score: Symbol) -> Any:
    top = math.row_max(score)
    threshold = math.row_solve(lambda t: math.maximum(score - t, 0.0), total=1.0, lower=top - 1.0, upper=top)
    return math.maximum(score - threshold, 0.0)


@normalizer
def _entmax15(score: Symbol) -> Any:
    half = score / 2.0
    top = math.row_max(half)

    def squared(threshold: Any) -> Any:
        gap = math.maximum(half - threshold, 0.0)
        return gap * gap

    return squared(math.row_solve(squared, total=1.0, lower=top - 1.0, upper=top))


@normalizer
def _topk(score: Symbol, kv_idx: Symbol, kv_len: Symbol, *, k: Any) -> Any:
    require(k >= 1, TOO_SMALL_K)
    require(k <= kv_len, TOO_FEW_KEYS)
    top, bottom = math.row_max(score), -math.row_max(-score)
    # The k-th largest score: at most k - 1 are above it. Of those that equal it, the keys up to `-cut` are taken.
    threshold = math.row_solve(lambda t: math.where(score > t, 1.0, 0.0), total=k - 1, lower=bottom, upper=top)

    def taken(cut: Any) -> Any:
        return (score > threshold) | ((score == threshold) & (kv_idx <= -cut))

    cut = math.row_solve(lambda t: math.where(taken(t), 1.0, 0.0), total=k, lower=-kv_len, upper=0.0)
    weight = math.where(taken(cut), math.exp(score - top), 0.0)
    return weight / math.row_sum(weight)
