"""Values of expressions as torch tensors, the meaning of every operator.

In: expressions and an `Env` with a tensor for every leaf. Out: a tensor for each expression, in the smallest shape that
broadcasts to `[B, H, Nq, Nk]`: what is free of the key has size 1 along it. Integers are int64; floats have the
environment's dtype. Nothing fails at a pair that turns out dead or in a branch not taken: out-of-range indices are
clamped and an integer divided by zero is some integer. Everything is differentiable by autograd, any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from attndsl.guarded import call
from attndsl.ir import build
from attndsl.ir.binding import open_nodes
from attndsl.ir.nodes import Apply, Const, Expr, Load, Reduce, Scalar, Solve, children
from attndsl.ir.ops import facts
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import ScalarParam, Variant
from attndsl.roots import solve_rows

Value = bool | int | float | Tensor
"""What a parameter is bound to: a tensor for a tensor parameter, a number (or a 0-d tensor) for a scalar."""


@dataclass(frozen=True, slots=True)
class Env:
    """What expressions are evaluated over.

    `leaves` gives the coordinates, the lengths, the score and the weight; any further node it holds is taken from there
    and not computed. `live` says over which pairs row statistics are taken.
    """

    leaves: Mapping[Expr, Tensor] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    live: Tensor | None = None
    device: torch.device | str = "cpu"

    def storage(self, dtype: DType) -> torch.dtype:
        """The torch dtype that values of a type have here."""
        if dtype.is_bool:
            return torch.bool
        return torch.int64 if dtype.is_int else self.dtype


def environment(
    variant: Variant,
    values: Mapping[str, Value],
    *,
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    q_offset: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Env:
    """Coordinates, lengths and parameters of a call; what flows into a stage is the caller's to add."""

    def along(axis: int, size: int) -> Tensor:
        return torch.arange(size, device=device).view([-1 if axis == other else 1 for other in range(4)])

    offset = torch.as_tensor(q_offset, device=device).to(torch.int64).reshape(-1, 1, 1, 1)
    leaves: dict[Expr, Tensor] = {
        build.B: along(0, batch),
        build.H: along(1, heads),
        build.Q: along(2, q_len) + offset,
        build.K: along(3, kv_len),
        build.Q_LEN: torch.tensor(q_len, device=device),
        build.KV_LEN: torch.tensor(kv_len, device=device),
    }
    defaults = {
        param.name: param.default
        for param in variant.params
        if isinstance(param, ScalarParam) and param.default is not None
    }
    return Env(leaves, {**defaults, **values}, dtype, device=device)


def evaluate(root: Expr, env: Env) -> Tensor:
    """The value of one expression."""
    return evaluate_all((root,), env)[0]


def evaluate_all(roots: Sequence[Expr], env: Env) -> tuple[Tensor, ...]:
    """The values of several expressions; what they share is computed once."""
    known = dict(env.leaves)
    unbound = open_nodes(*roots)
    for node in postorder(*roots):
        if node in known or node in unbound:
            continue
        if isinstance(node, Solve):
            known[node] = _solved(node, known, env)
        else:
            known[node] = _value(node, [known[child] for child in children(node)], env)
    return tuple(known[root] for root in roots)


def _value(node: Expr, operands: list[Tensor], env: Env) -> Tensor:
    match node:
        case Const(value=value, dtype=dtype):
            return torch.tensor(value, dtype=env.storage(dtype), device=env.device)
        case Scalar(name=name, dtype=dtype):
            # A number as exact as the environment's floats: torch would make a float32 of it first.
            return torch.as_tensor(env.values[name], dtype=env.storage(dtype), device=env.device)
        case Load(tensor=tensor, dtype=dtype):
            return _gather(torch.as_tensor(env.values[tensor]).to(env.storage(dtype)), operands)
        case Apply(op=op, dtype=dtype):
            # The cast is for `to_float` alone: only the environment knows how wide floats are.
            return call(_function(facts(op).torch), operands).to(env.storage(dtype))
        case Reduce(reduction=reduction, arg=arg):
            if env.live is None:
                raise KeyError(f"{reduction.value} of {arg.dtype.value} needs to know which pairs are live")
            return reduced(reduction, operands[0], env.live)
        case _:
            raise KeyError(f"the environment has no value for {node}")


