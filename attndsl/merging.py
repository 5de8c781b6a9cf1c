"""Attention over several sets of keys, computed apart, as attention over all of them.

In: the outputs of the parts with their `lse`. Out: the output and `lse` of one softmax over the keys of every part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter, fail
from attndsl.runtime.statistics import Aux

Part = tuple[Tensor, Tensor]
WRITE = "write `ad.merge(near(q, k, v, return_aux=True), far(q, k, v, return_aux=True))`"


def merge(*parts: tuple[Tensor, Tensor | Aux] | Sequence[tuple[Tensor, Tensor | Aux]]) -> Part:
    """One softmax over the keys of all parts: `(out, lse)` from any number of `(out, lse)` or `(out, aux)`, or a list
    of them.

    Each `out` is `(..., Nq, Dv)` and its `lse` `(..., Nq)`, natural logarithm of the sum that the part divided by; all
    have the same shapes. The parts' weights must be exp(score - lse), as softmax and its kin have them, and a key that
    lies in two parts counts twice; a sink belongs in one part alone. A row without a key in a part (`lse` -inf) takes
    nothing from it, whatever that part's output holds, and a row without a key in any part is 0 with `lse` -inf.
    Computed in float32 (float64 for float64 parts) and differentiable in every `out` and every `lse`; `out` has the
    dtype of the first part's. Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    """
    outs, sums = zip(*map(_part, _checked(_each(parts))), strict=True)
    kind = torch.promote_types(outs[0].dtype, torch.float32)
    lse = torch.stack([each.to(kind) for each in sums])
    dead = lse == -torch.inf
    is_dead = dead.all(0)
    # The largest of a row only keeps exponents small: it cancels, so no gradient runs through it.
    largest = lse.detach().amax(0).masked_fill(is_dead, 0.0)
    shares = torch.exp(lse - largest)
    divisor = shares.sum(0)
    values = torch.stack([each.to(kind) for each in outs]).masked_fill(dead[..., None], 0.0)
    safe = divisor.masked_fill(is_dead, 1.0)
    out = (shares[..., None] * values).sum(0) / safe[..., None]
    return out.to(outs[0].dtype), (largest + safe.log()).masked_fill(is_dead, -torch.inf)


def _each(parts: Sequence[Any]) -> Sequence[Any]:
    """The parts, which may have been given as one list; a part itself begins with a tensor."""
    match parts:
        case [list() | tuple() as several] if not any(isinstance(each, Tensor) for each in several):
            return several
    return parts


def _part(given: tuple[Tensor, Tensor | Aux]) -> tuple[Tensor, Tensor]:
    out, lse = given
    return out, lse.lse if isinstance(lse, Aux) else lse  # type: ignore[return-value]


def _checked(parts: Sequence[Any]) -> Sequence[Any]:
    """The parts, or an error with everything wrong with any of them."""
    if not parts:
        raise fail(CallError, "merge", "`merge` was given no part", help=WRITE)
    reporter = Reporter(CallError)
    for position, part in enumerate(parts):
        _check(reporter, f"part {position}", part)
    reporter.check()
    first = parts[0][0].shape
    for position, (out, _) in enumerate(parts):
        if out.shape != first:
            message = f"part {position} is of shape {tuple(out.shape)}, part 0 of {tuple(first)}"
            reporter.error("merge", message, help="every part is over the same queries and as many value columns")
    reporter.check()
    return parts


def _check(reporter: Reporter, name: str, part: Any) -> None:
    if not isinstance(part, tuple | list) or len(part) != 2 or not isinstance(part[0], Tensor):
        reporter.error("merge", f"{name} is not a pair of an output and its `lse`", help=WRITE)
        return
    out, lse = _part((part[0], part[1]))
    if not isinstance(lse, Tensor):
        reporter.error("merge", f"{name} has no `lse`", help='ask for it: `return_aux=["lse"]`')
    elif lse.shape != out.shape[:-1]:
        message = f"the `lse` of {name} is of shape {tuple(lse.shape)}, expected {tuple(out.shape[:-1])}"
        reporter.error("merge", message, None, f"its output is of shape {tuple(out.shape)}")
