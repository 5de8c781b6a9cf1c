"""The dense meaning of a variant, in torch: every pair is computed, nothing is skipped.

In: a variant, the values of its parameters, and q, k, v. Out: a `Result`, differentiable by autograd in q, k, v and
every captured float tensor. This defines what a variant means; kernels are held to it, called with float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attndsl.analysis.axes import axes_of
from attndsl.dense import Env, Value, environment, evaluate, evaluate_all
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Reduce, Solve
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.row_sums import RowSum
from attndsl.ir.types import Axis, Reduction
from attndsl.ir.variant import Variant

__all__ = ["Env", "Result", "attend", "environment", "evaluate", "evaluate_all", "live_pairs", "weigh"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a call returns. `lse` (natural log) is there for softmax and its kin, where `w = exp(x - lse)`.

    `max_score` has no gradient, as kernels give it none: torch says so where one is asked of it alone.
    `sums` are the further row sums asked for, by name.
    """

    out: Tensor
    lse: Tensor | None
    max_score: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Weighed:
    """What becomes of every pair of a call: `[B, H, Nq, Nk]`, scores -inf and weights 0 at dead pairs."""

    env: Env
    live: Tensor
    scores: Tensor
    weights: Tensor
    lse: Tensor | None


def live_pairs(
    variant: Variant,
    values: Mapping[str, Value],
    *,
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    q_offset: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The mask alone: bool `[B', H', Nq, Nk]`, B' and H' being 1 where it does not depend on them."""
    env = environment(
        variant, values, batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, q_offset=q_offset, device=device
    )
    mask = evaluate(variant.mask, env)
    return mask | mask.new_zeros(1, 1, q_len, kv_len)


def attend(
    variant: Variant,
    values: Mapping[str, Value],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: int | Tensor = 0,
    sums: Sequence[RowSum] = (),
    rows: Tensor | None = None,
) -> Result:
    """Attention of `q [B, Hq, Nq, Dk]` over `k [B, Hkv, Nk, Dk]`, `v [B, Hkv, Nk, Dv]`; out has q's dtype.

    `sums` are further outputs; the values of their parameters are among `values`. `rows` are the queries wanted, where
    not all of them are.
    """
    with _as_written(q):
        weighed = weigh(variant, values, q, k, scale=scale, enable_gqa=enable_gqa, q_offset=q_offset, rows=rows)
        env, live = weighed.env, weighed.live
        v = torch.where(live.any(-2)[..., None], _shared(v, q, enable_gqa), 0)
        weights = _Rounded.apply(weighed.weights, q.dtype)  # type: ignore[no-untyped-call]
        out = torch.where(live.any(-1)[..., None], weights @ v.to(env.dtype), 0.0)
        with torch.no_grad():
            most = evaluate(build.row(Reduction.MAX, build.SCORE), _scored(env, weighed.scores, live))
        found = _row_sums(sums, weighed)
    return Result(out.to(q.dtype), weighed.lse, most.squeeze(-1), found)


def weigh(
    variant: Variant,
    values: Mapping[str, Value],
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: int | Tensor = 0,
    rows: Tensor | None = None,
) -> Weighed:
    """The final score and the final weight of every pair, or of those of some `rows`."""
    with _as_written(q):
        k = _shared(k, q, enable_gqa)
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        dtype = torch.float64 if q.dtype is torch.float64 else torch.float32
        batch, heads, q_len, kv_len = *q.shape[:3], k.shape[2]
        env = environment(
            variant,
            values,
            batch=batch,
            heads=heads,
            q_len=q_len,
            kv_len=kv_len,
            q_offset=q_offset,
            dtype=dtype,
            device=q.device,
        )
        if rows is not None:
            env, q = replace(env, leaves={**env.leaves, build.Q: env.leaves[build.Q][:, :, rows]}), q[:, :, rows]
        mask = evaluate(variant.mask, env).expand(batch, heads, q.shape[2], kv_len)

        # Twice: which pairs are live depends on the scores, and what only dead pairs touch must not enter the products.
        with torch.no_grad():
            scores = _scores(variant, env, *_cleared(q, k, mask), scale, mask)
            live = mask & (scores != -torch.inf)
        scores = _scores(variant, env, *_cleared(q, k, live), scale, live)
        weights, lse = _normalized(variant.normalizer, env, scores, live)
        flow = replace(env, leaves={**env.leaves, build.WEIGHT: weights})
        return Weighed(env, live, scores, torch.where(live, evaluate(variant.weight, flow), 0.0), lse)


def _as_written(q: Tensor) -> AbstractContextManager[Any]:
    """Autocasting would round the products of an oracle."""
    known = torch.amp.is_autocast_available(q.device.type)
    return torch.autocast(q.device.type, enabled=False) if known else nullcontext()


def _shared(tensor: Tensor, q: Tensor, enable_gqa: bool) -> Tensor:
    """Key heads once for each query head that reads them."""
    return tensor.repeat_interleave(q.shape[1] // max(1, tensor.shape[1]), 1) if enable_gqa else tensor


def _row_sums(sums: Sequence[RowSum], weighed: Weighed) -> dict[str, Tensor]:
    env = replace(weighed.env, leaves={**weighed.env.leaves, build.WEIGHT: weighed.weights}, live=weighed.live)
    found = evaluate_all([build.row(Reduction.SUM, one.term) for one in sums], env)
    shape = (*weighed.live.shape[:-1], 1)
    return {one.name: value.expand(shape).squeeze(-1) for one, value in zip(sums, found, strict=True)}


def _cleared(q: Tensor, k: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """q and k with the rows that no live pair touches set to 0, NaN or not."""
    return torch.where(live.any(-1)[..., None], q, 0), torch.where(live.any(-2)[..., None], k, 0)


def _scores(variant: Variant, env: Env, q: Tensor, k: Tensor, scale: float, live: Tensor) -> Tensor:
    """The final scores; -inf at dead pairs, whatever score mods made of them."""
    products = q.to(env.dtype) @ k.to(env.dtype).transpose(-1, -2) * scale
    products = _RoundedGradient.apply(products, q.dtype)  # type: ignore[no-untyped-call]
    flow = replace(env, leaves={**env.leaves, build.SCORE: products})
    return torch.where(live, evaluate(variant.score, flow), -torch.inf)


def _scored(env: Env, scores: Tensor, live: Tensor) -> Env:
    """The environment of a normalizer: final scores, and the pairs its statistics are over."""
    return replace(env, leaves={**env.leaves, build.SCORE: torch.where(live, scores, 0.0)}, live=live)


def _normalized(normalizer: Expr, env: Env, scores: Tensor, live: Tensor) -> tuple[Tensor, Tensor | None]:
    """The normalized weights, 0 in rows whose divisor is 0, anything at dead pairs; and the log of the divisor."""
    env = _scored(env, scores, live)
    exponential = _exponential(normalizer)
    if exponential is not None and exponential.sinks is not None:
        env = replace(env, leaves={**env.leaves, exponential.shift: _shift(exponential, env)})
    divisors = _divisors(normalizer)
    weights, *sums = evaluate_all((normalizer, *divisors), env)
    for total in sums:
        weights = torch.where(total == 0, 0.0, weights)
    return weights, None if exponential is None else _lse(exponential, env, scores)


@dataclass(frozen=True, slots=True)
class Exponential:
    """A normalizer `exp(x - shift) / divisor`, x free of row statistics.

    `sinks` are the c of the divisor's terms `exp(c - shift)`, the others being row sums of `exp(... - shift)`: the
    weight then is the same whatever the shift. `None` where the divisor has another form.
    """

    shift: Expr
    divisor: Expr
    sinks: tuple[Expr, ...] | None


def _exponential(normalizer: Expr) -> Exponential | None:
    """The normalizer read as a softmax or its kin; `None` for any other."""
    match normalizer:
        case Apply(op=Op.DIV, args=(Apply(op=Op.EXP, args=(exponent,)), divisor)) if _is_row(divisor):
            pass
        case _:
            return None
    match exponent:
        case Apply(op=Op.SUB, args=(raw, shift)) if _is_free_of_statistics(raw) and _is_row(shift):
            return Exponential(shift, divisor, _sinks(divisor, shift))
        case _ if _is_free_of_statistics(exponent):
            return Exponential(build.real(0.0), divisor, None)
        case _:
            return None


def _sinks(divisor: Expr, shift: Expr) -> tuple[Expr, ...] | None:
    if not isinstance(shift, Reduce):
        return None
    sinks: list[Expr] = []
    terms = [divisor]
    while terms:
        match terms.pop():
            case Apply(op=Op.ADD, args=args):
                terms.extend(args)
            case Apply(op=Op.EXP, args=(Apply(op=Op.NEG, args=(operand,)),)) if operand is shift:
                sinks.append(build.real(0.0))
            case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(sink, operand)),)) if operand is shift:
                sinks.append(sink)
            case Reduce(
                reduction=Reduction.SUM, arg=Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(raw, operand)),))
            ) if operand is shift and _is_free_of_statistics(raw):
                pass
            case _:
                return None
    return tuple(sinks) if all(map(_is_free_of_statistics, sinks)) else None


def _shift(exponential: Exponential, env: Env) -> Tensor:
    """A shift under which no term overflows: the row's maximum or the largest sink; 0 for a row that has neither."""
    assert exponential.sinks is not None
    with torch.no_grad():
        shift, *sinks = evaluate_all((exponential.shift, *exponential.sinks), env)
        for sink in sinks:
            shift = torch.maximum(shift, sink)
        return torch.where(shift == -torch.inf, 0.0, shift)


def _lse(exponential: Exponential, env: Env, scores: Tensor) -> Tensor:
    """shift + log(divisor): -inf where the divisor is 0, or nothing is live and the shift itself is -inf."""
    shift, divisor = evaluate_all((exponential.shift, exponential.divisor), env)
    empty = (divisor == 0) | (shift == -torch.inf)
    lse = torch.where(empty, -torch.inf, shift + torch.log(torch.where(empty, 1.0, divisor)))
    return lse.expand(*scores.shape[:-1], 1).squeeze(-1)


def _divisors(normalizer: Expr) -> tuple[Expr, ...]:
    """The sums over a row, and what is made of them, that a normalizer divides by."""
    found = [node.args[1] for node in postorder(normalizer) if isinstance(node, Apply) and node.op is Op.DIV]
    return tuple(divisor for divisor in dict.fromkeys(found) if _is_row(divisor) and _sums(divisor))


def _is_row(expr: Expr) -> bool:
    return Axis.K not in axes_of(expr)


def _sums(expr: Expr) -> bool:
    return any(isinstance(node, Reduce) and node.reduction is Reduction.SUM for node in postorder(expr))


def _is_free_of_statistics(expr: Expr) -> bool:
    return not any(isinstance(node, Reduce | Solve) for node in postorder(expr))


class _Rounded(torch.autograd.Function):
    """Weights as the matrix product with the values reads them: rounded to the input dtype. The gradient is not."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        return value.to(dtype).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _RoundedGradient(torch.autograd.Function):
    """Scores, whose gradient is rounded to the input dtype before its products with q and k."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype).to(gradient.dtype), None
