"""What an attention tells without being called: its plan, what calls cost, what compilers make of its kernels.

In: an instance, or a compilation and the values its parameters have so far; the lengths, head dims and element types
that are asked about. Out: plans, explanations, reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attndsl.codegen.plan import Specialisation, Target
from attndsl.compiler import Compilation
from attndsl.explain import Explanation, Shape
from attndsl.explain import explain as explained
from attndsl.instance import Instance
from attndsl.ir.variant import Variant
from attndsl.runtime.aot import check_target, compile_for
from attndsl.runtime.arguments import Value, check_plan
from attndsl.runtime.backends import DTYPES, check_kernel_shape
from attndsl.runtime.planner import BlockPlan, plan_blocks
from attndsl.runtime.reports import CompileReport


def plan(
    instance: Instance,
    q_len: int,
    kv_len: int | None,
    *,
    batch: int = 1,
    heads: int = 1,
    block: tuple[int, int] = (128, 128),
    q_offset: int | Tensor = 0,
    blocks: Any = None,
    exact: bool = False,
) -> BlockPlan:
    """Which tiles are empty, partial and full."""
    kv_len = q_len if kv_len is None else kv_len
    check_plan(q_len, kv_len, batch=batch, heads=heads, block=block, q_offset=q_offset)
    sizes = (batch, heads, q_len, kv_len)
    if blocks is not None:
        instance = instance.routed_for(blocks, sizes, q_offset)
    instance.book.check_mask(instance.source, instance.values, sizes, q_offset)
    known = instance.book.known(instance.program, instance.values)
    how: dict[str, Any] = {"batch": batch, "heads": heads, "block": block, "q_offset": q_offset}
    found = plan_blocks(instance.program, instance.values, q_len, kv_len, exact=exact, known=known, **how)
    order = instance.source.order
    return found if order is None else replace(found, reasons=(f"tokens are kept in {order}", *found.reasons))


def explain(
    instance: Instance,
    q_len: int,
    kv_len: int | None,
    *,
    head_dim: int,
    v_head_dim: int | None,
    dtype: torch.dtype,
    blocks: Any,
    **where: Any,
) -> Explanation:
    """What a call of these lengths costs and why; `where` are further arguments of `plan`."""
    kv_len = q_len if kv_len is None else kv_len
    batch, heads, q_offset = where.get("batch", 1), where.get("heads", 1), where.get("q_offset", 0)
    sizes = (batch, heads, q_len, kv_len)
    if blocks is not None:
        instance = instance.routed_for(blocks, sizes, q_offset)
    v_head_dim = head_dim if v_head_dim is None else v_head_dim
    check_kernel_shape(dtype, head_dim, v_head_dim)
    tiles = plan(instance, q_len, kv_len, **where)
    grants = instance.book.grants(instance.program, instance.values, sizes, q_offset)
    return explained(instance.compilation, tiles, Shape(batch, heads, head_dim, v_head_dim, dtype), grants)


def compile_ahead(
    compilation: Compilation,
    values: Mapping[str, Value],
    target: str,
    *,
    dtype: torch.dtype,
    head_dim: int,
    v_head_dim: int | None,
) -> CompileReport:
    """What a target's compilers make of the kernels; one that is left with nothing to compute is none."""
    check_target(target)
    language = Target.CPP if target == "cpu" else Target.TRITON
    spec = specialisation(compilation, values, language, dtype, head_dim, v_head_dim)
    emitted = {name: compilation.kernel(name, spec) for name in compilation.derivation.kernels_of(language)}
    return compile_for({name: kernel for name, kernel in emitted.items() if kernel.plan.yields}, target)


def specialisation(
    compilation: Compilation,
    values: Mapping[str, Value],
    target: Target,
    dtype: torch.dtype,
    head_dim: int,
    v_head_dim: int | None,
) -> Specialisation:
    """What kernels are for tensors of this dtype; `values` are those parameters have so far."""
    v_head_dim = head_dim if v_head_dim is None else v_head_dim
    check_kernel_shape(dtype, head_dim, v_head_dim, target)
    learnt = _learnt(compilation.source, values)
    return Specialisation(DTYPES[target][dtype], head_dim, v_head_dim, gradients=learnt, target=target)


def _learnt(source: Variant, values: Mapping[str, Value]) -> frozenset[str]:
    """The captured float tensors that require grad, or have no value yet: whatever may be learnt."""
    floats = (param.name for param in source.tensors if param.dtype.is_float)
    found = ((name, values.get(name)) for name in floats)
    return frozenset(name for name, value in found if not isinstance(value, Tensor) or value.requires_grad)
