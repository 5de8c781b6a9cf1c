"""What the host knows of a call before it runs, remembered for as long as the values it was learnt from stand.

In: a variant and a checked call. Out: the `Facts` a launch chooses its kernel by, or an error when the call has no
meaning (a read out of bounds at a live pair, a division by zero, an integer beyond 64 bits).
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from attndsl.analysis.intervals import Known
from attndsl.analysis.obligations import call_box, check_call
from attndsl.analysis.summaries import Summary
from attndsl.diagnostics import CallError, fail
from attndsl.ir.variant import Variant
from attndsl.runtime.arguments import Call
from attndsl.runtime.checks import settle
from attndsl.runtime.known import known_values, layouts, summarize

REMEMBERED = 256
LARGEST_FAST_LENGTH = 2**30
"""Above this, rounding a bound up to a tile could leave 32 bits."""


@dataclass(frozen=True, slots=True)
class Facts:
    """`fast`: everything the fast kernel relies on holds (see `codegen.plan.Specialisation`)."""

    fast: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    tensors: tuple[weakref.ref[Tensor], ...]
    facts: Facts


class FactBook:
    """Facts by call, summaries by tensor: nothing is reused after a tensor's version counter moved."""

    def __init__(self) -> None:
        self._facts: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._summaries: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def forget(self) -> None:
        """Drop everything derived from tensor values."""
        self._facts.clear()
        self._summaries.clear()

    def of(self, source: Variant, program: Variant, call: Call) -> Facts:
        """The facts of a call; `source` decides what is an error, `program` (after the passes) what is fast."""
        tensors = _watched(source, call)
        key = _key(source, call, tensors)
        entry = None if key is None else self._facts.get(key)
        if entry is not None and all(ref() is tensor for ref, tensor in zip(entry.tensors, tensors, strict=True)):
            return entry.facts
        facts = self._learn(source, program, call)
        if key is not None:
            self._facts[key] = _Entry(tuple(map(weakref.ref, tensors)), facts)
            while len(self._facts) > REMEMBERED:
                self._facts.popitem(last=False)
        return facts

    def known(self, variant: Variant, values: dict[str, int | float | Tensor]) -> Known:
        """What analysis may know of the values, summaries remembered by tensor version."""
        return known_values(variant, values, self._summary)

    def _summary(self, tensor: Tensor) -> Summary:
        version = _version(tensor)
        found = self._summaries.get(tensor)
        if found is not None and version is not None and found[0] == version:
            return found[1]  # type: ignore[no-any-return]
        if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            raise fail(
                CallError,
                "graph-capture",
                "the values of a captured tensor must be read on the host, which graph capture does not allow",
                help="call the attention once with the same tensors before the capture",
            )
        summary = summarize(tensor)
        if version is not None:
            self._summaries[tensor] = (version, summary)
        return summary

    def _learn(self, source: Variant, program: Variant, call: Call) -> Facts:
        values = dict(call.values)
        known = self.known(source, values)
        offsets = _offset_range(call.q_offset)
        box = call_box(call.batch, call.heads, call.q_len, call.kv_len, offsets)
        places = layouts(source, values)
        verdict = check_call(source, box, known, places)
        refusals = verdict.refusals
        if not refusals and verdict.undecided:
            refusals = settle(
                source,
                verdict.undecided,
                values,
                batch=call.batch,
                heads=call.heads,
                q_len=call.q_len,
                kv_len=call.kv_len,
                q_offset=call.q_offset,
                known=known,
            )
        if refusals:
            raise CallError(refusals)
        after = check_call(program, box, known, places)
        small = max(call.q_len, call.kv_len, *map(abs, offsets)) < LARGEST_FAST_LENGTH
        return Facts(fast=small and call.scale > 0 and after.fits_int32 and after.reads_in_bounds and after.nonneg)


def _watched(variant: Variant, call: Call) -> tuple[Tensor, ...]:
    """The tensors whose values or layouts facts are learnt from."""
    captured = (call.values[param.name] for param in variant.tensors)
    offset = (call.q_offset,) if isinstance(call.q_offset, Tensor) else ()
    return tuple(tensor for tensor in (*captured, *offset) if isinstance(tensor, Tensor))


def _key(variant: Variant, call: Call, tensors: tuple[Tensor, ...]) -> Hashable | None:
    """What facts depend on; none where a tensor keeps no version."""
    versions = tuple(map(_version, tensors))
    if None in versions:
        return None
    scalars = tuple(call.values[param.name] for param in variant.scalars)
    offset = None if isinstance(call.q_offset, Tensor) else call.q_offset
    layout = tuple((id(tensor), tuple(tensor.shape), tensor.stride()) for tensor in tensors)
    return (call.batch, call.heads, call.q_len, call.kv_len, call.scale > 0, offset, scalars, layout, versions)


def _version(tensor: Tensor) -> int | None:
    """The version counter; inference tensors keep none."""
    return None if tensor.is_inference() else tensor._version


def _offset_range(q_offset: int | Tensor) -> tuple[int, int]:
    if isinstance(q_offset, Tensor):
        return (int(q_offset.min()), int(q_offset.max())) if q_offset.numel() else (0, 0)
    return q_offset, q_offset
