"""One call of a native kernel: from a checked call and an emitted kernel to outputs.

The record a kernel takes is packed from the call by name, in the order of `codegen.cpp_signature`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.analysis.streaming import LSE
from attndsl.codegen.cpp_signature import (
    DEFAULT_STORAGE,
    MAX_SCORE,
    STORAGES,
    STRIDE_AXES,
    arguments,
    cpp_row_pointer,
    stored_rows,
    symbols,
)
from attndsl.codegen.cpp_tiles import block_of
from attndsl.codegen.plan import Emitted, KernelPlan
from attndsl.ir.variant import Param, TensorParam, Variant
from attndsl.runtime import launch
from attndsl.runtime.arguments import Call, Value
from attndsl.runtime.launch import Rows
from attndsl.runtime.native.load import NativeFunction, load_function, parallel_address
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import TileShape

NO_MEMORY = 1
_POINTERS = ("Q", "K", "V", "Out")
_STRIDES = tuple(tuple(f"stride_{tensor}{axis}" for axis in axes) for tensor, axes in STRIDE_AXES.items())
DTYPES = {**launch.DTYPES, torch.float64: "fp64"}


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
    return Call(call.q.resolve_neg(), call.k.resolve_neg(), v.resolve_neg(), call.scale, offset, values)


def tile_for(call: Call, plan: KernelPlan) -> TileShape:
    """The tile shape the text of a plan is written for."""
    return TileShape(*block_of(plan), num_warps=1, num_stages=1)


def forward(call: Call, emitted: Emitted, tile: TileShape, table: TileTable | None) -> Rows:
    """Run the forward kernel; `table` for a plan that walks one."""
    ready, streaming = prepared(emitted.plan.variant, call), emitted.plan.streaming
    shape = (call.batch, call.heads, call.q_len)
    out = torch.empty((*shape, ready.v_head_dim), dtype=call.q.dtype)
    rows = _rows(shape, ready, stored_rows(emitted.plan))
    if rows[MAX_SCORE].numel():
        _run(_kernel(emitted), ready, out, rows, table)
    kept = {name: rows[name] if name in rows else rows[MAX_SCORE] for name in streaming.kept}
    return Rows(out if call.v_head_dim else out[..., :0], rows.get(LSE.name), rows[MAX_SCORE], kept=kept)


def _rows(shape: tuple[int, ...], call: Call, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Row values a kernel will fill: in float32, of doubles in float64."""
    exact = torch.promote_types(call.q.dtype, torch.float32)
    return dict(zip(names, torch.empty((len(names), *shape), dtype=exact).unbind(), strict=True))


def _run(kernel: _Kernel, call: Call, out: Tensor, rows: Mapping[str, Tensor], table: TileTable | None) -> None:
    members = _members(call, out, rows, table)
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
        function = load_function(emitted.text, "forward")
        order = tuple(part.name for part in members)
        found = _kernels[emitted.text] = _Kernel(function, parallel_address(), record, order, params)
    return found


def _members(call: Call, out: Tensor, rows: Mapping[str, Tensor], table: TileTable | None) -> dict[str, int | float]:
    """The members of the record that are no parameters, by name."""
    tensors = (call.q, call.k, call.v, out)
    members: dict[str, int | float] = dict(zip(_POINTERS, (tensor.data_ptr() for tensor in tensors), strict=True))
    members.update((cpp_row_pointer(name), values.data_ptr()) for name, values in rows.items())
    for names, tensor in zip(_STRIDES, tensors, strict=True):
        members.update(zip(names, tensor.stride(), strict=True))
    members["batch"], members["heads"], members["q_len"], _ = call.q.shape
    members["group"], members["kv_len"] = call.heads // call.kv_heads, call.kv_len
    members["sm_scale"] = call.scale
    if isinstance(call.q_offset, Tensor):
        members["Q_offset"] = call.q_offset.data_ptr()
    else:
        members["q_offset"] = call.q_offset
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
