"""Attention as torch operators: what `torch.compile` and `torch.export` put into their graphs.

In: tensors, numbers and the text of a program. Out: the output and the rows of a call, by the backend an eager call
runs on, with gradients. Importing this module registers the operators, which loading an exported program needs.

`attndsl::attend` and `attndsl::attend_backward` read no tensor's values on the host. Where values are read, to plan
from captured ints or bools, from floats in a mask or a tensor of offsets, or to count where a gradient is added, a call
goes to `attndsl::attend_by_values` and its backward, which are the same but for a tag: a CUDA graph would replay what
was made of other values, and torch's compiler keeps them out of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import UnsupportedError, fail
from attndsl.operations import Operation
from attndsl.runtime.autograd import REFERENCE

__all__ = ["attend"]

PROGRAM = (
    "Tensor q, Tensor k, Tensor v, Tensor[] captured, SymInt[] integers, float[] floats, Tensor? q_offsets, "
    "SymInt q_offset, float? scale, bool enable_gqa, str program, str masses, bool entropy, str backend"
)
"""A call: see `Operation.of`."""


def attend(*call: Any, by_values: bool) -> list[Tensor]:
    """The tensors of `Operation.layout`; `by_values`: the host may read values of tensors."""
    operator = torch.ops.attndsl.attend_by_values if by_values else torch.ops.attndsl.attend
    return operator(*call)  # type: ignore[no-any-return]


def _register(name: str, tags: tuple[torch.Tag, ...]) -> None:
    """One operator, its backward, what both return of fake tensors, and how they are differentiated."""
    forward = _operator(name, f"({PROGRAM}) -> Tensor[]", _forward, _fake_forward, tags)
    backward = _operator(
        f"{name}_backward",
        f"({PROGRAM}, Tensor[] rows, Tensor?[] cotangents, bool[] needed) -> Tensor[]",
        _backward,
        _fake_backward,
        tags,
    )

    def differentiate(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Any, ...]:
        return _differentiated(backward, ctx, cotangents)

    forward.register_autograd(differentiate, setup_context=_keep)
    backward.register_autograd(_refuse_second_derivative)
    forward.register_vmap(_refuse_vmap)
    backward.register_vmap(_refuse_vmap)


def _operator(
    name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any], tags: tuple[torch.Tag, ...]
) -> Any:
    operator = torch.library.custom_op(f"attndsl::{name}", run, mutates_args=(), schema=schema, tags=tags)
    operator.register_fake(fake)
    return operator


def _forward(*call: Any) -> list[Tensor]:
    return Operation.of(*call).forward()


def _fake_forward(*call: Any) -> list[Tensor]:
    return Operation.of(*call).empty_rows()


def _backward(*given: Any) -> list[Tensor]:
    *call, rows, cotangents, needed = given
    return Operation.of(*call).backward(rows, cotangents, needed)


def _fake_backward(*given: Any) -> list[Tensor]:
    *call, _, _, needed = given
    return Operation.of(*call).empty_gradients(needed)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    """What the backward reads: every tensor of the call, and every row."""
    q, k, v, captured, *others = inputs
    operation = Operation.of(*inputs)
    operation.check_differentiable([tensor.requires_grad for tensor in captured])
    q_offsets = others[2]
    ctx.others, ctx.count, ctx.has_offsets = others, len(captured), q_offsets is not None
    ctx.save_for_backward(q, k, v, *captured, *([q_offsets] if ctx.has_offsets else []), *output)
    differentiable = operation.differentiable
    ctx.mark_non_differentiable(*(row for row, is_one in zip(output, differentiable, strict=True) if not is_one))
    ctx.set_materialize_grads(False)


def _differentiated(backward: Any, ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Any, ...]:
    q, k, v, *rest = ctx.saved_tensors
    captured, rest = rest[: ctx.count], rest[ctx.count :]
    integers, floats, q_offsets, *others = ctx.others
    if ctx.has_offsets:
        q_offsets, *rest = rest
    needs = [*ctx.needs_input_grad[:3], *(ctx.needs_input_grad[3] if ctx.count else [])]
    call = (q, k, v, captured, integers, floats, q_offsets, *others)
    found = iter(backward(*call, rest, list(cotangents), needs) if any(needs) else [])
    dq, dk, dv, *captures = [next(found) if need else None for need in needs]
    # Lists without elements count as lists of tensors.
    return dq, dk, dv, captures, *([] if other == [] else None for other in ctx.others)


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    message = "kernels give gradients, but not gradients of gradients"
    raise fail(UnsupportedError, "double-backward", message, help=f"call the attention with {REFERENCE}")


def _refuse_vmap(*_: Any) -> None:
    message = "attention kernels have no batching rule for `torch.vmap`"
    raise fail(UnsupportedError, "no-vmap", message, help="put the mapped dimension in the batch, or in the heads")


_register("attend", ())
_register("attend_by_values", (torch.Tag.cudagraph_unsafe,))
