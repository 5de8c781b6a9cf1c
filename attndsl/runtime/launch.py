"""One kernel launch: from a checked call, an emitted kernel and the tensors it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attndsl.codegen.placement import Side
from attndsl.codegen.plan import Emitted, Gather, KernelPlan
from attndsl.ir.variant import TensorParam
from attndsl.runtime.arguments import Call, PagedCall
from attndsl.runtime.interpreter import mend_interpreter, silent_arithmetic
from attndsl.runtime.store import load_module
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import TileShape, default_tile, family_of

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
MAX_HEAD_DIM = 256

SHARED_KEYS = 256
"""Keys that are not worth sharing among programs."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a forward pass leaves: the output and, for each row, the log of its divisor where it has one, and its
    largest score.

    `sums` are further sums over the rows, by name; `kept` the row values a backward pass reads, by name.
    """

    out: Tensor
    lse: Tensor | None
    max_score: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """What one kernel is run on: its tensors and row values by the names of their pointers.

    `table` is for a plan that walks one, made for the same tile shape; `sizes` are further integers of some kernels.
    """

    kernel: Emitted
    tensors: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    tile: TileShape
    table: TileTable | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


def run(call: Call, launch: Launch) -> Any:
    """Run a kernel; what it writes is among its tensors. What Triton compiled, where it did."""
    plan, tile = launch.kernel.plan, launch.tile
    interpret = call.q.device.type != "cuda"
    if interpret:
        mend_interpreter()
    kernel = getattr(load_module(launch.kernel.text, plan.kernel, interpret), plan.kernel)
    if plan.gather is Gather.DIAGONAL:
        programs = launch.sizes["diagonals"] * call.batch * call.heads
    elif plan.side is Side.QUERIES:
        programs = -(-call.q_len // tile.block_m) * call.batch * call.heads
    else:
        programs = -(-call.kv_len // tile.block_n) * call.batch * call.kv_heads
    programs *= launch.sizes.get("splits", 1)
    return _launch(kernel, (programs,), _arguments(call, launch), call.q, tile) if programs else None


def _launch(kernel: Any, grid: tuple[int], arguments: Iterator[Any], q: Tensor, tile: TileShape) -> Any:
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(q), nullcontext() if q.is_cuda else silent_arithmetic():
        return kernel[grid](
            *arguments,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )


def _arguments(call: Call, launch: Launch) -> Iterator[Any]:
    """In the order of the kernel's signature."""
    plan = launch.kernel.plan
    tensors = [launch.tensors[name] for name in plan.tensors]
    yield from tensors
    yield from (launch.rows[name] for name in plan.row_pointers)
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
    if plan.reads_table:
        assert launch.table is not None
        yield from (launch.table.records, launch.table.rows, launch.table.batch_stride, launch.table.head_stride)
    if isinstance(call, PagedCall):
        yield from (call.pages, call.kv_lens, call.pages.stride(0), call.page_size)
    yield call.scale
    yield call.q_offset.contiguous() if isinstance(call.q_offset, Tensor) else call.q_offset
    yield from (call.q_len, call.kv_len, call.heads, call.heads // call.kv_heads)
    yield from (launch.sizes[name] for name in plan.sizes)
    for tensor in tensors:
        # The stride of a dimension of one element is arbitrary; 0 keeps one kernel for all of them.
        yield from (stride if size > 1 else 0 for stride, size in zip(tensor.stride()[:3], tensor.shape, strict=False))
        yield tensor.stride(3)


def splits_for(call: Call, tile: TileShape) -> int:
    """Among how many programs the keys of a query tile are shared, so that every processor of the device has work."""
    if call.q.device.type != "cuda":
        return 1
    programs = -(-call.q_len // tile.block_m) * call.batch * call.heads
    processors = torch.cuda.get_device_properties(call.q.device).multi_processor_count
    if programs == 0 or 2 * programs > processors:
        return 1
    return max(1, min(2 * processors // programs, call.kv_len // SHARED_KEYS))


def tile_for(call: Call, plan: KernelPlan) -> TileShape:
    """The tile shape a launch uses by default."""
    return default_tile(family_for(call), plan)


def family_for(call: Call) -> str:
    """The row of the table of tiles for the device of a call."""
    if call.q.device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(call.q.device)
    return family_of("hip" if torch.version.hip else "cuda", 10 * major + minor)
