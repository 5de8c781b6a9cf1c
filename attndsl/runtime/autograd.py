"""A differentiable call of a backend: torch's autograd around an `Engine`.

In: a checked call and the engine that runs it. Out: its `Rows`, all but `max_score` differentiable in q, k, v and every
captured float tensor that requires grad. Gradients of gradients are the reference's business, and refused here.

Saved for the backward are q, k, v, captured tensors as they are, the output, and a few values a row: like torch, the
backward refuses to go on when one of them was written to in the meantime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attndsl.analysis.streaming import Refusal
from attndsl.analysis.structure import is_indexed_by_scores
from attndsl.diagnostics import Reporter, UnsupportedError, fail
from attndsl.runtime.arguments import Call
from attndsl.runtime.engine import Engine
from attndsl.runtime.gradients.whole import Cotangents, Needed, elements, gradients
from attndsl.runtime.launch import Rows
from attndsl.runtime.versions import Versions, written_in_place

INPUTS = ("q", "k", "v")
REFERENCE = '`backend="reference"`, which is differentiable any number of times'


def attend(engine: Engine, call: Call) -> Rows:
    """The rows of a call, without `kept`; nothing is saved where no gradient is recorded.

    Tokens are in the order the engine's program counts them in.
    """
    tensors = call.tensors
    if not is_recorded(call):
        return replace(engine.forward(call), kept={})
    learning = tuple(name for name, value in call.values.items() if isinstance(value, Tensor) and value.requires_grad)
    check_differentiable(engine, learning)
    # Autograd saves no inference tensor; nobody can tell whether one is written to, so what is saved is a copy.
    owned = (tensor.clone() if tensor.is_inference() else tensor for tensor in tensors)
    out, lse, most, names, *sums = _Attend.apply(engine, call, *owned)  # type: ignore[no-untyped-call]
    return Rows(out, lse, most, dict(zip(names, sums, strict=True)))


def output(engine: Engine, call: Call) -> Tensor:
    """The output of `attend` alone."""
    return attend(engine, call).out if is_recorded(call) else engine.output(call)


def is_recorded(call: Call) -> bool:
    """Whether autograd follows what is made of a call."""
    if torch.is_grad_enabled():
        for tensor in call.tensors:
            if tensor.requires_grad:
                return True
    return False


def cast_by_autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in the dtype of autocast, where that is enabled and they are tensors, not of float64.

    Scores and statistics are float32 in any case, so captured tensors stay what they are, and gradients have the dtypes
    of the tensors they are of.
    """
    if not all(isinstance(tensor, Tensor) for tensor in (q, k, v)):
        return q, k, v
    device = q.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return q, k, v
    dtype = torch.get_autocast_dtype(device)
    q, k, v = (tensor if tensor.dtype is torch.float64 else tensor.to(dtype) for tensor in (q, k, v))
    return q, k, v


@dataclass(frozen=True, slots=True)
class _Form:
    """A call without its tensors, which autograd holds: q, k, v, `captured` ones, and the offset where it is one."""

    scale: float
    numbers: Mapping[str, int | float]
    captured: tuple[str, ...]
    q_offset: int | None

    @staticmethod
    def of(call: Call) -> _Form:
        """The form of a call."""
        captured = tuple(name for name, value in call.values.items() if isinstance(value, Tensor))
        numbers = {name: value for name, value in call.values.items() if not isinstance(value, Tensor)}
        return _Form(call.scale, numbers, captured, None if isinstance(call.q_offset, Tensor) else call.q_offset)

    @property
    def names(self) -> tuple[str, ...]:
        """What messages call the tensors."""
        return (*INPUTS, *self.captured, *(("q_offset",) if self.q_offset is None else ()))

    def learning(self, needs: Sequence[bool]) -> tuple[str, ...]:
        """The captured tensors whose gradients are needed."""
        return tuple(name for name, need in zip(self.captured, needs[len(INPUTS) :], strict=False) if need)

    def call_of(self, tensors: Sequence[Tensor]) -> Call:
        """The call with its tensors."""
        q, k, v, *others = tensors
        values = {**self.numbers, **dict(zip(self.captured, others, strict=False))}
        return Call(q, k, v, self.scale, others[-1] if self.q_offset is None else self.q_offset, values)


