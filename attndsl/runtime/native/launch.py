"""One call of a native kernel: from a checked call and an emitted kernel to the tensors it writes.

The record a kernel takes is packed from the call by name, in the order of `codegen.cpp_signature`; for calls of one
kind (`runtime.kinds`) it is the same but for addresses.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attndsl.codegen.cpp_signature import DEFAULT_STORAGE, STORAGES, arguments, symbols
from attndsl.codegen.plan import Emitted, KernelPlan
from attndsl.codegen.triton_signature import stride_names
from attndsl.ir.variant import Param, TensorParam, Variant
from attndsl.runtime.arguments import Call, PagedCall, Value
from attndsl.runtime.launch import DTYPES as GPU_DTYPES
from attndsl.runtime.launch import Launch
from attndsl.runtime.native.build import origin_of
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
    """The call over tensors whose memory holds their values, as kernels read it; itself where they do."""
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
    made = replace(call, q=q, k=k, v=v, q_offset=offset, values=values)
    return call if all(map(operator.is_, made.tensors, call.tensors)) else made


def tile_for(call: Call, plan: KernelPlan) -> TileShape:
    """The tile shape the text of a plan is written for."""
    return default_tile("cpu", plan)


def exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what is known of rows: float32, of doubles float64."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def run(call: Call, launch: Launch) -> None:
    """Run a kernel over a call that is `prepared`, unless it has no query; what it writes is among its tensors."""
    if call.batch * call.heads * call.q_len:
        Ready.of(call, launch).run(_tensors(call, launch, _kernel(launch.kernel)).values())


@dataclass(frozen=True, slots=True)
class Ready:
    """A kernel with its record for calls of one kind, in which addresses are left out: they go to `places`.

    `table` is kept for its address, which is among the members.
    """

    kernel: _Kernel
    members: tuple[int | float, ...]
    places: tuple[int, ...]
    table: TileTable | None

    @staticmethod
    def of(call: Call, launch: Launch) -> Ready:
        """What is ready for every launch like this one, over calls of its kind, which are `prepared`."""
        kernel = _kernel(launch.kernel)
        tensors = _tensors(call, launch, kernel)
        members = dict.fromkeys(tensors, 0) | dict(_numbers(call, launch, tensors))
        for param, name in kernel.params:
            members.update(_parameter(name, param, call.values[param.name]))
        places = tuple(map(kernel.order.index, tensors))
        return Ready(kernel, tuple(map(members.__getitem__, kernel.order)), places, launch.table)

    def record(self, tensors: Iterable[Tensor]) -> bytes:
        """What the kernel is given, for a call's tensors: those of four dimensions, of rows, and `others`."""
        members = list(self.members)
        for place, tensor in zip(self.places, tensors, strict=True):
            members[place] = tensor.data_ptr()
        return self.kernel.record.pack(*members)

    def run(self, tensors: Iterable[Tensor]) -> None:
        """Run the kernel over a call's tensors."""
        status = self.kernel.function(self.record(tensors), self.kernel.parallel, torch.get_num_threads())
        if status == NO_MEMORY:
            raise MemoryError("a kernel got no memory to work in")
        if status != 0:
            raise RuntimeError("the system grants this process no matrix registers any more")


def others(call: Call, captured: Iterable[str]) -> list[Tensor]:
    """The tensors a kernel takes beside those of four dimensions and of rows."""
    values: list[Any] = [call.values[name] for name in captured]
    if isinstance(call.q_offset, Tensor):
        values.append(call.q_offset)
    return [*values, call.pages, call.kv_lens] if isinstance(call, PagedCall) else values


def captured_by(plan: KernelPlan) -> tuple[str, ...]:
    """The captured tensors a kernel takes."""
    return tuple(param.name for param in plan.params if isinstance(param, TensorParam))


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
    key = origin_of(emitted.source)
    found = _kernels.get(key)
    if found is None:
        plan = emitted.plan
        members = tuple(arguments(plan))
        record = struct.Struct("=" + "".join(part.member.value for part in members))
        names = symbols(plan)
        params = tuple((param, names[param.name]) for param in plan.params)
        function = load_function(emitted.source, plan.kernel)
        order = tuple(part.name for part in members)
        found = _kernels[key] = _Kernel(function, parallel_address(), record, order, params)
    return found


def _tensors(call: Call, launch: Launch, kernel: _Kernel) -> dict[str, Tensor]:
    """The tensors whose addresses are in the record, by the names of their members."""
    plan, given = launch.kernel.plan, {"Q": call.q, "K": call.k, "V": call.v, **launch.tensors}
    names = [name for param, name in kernel.params if isinstance(param, TensorParam)]
    found = {**{name: given[name] for name in plan.tensors}, **launch.rows}
    names += ["Q_offset"] if isinstance(call.q_offset, Tensor) else []
    names += ["Pages", "Kv_lens"] if isinstance(call, PagedCall) else []
    found |= zip(names, others(call, captured_by(plan)), strict=True)
    return {name: tensor for name, tensor in found.items() if name in kernel.order}


def _numbers(call: Call, launch: Launch, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int | float]]:
    """The members of the record that are neither addresses of tensors nor parameters, by name."""
    for name in launch.kernel.plan.tensors:
        yield from zip(stride_names(name), tensors[name].stride(), strict=True)
    yield from launch.sizes.items()
    yield from zip(("batch", "heads", "q_len"), call.q.shape[:3], strict=True)
    yield from (("group", call.heads // call.kv_heads), ("kv_len", call.kv_len), ("sm_scale", call.scale))
    if not isinstance(call.q_offset, Tensor):
        yield "q_offset", call.q_offset
    if isinstance(call, PagedCall):
        yield from (("stride_pages", call.pages.stride(0)), ("page_size", call.page_size))
    if (table := launch.table) is not None:
        yield from (("Table", table.records.data_ptr()), ("Table_rows", table.rows.data_ptr()))
        yield from (("stride_tb", table.batch_stride), ("stride_th", table.head_stride))


def _parameter(name: str, param: Param, value: Value) -> Iterator[tuple[str, int | float]]:
    """The strides and sizes of a captured tensor, or a number."""
    if isinstance(value, Tensor) and isinstance(param, TensorParam):
        for axis, (stride, size) in enumerate(zip(value.stride(), value.shape, strict=True)):
            yield f"stride_{name}_{axis}", stride if size > 1 else 0
            yield f"size_{name}_{axis}", size
    else:
        yield name, float(value) if param.dtype.is_float else int(value)
