"""The backward of a call: what an engine leaves, put together with what is known row by row.

In: an engine, a call and the rows of its forward, the gradients of what it returned. Out: the gradients asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.analysis.backward import DELTA, DLSE, Backward
from attndsl.ir.nodes import Load, postorder
from attndsl.ir.variant import Variant
from attndsl.runtime.arguments import Call
from attndsl.runtime.engine import Engine, Task, Wanted
from attndsl.runtime.gradients.captures import capture_gradients
from attndsl.runtime.gradients.rows import delta_of, reads_delta, row_derivatives, with_formulas
from attndsl.runtime.launch import Rows


@dataclass(frozen=True, slots=True)
class Cotangents:
    """The gradients of what a call returned; `None` where nothing was made of it."""

    out: Tensor | None
    lse: Tensor | None
    sums: Mapping[str, Tensor | None]

    @property
    def are_any(self) -> bool:
        """Whether anything was made of the call."""
        return any(gradient is not None for gradient in (self.out, self.lse, *self.sums.values()))


@dataclass(frozen=True, slots=True)
class Needed:
    """Whose gradients are asked for, captured tensors by name."""

    q: bool
    k: bool
    v: bool
    captured: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of the inputs, in their dtypes; `None` where none was asked for."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    captured: Mapping[str, Tensor]


def elements(program: Variant, form: Backward) -> tuple[Load, ...]:
    """The captured floats that have derivatives pair by pair: those of the score and what `Backward` says of others."""
    scored = (node for node in postorder(program.score) if isinstance(node, Load) and node.dtype.is_float)
    return tuple(dict.fromkeys((*scored, *(load for load, _ in form.dloads))))


def gradients(engine: Engine, call: Call, rows: Rows, given: Cotangents, needed: Needed) -> Gradients:
    """The gradients asked for."""
    form = engine.derivative
    assert isinstance(form, Backward)
    dout = torch.zeros_like(rows.out) if given.out is None else given.out
    dead = rows.max_score == -torch.inf
    silent = dead if rows.lse is None else dead & (rows.lse == -torch.inf)
    known = {**rows.sums, **rows.kept, DLSE.name: _of_live(given.lse, silent, rows.max_score)}
    known |= {f"d{name}": _of_live(given.sums[name], dead, rows.max_score) for name in rows.sums}
    if reads_delta(form):
        known[DELTA.name] = delta_of(rows.out, dout, dead, rows.max_score.dtype)
    if form.sums:
        known |= engine.sums(call, known, dout)
    known = with_formulas(call, form, known, silent)
    loads = tuple(load for load in elements(engine.program, form) if load.tensor in needed.captured)
    pieces = engine.backward(call, Task(known, dout, Wanted(needed.q, needed.k, needed.v, loads)))
    drows = row_derivatives(call, form, known, silent, needed.captured)
    return Gradients(
        _as(call.q, pieces.dq) if needed.q else None,
        _as(call.k, pieces.dk) if needed.k else None,
        _as(call.v, pieces.dv) if needed.v else None,
        capture_gradients(call, needed.captured, loads, pieces, drows),
    )


def _of_live(gradient: Tensor | None, dead: Tensor, like: Tensor) -> Tensor:
    """The gradient of a row output, of the rows that have one."""
    return torch.zeros_like(like) if gradient is None else torch.where(dead, 0.0, gradient)


def _as(tensor: Tensor, gradient: Tensor | None) -> Tensor:
    assert gradient is not None, "the engine left out a gradient that was asked for"
    return gradient.to(tensor.dtype)
