"""One kernel launch: from a checked call and an emitted kernel to outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attndsl.analysis.bounds import Strategy
from attndsl.codegen.plan import Emitted, KernelPlan
from attndsl.ir.variant import TensorParam, Variant
from attndsl.runtime.arguments import Call
from attndsl.runtime.interpreter import silent_arithmetic, widen_bfloat16_products
from attndsl.runtime.store import load_module
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import INTERPRETER, TileShape, default_tile, family_of

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
MAX_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class Rows:
    """What a forward pass leaves: the output and, for each row, the log of its divisor and its largest score."""

    out: Tensor
    lse: Tensor
    max_score: Tensor


def allocate(call: Call) -> Rows:
    """Outputs of the right shapes, holding what a row without a live key gives."""
    shape = (call.batch, call.heads, call.q_len)
    rows = call.q.new_full(shape, -torch.inf, dtype=torch.float32)
    return Rows(call.q.new_zeros((*shape, call.v_head_dim)), rows, rows.clone())


def forward(call: Call, emitted: Emitted, tile: TileShape | None = None, table: TileTable | None = None) -> Rows:
    """Run the forward kernel; `table` for a plan that walks one, made for the same tile shape."""
    if call.v_head_dim == 0:
        # Kernels have at least one column of values: a stand-in for it keeps them inside the memory of the tensors.
        rows = forward(replace(call, v=call.v.new_zeros(*call.v.shape[:3], 1)), emitted, tile, table)
        return replace(rows, out=rows.out[..., :0])
    rows = allocate(call)
    if rows.out.numel() == 0 and rows.lse.numel() == 0:
        return rows
    tile = tile or tile_for(call, emitted.plan)
    interpret = call.q.device.type != "cuda"
    if interpret:
        widen_bfloat16_products()
    kernel = load_module(emitted.text, "forward", interpret).forward
    grid = (-(-call.q_len // tile.block_m) * call.batch * call.heads,)
    if grid[0]:
        _launch(kernel, grid, _arguments(call, emitted.plan, rows, table), call.q, tile)
    return rows


def _launch(kernel: Any, grid: tuple[int], arguments: Iterator[Any], q: Tensor, tile: TileShape) -> None:
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(q), nullcontext() if q.is_cuda else silent_arithmetic():
        kernel[grid](
            *arguments,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )


def _arguments(call: Call, plan: KernelPlan, rows: Rows, table: TileTable | None) -> Iterator[Any]:
    """In the order of the kernel's signature."""
    yield from (call.q, call.k, call.v, rows.out, rows.lse, rows.max_score)
    for param in plan.params:
        value = call.values[param.name]
        if isinstance(param, TensorParam):
            assert isinstance(value, Tensor)
            # A tensor without elements is never read at a live pair, but its address must be valid.
            yield value.detach() if value.numel() else value.new_zeros(1)
            yield from (stride if size > 1 else 0 for stride, size in zip(value.stride(), value.shape, strict=True))
            if not plan.spec.fast:
                yield from (max(size, 1) for size in value.shape)
        else:
            yield float(value) if param.dtype.is_float else int(value)
    if plan.walk.strategy is Strategy.TABLE:
        assert table is not None
        yield from (table.records, table.rows, table.batch_stride, table.head_stride)
    yield call.scale
    yield call.q_offset.contiguous() if isinstance(call.q_offset, Tensor) else call.q_offset
    yield from (call.q_len, call.kv_len, call.heads, call.heads // call.kv_heads)
    for tensor in (call.q, call.k, call.v, rows.out):
        # The stride of a dimension of one element is arbitrary; 0 keeps one kernel for all of them.
        yield from (stride if size > 1 else 0 for stride, size in zip(tensor.stride()[:3], tensor.shape, strict=False))
        yield tensor.stride(3)


def storages(variant: Variant, call: Call) -> tuple[str, ...]:
    """Triton sees how tensors are stored when it is called."""
    return ()


def tile_for(call: Call, plan: KernelPlan) -> TileShape:
    """The tile shape a launch uses by default."""
    if call.q.device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(call.q.device)
    family = family_of("hip" if torch.version.hip else "cuda", 10 * major + minor)
    return default_tile(family, plan)
