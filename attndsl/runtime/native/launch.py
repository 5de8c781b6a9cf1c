"""One call of a native kernel: from a checked call and an emitted kernel to outputs.

The record a kernel takes is packed from the call by name, in the order of `codegen.cpp_signature`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attndsl.analysis.streaming import LSE
from attndsl.codegen.cpp_signature import (
    DEFAULT_STORAGE,
    MAX_SCORE,
    STORAGES,
    arguments,
    cpp_row_pointer,
    stored_rows,
    symbols,
)
from attndsl.codegen.plan import Emitted, KernelPlan
from attndsl.codegen.triton_signature import stride_names
from attndsl.ir.variant import Param, TensorParam, Variant
from attndsl.runtime.arguments import Call, PagedCall, Value
from attndsl.runtime.launch import DTYPES as GPU_DTYPES
from attndsl.runtime.launch import Launch, Rows
from attndsl.runtime.native.load import NativeFunction, load_function, parallel_address
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import TileShape, default_tile

NO_MEMORY = 1
DTYPES = {**GPU_DTYPES, torch.float64: "fp64"}


def storages(variant: Variant, call: Call) -> tuple[str, ...]:
    """How kernels find the captured tensors of a call stored."""
    return tuple(_stored_as(param, call.values[param.name]) for param in variant.tensors)


def _stored_as(param: TensorParam, value: Value) -> str:
    name = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else ""
    return name if name in STORAGES else DEFAULT_STORAGE[param.dtype.word]


def prepared(variant: Variant, call: Call) -> Call:
    """The call over tensors whose memory holds their values, as kernels read it."""
    values = dict(call.values)
    for param in variant.tensors:
        value = values[param.name]
        assert isinstance(value, Tensor)
        stored = value.to(getattr(torch, _stored_as(param, value)))
        # A tensor without elements is never read at a live pair, but its address must be valid.
        values[param.name] = stored.resolve_neg() if stored.numel() else stored.new_zeros((1,) * stored.dim())
    offset = call.q_offset.to(torch.int64).contiguous() if isinstance(call.q_offset, Tensor) else call.q_offset
    # Kernels have at least one column of values: a stand-in for it keeps them inside the memory of the tensors.
    v = call.v if call.v_head_dim else call.v.new_zeros(*call.v.shape[:3], 1)
    q, k, v = (tensor.resolve_neg() for tensor in (call.q, call.k, v))
    return replace(call, q=q, k=k, v=v, q_offset=offset, values=values)


def tile_for(call: Call, plan: KernelPlan) -> TileShape:
    """The tile shape the text of a plan is written for."""
    return default_tile("cpu", plan)


def forward(call: Call, emitted: Emitted, tile: TileShape, table: TileTable | None) -> Rows:
    """Run the forward kernel; `table` for a plan that walks one."""
    ready, streaming = prepared(emitted.plan.variant, call), emitted.plan.streaming
    shape = (call.batch, call.heads, call.q_len)
    out = torch.empty((*shape, ready.v_head_dim), dtype=call.q.dtype)
    # Each with memory of its own: what is returned may be written to.
    rows = {name: torch.empty(shape, dtype=exact(call.q.dtype)) for name in stored_rows(emitted.plan)}
    pointers = {cpp_row_pointer(name): values for name, values in rows.items()}
    run(ready, Launch(emitted, {"Out": out}, pointers, tile, table))
    kept = {name: rows[name] if name in rows else rows[MAX_SCORE] for name in streaming.kept}
    return Rows(out if call.v_head_dim else out[..., :0], rows.get(LSE.name), rows[MAX_SCORE], kept=kept)


def exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what is known of rows: float32, of doubles float64."""
    return torch.promote_types(dtype, torch.float32)


def run(call: Call, launch: Launch) -> None:
    """Run a kernel over a call that is `prepared`, unless it has no query; what it writes is among its tensors."""
    if not call.batch * call.heads * call.q_len:
        return
    kernel = _kernel(launch.kernel)
    members = _members(call, launch)
    for param, name in kernel.params:
        members.update(_parameter(name, param, call.values[param.name]))
    record = kernel.record.pack(*map(members.__getitem__, kernel.order))
    status = kernel.function(record, kernel.parallel, torch.get_num_threads())
    if status == NO_MEMORY:
        raise MemoryError("a kernel got no memory to work in")
    if status != 0:
        raise RuntimeError("the system grants this process no matrix registers any more")


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A loaded kernel: what its record holds, in order, and the parameters among that with their identifiers."""

    function: NativeFunction
    parallel: int
    record: struct.Struct
    order: tuple[str, ...]
    params: tuple[tuple[Param, str], ...]


_kernels: dict[str, _Kernel] = {}


def _kernel(emitted: Emitted) -> _Kernel:
    found = _kernels.get(emitted.text)
    if found is None:
        plan = emitted.plan
        members = tuple(arguments(plan))
        record = struct.Struct("=" + "".join(part.member.value for part in members))
        names = symbols(plan)
        params = tuple((param, names[param.name]) for param in plan.params)
        function = load_function(emitted.text, plan.kernel)
        order = tuple(part.name for part in members)
        found = _kernels[emitted.text] = _Kernel(function, parallel_address(), record, order, params)
    return found


def _members(call: Call, launch: Launch) -> dict[str, int | float]:
    """The members of the record that are no parameters, by name."""
    tensors, table = {"Q": call.q, "K": call.k, "V": call.v, **launch.tensors}, launch.table
    members: dict[str, int | float] = {name: rows.data_ptr() for name, rows in launch.rows.items()}
    for name in launch.kernel.plan.tensors:
        members[name] = tensors[name].data_ptr()
        members.update(zip(stride_names(name), tensors[name].stride(), strict=True))
    members.update(launch.sizes)
    members["batch"], members["heads"], members["q_len"], _ = call.q.shape
    members["group"], members["kv_len"] = call.heads // call.kv_heads, call.kv_len
    members["sm_scale"] = call.scale
    if isinstance(call.q_offset, Tensor):
        members["Q_offset"] = call.q_offset.data_ptr()
    else:
        members["q_offset"] = call.q_offset
    if isinstance(call, PagedCall):
        members["Pages"], members["Kv_lens"] = call.pages.data_ptr(), call.kv_lens.data_ptr()
        members["stride_pages"], members["page_size"] = call.pages.stride(0), call.page_size
    if table is not None:
        members["Table"], members["Table_rows"] = table.records.data_ptr(), table.rows.data_ptr()
        members["stride_tb"], members["stride_th"] = table.batch_stride, table.head_stride
    return members


def _parameter(name: str, param: Param, value: Value) -> Iterator[tuple[str, int | float]]:
    """A captured tensor with its strides and sizes, or a number."""
    if isinstance(value, Tensor) and isinstance(param, TensorParam):
        yield name, value.data_ptr()
        for axis, (stride, size) in enumerate(zip(value.stride(), value.shape, strict=True)):
            yield f"stride_{name}_{axis}", stride if size > 1 else 0
            yield f"size_{name}_{axis}", size
    else:
        yield name, float(value) if param.dtype.is_float else int(value)
