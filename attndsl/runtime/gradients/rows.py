"""What a backward pass knows row by row, computed on the host from what the forward kept.

In: a call, a `Backward`, row values `[B, Hq, Nq]`. Out: the values its kernels read, and the derivatives by elements
that are alike along the keys. Rows without a live key have no gradient, NaN or not, but for what `lse` gives a sink.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from attndsl.analysis.backward import DELTA, Backward
from attndsl.dense import Env, evaluate
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Load
from attndsl.ir.rewrite import postorder
from attndsl.runtime.arguments import Call
from attndsl.runtime.gradients.grid import grid_of


def reads_delta(form: Backward) -> bool:
    """Whether anything is made of the product of output and its gradient."""
    formulas = (*(row.value for row in (*form.sums, *form.rows)), form.dscore)
    return DELTA in postorder(*formulas, *(value for _, value in (*form.dloads, *form.drows)))


def delta_of(out: Tensor, dout: Tensor, dead: Tensor, dtype: torch.dtype) -> Tensor:
    """The product of output and its gradient, row by row."""
    return torch.where(dead, 0.0, (out.to(dtype) * dout.to(dtype)).sum(-1))


def with_formulas(call: Call, form: Backward, rows: Mapping[str, Tensor], silent: Tensor) -> dict[str, Tensor]:
    """`rows` and the values of `Backward.rows`, each made of those before it; 0 in rows that are silent."""
    known = dict(rows)
    for formula in form.rows:
        known[formula.name] = _value(formula.value, _environment(call, known), silent).contiguous()
    return known


def row_derivatives(
    call: Call, form: Backward, rows: Mapping[str, Tensor], silent: Tensor, names: Iterable[str]
) -> list[tuple[Load, Tensor]]:
    """The derivatives `[B, Hq, Nq]` by elements of these tensors that are known without a pass over the keys."""
    learnt = frozenset(names)
    wanted = [(load, value) for load, value in form.drows if load.tensor in learnt]
    if not wanted:
        return []
    env = _environment(call, rows)
    return [(load, _value(value, env, silent)) for load, value in wanted]


def _environment(call: Call, rows: Mapping[str, Tensor]) -> Env:
    env = grid_of(call, range(call.q_len), range(1)).env
    leaves: dict[Expr, Tensor] = {build.row_value(name): value[..., None] for name, value in rows.items()}
    dtype = next((value.dtype for value in rows.values()), env.dtype)
    return replace(env, leaves={**env.leaves, **leaves}, dtype=dtype)


def _value(value: Expr, env: Env, silent: Tensor) -> Tensor:
    found = evaluate(value, env)
    return torch.where(silent, 0.0, (found if found.dim() < 4 else found[..., 0]).expand(silent.shape))
