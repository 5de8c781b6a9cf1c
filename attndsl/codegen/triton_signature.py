"""The signature of a kernel: its arguments in order, and those Triton must not specialise on."""

from __future__ import annotations

from collections.abc import Iterator

from attndsl.analysis.bounds import Strategy
from attndsl.codegen.plan import KernelPlan
from attndsl.ir.variant import TensorParam

POINTERS = ("Q", "K", "V", "Out", "Lse", "Max", "Q_offset", "Table", "Table_rows")
"""Pointers a kernel may take beside its captured tensors."""


def arguments(plan: KernelPlan) -> Iterator[str]:
    """The names of a kernel's arguments, tile sizes left out, in the order a launch passes them."""
    yield from ("Q", "K", "V", "Out", "Lse", "Max")
    for param in plan.params:
        name = plan.symbols[param.name]
        yield name
        if isinstance(param, TensorParam):
            yield from (f"stride_{name}_{axis}" for axis in range(param.rank))
            if not plan.spec.fast:
                yield from (f"size_{name}_{axis}" for axis in range(param.rank))
    if plan.walk.strategy is Strategy.TABLE:
        yield from ("Table", "Table_rows", "stride_tb", "stride_th")
    yield "sm_scale"
    yield "Q_offset" if plan.spec.offset_per_batch else "q_offset"
    yield from ("q_len", "kv_len", "heads", "group")
    for tensor, axis in (("q", "m"), ("k", "n"), ("v", "n"), ("o", "m")):
        yield from (f"stride_{tensor}{letter}" for letter in ("b", "h", axis, "d"))


def runtime_arguments(plan: KernelPlan) -> Iterator[str]:
    """All but pointers and the strides of q, k, v and the output, whose alignment vector loads need."""
    tensors = [(plan.symbols[p.name], p.rank) for p in plan.params if isinstance(p, TensorParam)]
    pointers = {*POINTERS, *(name for name, _ in tensors)}
    own = {f"stride_{tensor}{letter}" for tensor in "qkvo" for letter in "bhmnd"}
    last = {f"stride_{name}_{rank - 1}" for name, rank in tensors}
    return (arg for arg in arguments(plan) if arg not in pointers | own | last)
