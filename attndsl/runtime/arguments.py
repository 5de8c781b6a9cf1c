"""The arguments of a call, checked once for every backend: shapes, types, devices, captured tensors.

In: what the user passed. Out: a `Call`, or one error that lists every reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter
from attndsl.ir.types import DType
from attndsl.ir.variant import TensorParam, Variant

Value = int | float | Tensor
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INT31 = 2**31 - 1
LARGEST_OFFSET = 2**62


@dataclass(frozen=True, slots=True)
class Call:
    """A call that fits its variant. `values` are the parameters by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    q_offset: int | Tensor
    values: Mapping[str, Value]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """q, k, v, the captured ones, and the offset where it is one."""
        captured = [value for value in self.values.values() if isinstance(value, Tensor)]
        offset = (self.q_offset,) if isinstance(self.q_offset, Tensor) else ()
        return (self.q, self.k, self.v, *captured, *offset)

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[1]

    @property
    def q_len(self) -> int:
        return self.q.shape[2]

    @property
    def kv_len(self) -> int:
        return self.k.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[3]

    @property
    def v_head_dim(self) -> int:
        return self.v.shape[3]


@dataclass(frozen=True, slots=True)
class PagedCall(Call):
    """A call whose k and v are pools of pages, `(pages, Hkv, page_size, D)`.

    `pages` (B, most pages of a sequence) are the pages of each sequence in order, int32 and contiguous; `kv_lens` (B,)
    are how many keys each has. The length of a call is what its pages have room for; programs mask what lies beyond.
    """

    pages: Tensor
    kv_lens: Tensor

    @property
    def page_size(self) -> int:
        return self.k.shape[2]

    @property
    def kv_len(self) -> int:
        return self.pages.shape[1] * self.page_size


def check_call(
    variant: Variant,
    values: Mapping[str, Value],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: int | Tensor = 0,
) -> Call:
    """The call, or a `CallError` with everything that does not fit."""
    reporter = Reporter(CallError)
    _check_tensors(reporter, q, k, v)
    reporter.check()
    _check_shapes(reporter, q, k, v, enable_gqa)
    _check_scale(reporter, scale)
    _check_offset(reporter, q, q_offset)
    for param in variant.tensors:
        check_capture(reporter, variant, param, values[param.name], q.device)
    reporter.check()
    default = 1.0 / math.sqrt(q.shape[3]) if q.shape[3] else 1.0
    offset = q_offset if isinstance(q_offset, Tensor) else int(q_offset)
    return Call(q, k, v, default if scale is None else float(scale), offset, values)


def check_plan(q_len: Any, kv_len: Any, *, batch: Any, heads: Any, block: Any, q_offset: Any) -> None:
    """The arguments of a plan, or a `CallError` with everything that does not fit."""
    reporter = Reporter(CallError)
    sizes = {"q_len": q_len, "kv_len": kv_len, "batch": batch, "heads": heads}
    for name, size in sizes.items():
        if not is_integer(size) or not 0 <= size <= INT31:
            reporter.error("bad-length", f"`{name}` is {size!r}, expected an int from 0 to {INT31}")
    is_pair = isinstance(block, tuple | list) and len(block) == 2
    if not is_pair or not all(is_integer(side) and side > 0 for side in block):
        message = f"`block` is {block!r}, expected (queries, keys), two positive ints"
        reporter.error("bad-block", message, help="for example `block=(128, 64)`")
    if not isinstance(q_offset, Tensor):
        _check_number_offset(reporter, q_offset)
    elif is_integer(batch):
        _check_offset_tensor(reporter, q_offset, batch)
    reporter.check()


