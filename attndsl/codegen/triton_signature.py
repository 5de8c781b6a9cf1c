"""The signature of a kernel: its arguments in order, and those Triton must not specialise on.

q, k and v, the gradient of the output, what the kernel writes, row values it reads and writes, captures,
a table, scalars, lengths, strides, tile sizes
"""

from __future__ import annotations

from collections.abc import Iterator

from attndsl.codegen.plan import KernelPlan
from attndsl.ir.variant import TensorParam

TENSORS = {
    "Q": ("q", "m"),
    "K": ("k", "n"),
    "V": ("v", "n"),
    "DOut": ("do", "m"),
    "Out": ("o", "m"),
    "DQ": ("dq", "m"),
    "DK": ("dk", "n"),
    "DV": ("dv", "n"),
}
"""The four-dimensional tensors by pointer: how their strides are named, and the letter of their rows."""

POINTERS = (*TENSORS, "Q_offset", "Table", "Table_rows", "Pages", "Kv_lens")
"""Pointers a kernel may take beside its captured tensors and row values."""


def arguments(plan: KernelPlan) -> Iterator[str]:
    """The names of a kernel's arguments, tile sizes left out, in the order a launch passes them."""
    yield from plan.tensors
    yield from plan.row_pointers
    for param in plan.params:
        name = plan.symbols[param.name]
        yield name
        if isinstance(param, TensorParam):
            yield from (f"stride_{name}_{axis}" for axis in range(param.rank))
            if not plan.spec.fast:
                yield from (f"size_{name}_{axis}" for axis in range(param.rank))
    if plan.reads_table:
        yield from ("Table", "Table_rows", "stride_tb", "stride_th")
    if plan.spec.paged:
        yield from ("Pages", "Kv_lens", "stride_pages", "page_size")
    yield "sm_scale"
    yield "Q_offset" if plan.spec.offset_per_batch else "q_offset"
    yield from ("q_len", "kv_len", "heads", "group", *plan.sizes)
    for tensor in plan.tensors:
        yield from stride_names(tensor)


def stride_names(tensor: str) -> tuple[str, ...]:
    """The strides of a tensor: batch, head, row, column."""
    name, row = TENSORS[tensor]
    return tuple(f"stride_{name}{axis}" for axis in ("b", "h", row, "d"))


def runtime_arguments(plan: KernelPlan) -> Iterator[str]:
    """All but pointers and the strides of q, k, v and their like, whose alignment vector loads need."""
    tensors = [(plan.symbols[p.name], p.rank) for p in plan.params if isinstance(p, TensorParam)]
    pointers = {*POINTERS, *plan.row_pointers, *(name for name, _ in tensors)}
    own = {stride for tensor in plan.tensors for stride in stride_names(tensor)}
    last = {f"stride_{name}_{rank - 1}" for name, rank in tensors}
    return (arg for arg in arguments(plan) if arg not in pointers | own | last)
