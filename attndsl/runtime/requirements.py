"""Whether a call is what its variant requires, before anything is computed.

In: a variant, the values of its scalars, lengths and offsets. Out: a diagnostic for each requirement that does not
hold. Ranges decide integers at once; what they leave open is evaluated, position by position where it reads `q_idx`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attndsl.analysis.intervals import Known, evaluate, whole
from attndsl.analysis.values import Truth
from attndsl.dense import Env
from attndsl.dense import evaluate as evaluate_densely
from attndsl.diagnostics import CallError, Diagnostic
from attndsl.ir import build
from attndsl.ir.nodes import Coord, Expr, Scalar, postorder
from attndsl.ir.printer import print_expr
from attndsl.ir.requirement import Requirement
from attndsl.ir.types import Coordinate
from attndsl.ir.variant import Variant
from attndsl.runtime.known import Value


def check_requirements(
    variant: Variant, values: Mapping[str, Value], q_len: int, kv_len: int, q_offset: int | Tensor
) -> None:
    """Raise with every requirement a call does not meet."""
    demands = variant.demands
    if not demands:
        return
    names = {node.name for one in demands for node in postorder(one.condition) if isinstance(node, Scalar)}
    scalars = {name: value for name, value in values.items() if name in names and not isinstance(value, Tensor)}
    offsets = torch.as_tensor(q_offset).to("cpu", torch.int64).reshape(-1)
    refusals = [
        _refusal(requirement, scalars, q_len, kv_len, offsets)
        for requirement in demands
        if not _holds(requirement.condition, scalars, q_len, kv_len, offsets)
    ]
    if refusals:
        raise CallError(refusals)


def _holds(condition: Expr, scalars: Mapping[str, int | float], q_len: int, kv_len: int, offsets: Tensor) -> bool:
    lengths = {Coordinate.Q_LEN: (q_len, q_len), Coordinate.KV_LEN: (kv_len, kv_len)}
    by_query = build.Q in postorder(condition)
    if by_query:
        if q_len == 0 or offsets.numel() == 0:
            return True
        lengths[Coordinate.Q_IDX] = (int(offsets.min()), int(offsets.max()) + q_len - 1)
    truth = evaluate((condition,), whole(lengths), Known(scalars))[condition]
    assert isinstance(truth, Truth)
    if not (truth.can_be_true & truth.can_be_false).all():
        return bool(truth.can_be_true.all())
    leaves: dict[Expr, Tensor] = {build.Q_LEN: torch.tensor(q_len), build.KV_LEN: torch.tensor(kv_len)}
    if by_query:
        leaves[build.Q] = offsets.view(-1, 1) + torch.arange(q_len)
    return bool(evaluate_densely(condition, Env(leaves, scalars, torch.float64)).all())


def _refusal(
    requirement: Requirement, scalars: Mapping[str, int | float], q_len: int, kv_len: int, offsets: Tensor
) -> Diagnostic:
    notes = [f"required is `{print_expr(requirement.condition)}`"]
    for node in postorder(requirement.condition):
        match node:
            case Scalar(name=name):
                notes.append(f"`{name}` is {scalars[name]}")
            case Coord(coordinate=Coordinate.Q_IDX):
                first, last = int(offsets.min()), int(offsets.max()) + q_len - 1
                notes.append(f"`q_idx` goes from {first} to {last}")
            case Coord(coordinate=coordinate):
                notes.append(f"`{coordinate.value}` is {q_len if coordinate is Coordinate.Q_LEN else kv_len}")
    return Diagnostic("requirement", requirement.message, requirement.span, tuple(notes))