def check_differentiable(engine: Engine, learning: Collection[str]) -> None:
    """Refuse a call whose gradients kernels cannot give, with every reason."""
    if isinstance(engine.derivative, Refusal):
        raise UnsupportedError(engine.derivative.reasons)
    if not learning:
        return
    reporter = Reporter(UnsupportedError)
    for load in elements(engine.program, engine.derivative):
        if load.tensor in learning and is_indexed_by_scores(load):
            message = f"`{load.tensor}` requires grad, and which of its elements a pair reads depends on the score"
            span = engine.program.origins.first(load)
            reporter.error("score-indexed-gradient", message, span, help=f"detach it, or use {REFERENCE}")
    reporter.check()


class _Attend(torch.autograd.Function):
    """out, lse and max_score of a call, the names of its further sums, and these, by an engine."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, call: Call, *tensors: Tensor) -> tuple[Any, ...]:
        """`tensors` are those of the call as they can be saved."""
        with without_autocast(call.q):
            rows = engine.forward(call)
        ctx.engine, ctx.form, ctx.sums, ctx.kept = engine, _Form.of(call), tuple(rows.sums), tuple(rows.kept)
        ctx.versions = Versions.of(ctx.form.names, tensors)
        left = (rows.out, rows.lse, rows.max_score, *rows.sums.values())
        ctx.save_for_backward(*tensors, *left, *rows.kept.values())
        ctx.mark_non_differentiable(rows.max_score)
        ctx.set_materialize_grads(False)
        return *left[:3], ctx.sums, *left[3:]

    @staticmethod
    def backward(
        ctx: Any, dout: Tensor | None, dlse: Tensor | None, _most: None, _names: None, *dsums: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        given = Cotangents(dout, dlse, dict(zip(ctx.sums, dsums, strict=True)))
        if not given.are_any:
            return (None,) * (2 + len(needs))
        saved, count = _saved(ctx), len(needs)
        call = ctx.form.call_of(saved[:count])
        out, lse, most, *others = saved[count:]
        sums = dict(zip(ctx.sums, others, strict=False))
        rows = Rows(out, lse, most, sums, dict(zip(ctx.kept, others[len(sums) :], strict=True)))
        wanted = Needed(needs[0], needs[1], needs[2], ctx.form.learning(needs))
        with torch.no_grad(), without_autocast(out):
            found = gradients(ctx.engine, call, rows, given, wanted)
        captured = [found.captured.get(name) for name in ctx.form.captured]
        ordered = [found.q, found.k, found.v, *captured, *[None] * (count - len(INPUTS) - len(captured))]
        if torch.is_grad_enabled():
            ordered = _Once.apply(ordered, *saved[:count], dout, dlse, *dsums)  # type: ignore[no-untyped-call]
        return None, None, *ordered


def _saved(ctx: Any) -> Sequence[Tensor]:
    """What the forward saved, as it was."""
    ctx.versions.check()
    try:
        saved: Sequence[Tensor] = ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise written_in_place("what an attention was given or returned") from error
    return saved


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Row formulas compute in the dtypes they are written in."""
    if not torch._C._is_any_autocast_enabled() or not torch.amp.is_autocast_available(tensor.device.type):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


class _Once(torch.autograd.Function):
    """Gradients that must not be differentiated, as made of other tensors.

    torch's own guard joins them to nothing, and so takes them for constants where the second derivative is by inputs.
    """

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor | None], *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        message = "kernels give gradients, but not gradients of gradients"
        raise fail(UnsupportedError, "double-backward", message, help=f"call the attention with {REFERENCE}")
