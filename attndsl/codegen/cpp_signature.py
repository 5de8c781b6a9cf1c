"""The signature of a C++ kernel: one record of eight-byte members, in an order the plan fixes.

    extern "C" int forward(const Arguments* arguments, Parallel parallel, int threads);  // of a kernel of that name

In: a plan. Out: its `Argument`s, from which the printer writes `struct Arguments` and the launcher packs the record.
`Parallel` runs tasks 0 to n - 1 on up to `threads` threads (`templates/cpp_pool.cpp`). A kernel returns 0, 1 where
it got no memory to work in, 2 where it got no matrix registers. Strides are in elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from attndsl.analysis.bounds import Strategy
from attndsl.analysis.streaming import LSE
from attndsl.codegen.cpp_names import cpp_symbols
from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import OUTPUTS, KernelPlan, is_maximum
from attndsl.codegen.triton_signature import stride_names
from attndsl.ir.variant import TensorParam

ELEMENTS = {"fp32": "float", "fp16": "half", "bf16": "bfloat", "fp64": "double"}
"""The C++ types of q, k, v and the output, by `Specialisation.dtype`."""

STORAGES = {
    "float16": "half",
    "bfloat16": "bfloat",
    "float32": "float",
    "float64": "double",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint8": "uint8_t",
    "bool": "bool_t",
}
"""The C++ types of captured elements, by the name of their torch dtype."""

MAX_SCORE = "max_score"
"""The name of the largest score of a row, which every forward leaves."""


class Member(Enum):
    """What a member of the record is; the value is the code `struct.pack` packs it with."""

    POINTER = "Q"
    INTEGER = "q"
    REAL = "d"


@dataclass(frozen=True, slots=True)
class Argument:
    """A member of the record: `type` is how the record declares it, `local` what kernels compute with that read it by
    its name."""

    name: str
    member: Member
    type: str
    local: str = ""


def arguments(plan: KernelPlan) -> Iterator[Argument]:
    """The members of the record, in order."""
    element, real = ELEMENTS[plan.spec.dtype], real_type(plan)
    for name in plan.tensors:
        yield _pointer(name, f"{'' if name in OUTPUTS.values() else 'const '}{element}*")
    yield from (_pointer(cpp_row_pointer(name), f"const {real}*") for name in plan.kept)
    yield from (_pointer(cpp_row_pointer(name), f"{real}*") for name in stored_rows(plan))
    yield from (_long(name) for tensor in plan.tensors for name in stride_names(tensor))
    yield from map(_long, ("batch", "heads", "group"))
    yield from map(_integer, ("q_len", "kv_len", *plan.sizes))
    yield _pointer("Q_offset", "const int64_t*") if plan.spec.offset_per_batch else _integer("q_offset")
    yield _real("sm_scale")
    if plan.walk.strategy is Strategy.TABLE:
        yield from (_named_pointer(name, "const int32_t*") for name in ("Table", "Table_rows"))
        yield from (_named_long(name) for name in ("stride_tb", "stride_th"))
    if plan.spec.paged:
        yield from (_pointer(name, "const int32_t*") for name in ("Pages", "Kv_lens"))
        yield from map(_long, ("stride_pages", "page_size"))
    yield from _captured(plan)


def stored_rows(plan: KernelPlan) -> tuple[str, ...]:
    """The names of the row values a kernel writes; a forward the largest score, and what a backward pass reads."""
    if plan.kernel != "forward":
        return plan.stored
    streaming = plan.streaming
    lse = () if streaming.lse is None else (LSE.name,)
    peak = {part.name for part in streaming.statistics if is_maximum(part)}
    return (*lse, MAX_SCORE, *(name for name in streaming.kept if name not in (*lse, *peak)))


def cpp_row_pointer(name: str) -> str:
    """The argument that points to the row values of that name."""
    # Not `Max`, which is the running maximum of the normalizer: of abs(score), say.
    return "Max_score" if name == MAX_SCORE else row_pointer(name)


def symbols(plan: KernelPlan) -> dict[str, str]:
    """The identifiers of the parameters of a kernel, by name."""
    return cpp_symbols((param.name for param in plan.params), (*plan.kept, *stored_rows(plan)))


def real_type(plan: KernelPlan) -> str:
    """The type floats are computed in."""
    return "double" if plan.spec.dtype == "fp64" else "float"


def integer_type(plan: KernelPlan) -> str:
    """The type integers are computed in: as wide as a float where 32 bits hold them."""
    return "int32_t" if plan.spec.fast and real_type(plan) == "float" else "int64_t"


def storages(plan: KernelPlan) -> dict[str, str]:
    """The C++ type of the elements of each captured tensor, by the name of the parameter."""
    tensors = plan.variant.tensors
    given = plan.spec.storages or tuple(DEFAULT_STORAGE[param.dtype.word] for param in tensors)
    return {param.name: STORAGES[name] for param, name in zip(tensors, given, strict=True)}


DEFAULT_STORAGE = {"float": "float32", "int": "int64", "bool": "bool"}
"""How captured tensors are stored where nothing says otherwise, by the word of their type."""


def _captured(plan: KernelPlan) -> Iterator[Argument]:
    stored, names = storages(plan), symbols(plan)
    for param in plan.params:
        name = names[param.name]
        if isinstance(param, TensorParam):
            yield _named_pointer(name, f"const {stored[param.name]}*")
            yield from (_named_long(f"stride_{name}_{axis}") for axis in range(param.rank))
            if not plan.spec.fast:
                yield from (_integer(f"size_{name}_{axis}") for axis in range(param.rank))
        else:
            yield _real(name) if param.dtype.is_float else _integer(name)


def _pointer(name: str, type_: str) -> Argument:
    return Argument(name, Member.POINTER, type_)


def _named_pointer(name: str, type_: str) -> Argument:
    return Argument(name, Member.POINTER, type_, type_)


def _integer(name: str) -> Argument:
    return Argument(name, Member.INTEGER, "int64_t", "integer")


def _long(name: str) -> Argument:
    return Argument(name, Member.INTEGER, "int64_t")


def _named_long(name: str) -> Argument:
    return Argument(name, Member.INTEGER, "int64_t", "int64_t")


def _real(name: str) -> Argument:
    return Argument(name, Member.REAL, "double", "real")