def is_integer(value: Any) -> bool:
    """Whether a value is an integer number, Python's or numpy's; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_tensors(reporter: Reporter, q: Any, k: Any, v: Any) -> None:
    named = {"q": q, "k": k, "v": v}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            reporter.error("not-a-tensor", f"`{name}` is of type {type(tensor).__name__}, expected a torch tensor")
        elif tensor.dim() != 4:
            length = "q_len" if name == "q" else "kv_len"
            reporter.error(
                "wrong-rank",
                f"`{name}` has shape {tuple(tensor.shape)}, expected 4 dimensions",
                help=f"shape it (batch, heads, {length}, head_dim)",
            )
        elif tensor.dtype not in FLOATS:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            reporter.error("wrong-dtype", f"`{name}` has dtype {tensor.dtype}, expected one of {known}")
    if reporter:
        return
    for what in ("dtype", "device"):
        found = {name: getattr(tensor, what) for name, tensor in named.items()}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in found.items())
            help_ = f"convert them, for example `k.to(q.{what})`"
            reporter.error(f"mixed-{what}s", f"q, k and v differ in {what}: {listed}", help=help_)


def _check_shapes(reporter: Reporter, q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    bound = (
        f"q {tuple(q.shape)}: batch {q.shape[0]}, heads {q.shape[1]}, q_len {q.shape[2]}, head_dim {q.shape[3]}",
        f"k {tuple(k.shape)}: batch {k.shape[0]}, heads {k.shape[1]}, kv_len {k.shape[2]}, head_dim {k.shape[3]}",
        f"v {tuple(v.shape)}: batch {v.shape[0]}, heads {v.shape[1]}, kv_len {v.shape[2]}, v_head_dim {v.shape[3]}",
    )
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        reporter.error("batch-mismatch", "q, k and v differ in batch", None, *bound)
    if k.shape[1] != v.shape[1]:
        reporter.error("heads-mismatch", "k and v differ in heads", None, *bound, help=_paired(k.shape[1], v.shape[1]))
    if k.shape[2] != v.shape[2]:
        reporter.error("length-mismatch", "k and v differ in length", None, *bound)
    if q.shape[3] != k.shape[3]:
        reporter.error("head-dim-mismatch", "q and k differ in head_dim", None, *bound)
    if q.shape[3] == 0:
        reporter.error("head-dim-zero", "head_dim is 0", None, *bound)
    if max(q.shape[2], k.shape[2]) > INT31:
        reporter.error("length-too-large", f"lengths above {INT31} are not supported", None, *bound)
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads == kv_heads:
        return
    if not enable_gqa:
        help_ = "pass `enable_gqa=True` for grouped-query attention"
        reporter.error("heads-mismatch", f"q has {heads} heads, k has {kv_heads}", None, *bound, help=help_)
    elif kv_heads == 0 or heads % kv_heads:
        message = f"{heads} query heads do not divide into {kv_heads} key heads"
        help_ = "groups of query heads are of one size: repeat heads of k and v, or pad those of q, until it divides"
        reporter.error("heads-do-not-divide", message, None, *bound, help=help_)


def _paired(of_keys: int, of_values: int) -> str:
    """How keys and values come to have as many heads as each other."""
    fewer, times = ("k", of_values / max(1, of_keys)) if of_keys < of_values else ("v", of_keys / max(1, of_values))
    repeated = f": repeat those of {fewer}, `{fewer}.repeat_interleave({times:.0f}, 1)`" if times.is_integer() else ""
    return f"a query head reads one head of k and the same of v{repeated}"


def _check_scale(reporter: Reporter, scale: Any) -> None:
    if scale is None or (isinstance(scale, Real) and not isinstance(scale, bool) and math.isfinite(scale)):
        return
    help_ = "pass `float(scale)`; a learnt scale goes into a score mod" if isinstance(scale, Tensor) else None
    reporter.error("bad-scale", f"`scale` is {scale!r}, expected a finite number", help=help_)


def _check_offset(reporter: Reporter, q: Tensor, q_offset: Any) -> None:
    if not isinstance(q_offset, Tensor):
        _check_number_offset(reporter, q_offset)
        return
    _check_offset_tensor(reporter, q_offset, q.shape[0])
    if q_offset.device != q.device:
        help_ = f"move it: `q_offset.to({str(q.device)!r})`"
        reporter.error("mixed-devices", f"`q_offset` is on {q_offset.device}, q on {q.device}", help=help_)


def _check_number_offset(reporter: Reporter, q_offset: Any) -> None:
    if not is_integer(q_offset):
        found = type(q_offset).__name__
        reporter.error("bad-offset", f"`q_offset` is of type {found}, expected an int or an int tensor")
    elif abs(q_offset) > LARGEST_OFFSET:
        reporter.error("offset-too-large", f"`q_offset` is {q_offset}, beyond 2**62")


def _check_offset_tensor(reporter: Reporter, q_offset: Tensor, batch: int) -> None:
    if kind_of(q_offset.dtype) is not DType.I64 or q_offset.shape != (batch,):
        found = f"dtype {q_offset.dtype} and shape {tuple(q_offset.shape)}"
        reporter.error("bad-offset", f"`q_offset` has {found}, expected integers of shape ({batch},)")


def check_capture(reporter: Reporter, variant: Variant, param: TensorParam, value: Value, device: torch.device) -> None:
    """One captured tensor: rank, kind and device; sizes are the business of `analysis.obligations`."""
    if isinstance(value, Tensor) and _fits(param, value, device):
        return
    span = next((variant.origins.first(node) for node in variant.loads_of(param.name)), None)
    if not isinstance(value, Tensor):
        reporter.error("not-a-tensor", f"`{param.name}` is of type {type(value).__name__}, expected a tensor", span)
        return
    if value.dim() != param.rank:
        message = f"`{param.name}` has shape {tuple(value.shape)}, expected {param.rank} dimension(s)"
        reporter.error("tensor-rank", message, span, help=f"it is indexed as [{', '.join(param.dims)}]")
    if kind_of(value.dtype) is not param.dtype:
        message = f"`{param.name}` has dtype {value.dtype}, expected a {param.dtype.word} tensor"
        reporter.error("tensor-dtype", message, span)
    if value.device != device:
        message = f"`{param.name}` is on {value.device}, q, k and v on {device}"
        reporter.error("mixed-devices", message, span, help=f"move it: `{param.name}.to({str(device)!r})`")


def _fits(param: TensorParam, value: Tensor, device: torch.device) -> bool:
    return value.dim() == param.rank and kind_of(value.dtype) is param.dtype and value.device == device


def kind_of(dtype: torch.dtype) -> DType | None:
    """The type of the elements of a captured tensor in a program; `None` where there is none (complex)."""
    if dtype is torch.bool:
        return DType.BOOL
    if dtype.is_complex:
        return None
    return DType.F32 if dtype.is_floating_point else DType.I64
