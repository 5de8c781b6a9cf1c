"""Functions of tensors whose gradients stay 0 where nothing flows back, to any order.

In: a function and its operands. Out: its value, differentiable by autograd any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


def call(function: Callable[..., Tensor], operands: Sequence[Tensor], factors: tuple[int, ...] = ()) -> Tensor:
    """The function's value: 0 where one of the operands at the positions `factors` is, in which it is linear."""
    if torch.is_grad_enabled() and any(operand.requires_grad for operand in operands):
        result: Tensor = _Differentiated.apply(function, factors, *operands)  # type: ignore[no-untyped-call]
        return result
    return _vanishing(function(*operands), [operands[position] for position in factors])


def _vanishing(value: Tensor, factors: list[Tensor]) -> Tensor:
    for factor in factors:
        value = torch.where(factor == 0, 0.0, value)
    return value


class _Differentiated(torch.autograd.Function):
    """A function whose gradient is 0 wherever nothing flows back to it, however singular its derivative is there.

    Dead pairs and branches not taken are evaluated too, at arguments nobody meant: `0 * inf` must not reach an operand
    that live pairs share. The gradient is a function of the same kind, so that this holds for its gradient as well.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], factors: tuple[int, ...], *operands: Tensor) -> Tensor:
        ctx.function, ctx.factors = function, factors
        ctx.save_for_backward(*operands)
        return _vanishing(function(*operands), [operands[position] for position in factors])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Operands are expanded first: what is 0 at a pair must be made so before pairs are summed.
        operands = ctx.saved_tensors
        full = [gradient, *(operand.expand(gradient.shape) for operand in operands)]
        found: list[Tensor | None] = []
        for position, (operand, needs) in enumerate(zip(operands, ctx.needs_input_grad[2:], strict=True)):
            others = (0, *(factor + 1 for factor in ctx.factors if factor != position))
            part = call(partial(_derivative, ctx.function, position), full, others) if needs else None
            found.append(part if part is None else part.sum_to_size(operand.shape))
        return None, None, *found


def _derivative(function: Callable[..., Tensor], position: int, gradient: Tensor, *operands: Tensor) -> Tensor:
    """The gradient times the function's derivative by one of its operands."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that an operand that is made of another one counts as a variable of its own.
        variables = [operand.view_as(operand) if again else operand.detach() for operand in operands]
        if not variables[position].requires_grad:
            variables[position] = variables[position].detach().requires_grad_()
        result = function(*variables)
        (found,) = gradients(result, [variables[position]], gradient, create_graph=again)
    return found


def gradients(
    result: Tensor, variables: Sequence[Tensor], gradient: Tensor, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """`torch.autograd.grad`, 0 by a variable that the result does not depend on."""
    if not result.requires_grad:
        return tuple(map(torch.zeros_like, variables))
    found = torch.autograd.grad(
        result, variables, gradient, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return tuple(torch.zeros_like(one) if part is None else part for one, part in zip(variables, found, strict=True))