def _gather(tensor: Tensor, indices: list[Tensor]) -> Tensor:
    """The elements at the indices. Live reads are in bounds; elsewhere the nearest element will do."""
    if not indices:
        return tensor
    if tensor.numel() == 0:
        return tensor.new_zeros(()).expand_as(sum(indices[1:], indices[0]))
    return tensor[tuple(index.clamp(0, size - 1) for index, size in zip(indices, tensor.shape, strict=True))]


def reduced(reduction: Reduction, values: Tensor, live: Tensor) -> Tensor:
    """A statistic over the live keys of each row; the maximum of none is -inf."""
    match reduction:
        case Reduction.MAX:
            candidates = torch.where(live, values, -torch.inf)
            nothing = candidates.new_full((*candidates.shape[:-1], 1), -torch.inf)
            return (candidates if candidates.shape[-1] > 0 else nothing).amax(-1, keepdim=True)
        case Reduction.SUM:
            return torch.where(live, values, 0.0).sum(-1, keepdim=True)


def _solved(node: Solve, known: Mapping[Expr, Tensor], env: Env) -> Tensor:
    """The threshold of each row, as a function of the values its body reads."""
    if env.live is None:
        raise KeyError("row_solve needs to know which pairs are live")
    live = env.live
    steps = _steps(node.body)
    read = tuple(dict.fromkeys(child for step in steps for child in children(step) if child not in steps))

    def sums(threshold: Tensor, *values: Tensor) -> Tensor:
        here = {**dict(zip(read, values, strict=True)), build.THRESHOLD: threshold}
        for step in steps:
            if step is not build.THRESHOLD:
                here[step] = _value(step, [here[child] for child in children(step)], env)
        return reduced(Reduction.SUM, here[node.body], live)

    total, lower, upper = (known[part] for part in (node.total, node.lower, node.upper))
    return solve_rows(sums, tuple(known[leaf] for leaf in read), total, lower, upper, live)


def _steps(body: Expr) -> dict[Expr, None]:
    """What the body of a solve computes from its threshold, operands first."""
    unbound = open_nodes(body)
    steps: dict[Expr, None] = {}
    stack = [(body, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            steps[node] = None
        elif node in unbound and node not in steps:
            stack.append((node, True))
            stack.extend((child, False) for child in children(node))
    return steps


def floor_divide(left: Tensor, right: Tensor) -> Tensor:
    """Python's `//`; unlike torch's function of that name it has a derivative."""
    return torch.div(left, _divisor(right), rounding_mode="floor")


def remainder(left: Tensor, right: Tensor) -> Tensor:
    """Python's `%`."""
    return torch.remainder(left, _divisor(right))


def bit_length(value: Tensor) -> Tensor:
    """The number of bits of |value|, by bisection: a logarithm is inexact beyond 2**53."""
    rest = value.abs()
    bits = torch.zeros_like(rest)
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >= 1 << step
        bits = torch.where(high, bits + step, bits)
        rest = torch.where(high, rest >> step, rest)
    # |-2**63| is itself in 64 bits.
    return torch.where(rest < 0, 64, bits + rest)


def to_bool(value: Tensor) -> Tensor:
    """False for zero."""
    return value != 0


def to_int(value: Tensor) -> Tensor:
    """Towards zero."""
    return value.to(torch.int64)


def to_float(value: Tensor) -> Tensor:
    """The number as it is; the caller widens it to the dtype of floats."""
    return value


_LOCAL: dict[str, Callable[..., Tensor]] = {
    "floor_divide": floor_divide,
    "remainder": remainder,
    "bit_length": bit_length,
    "to_bool": to_bool,
    "to_int": to_int,
    "to_float": to_float,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def _function(name: str) -> Callable[..., Tensor]:
    """The function the operator table names: one of this module, or torch's."""
    function: Callable[..., Tensor] = _LOCAL[name] if name in _LOCAL else getattr(torch, name)
    return function


def _divisor(value: Tensor) -> Tensor:
    """torch raises on an integer division by zero, which a dead pair may well do."""
    return value if value.is_floating_point() else torch.where(value == 0, 1, value)
