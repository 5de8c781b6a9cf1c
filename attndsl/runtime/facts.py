"""What the host knows of a call before it runs, remembered for as long as the values it was learnt from stand.

In: a variant and a checked call. Out: the `Facts` a launch chooses its kernel by, or an error when the call has no
meaning (a read out of bounds at a live pair, a division by zero, an integer beyond 64 bits).
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from attndsl.analysis.bounds import Strategy, floats_looked_into, floats_planned_by
from attndsl.analysis.intervals import Known
from attndsl.analysis.obligations import Obligation, call_box, check_call
from attndsl.analysis.real_summaries import RealSummary
from attndsl.analysis.summaries import Summary, UnreadFlags
from attndsl.analysis.tiling import Tiling
from attndsl.diagnostics import CallError, fail
from attndsl.ir import build
from attndsl.ir.nodes import Load, postorder
from attndsl.ir.variant import Origins, Variant
from attndsl.runtime.arguments import Call
from attndsl.runtime.checks import settle
from attndsl.runtime.grants import Grants, grants_of
from attndsl.runtime.known import known_values, layouts, summarize, summarize_floats
from attndsl.runtime.planner import offsets_of, plan_blocks
from attndsl.runtime.requirements import check_requirements
from attndsl.runtime.routed import routed_table, tables_in
from attndsl.runtime.tables import TABLES, Lists, TileTable
from attndsl.runtime.versions import version_of

REMEMBERED = 256

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Watch:
    """Tensors that something was learnt from, by name (`None` is the offset), with their versions then."""

    seen: tuple[tuple[str | None, weakref.ref[Tensor], Hashable], ...]

    def stands(self, call: Call) -> bool:
        """Whether a call has these tensors, unchanged."""
        for name, ref, version in self.seen:
            tensor = call.q_offset if name is None else call.values[name]
            if ref() is not tensor or version_of(tensor) != version:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Facts:
    """`fast`: everything the fast kernel relies on holds (see `runtime.grants`).

    `watch` says for how long, `None` where nobody can tell. `tables` are the tile tables made for the call so far, by
    tile shape and what they list.
    """

    fast: bool
    watch: Watch | None = None
    tables: dict[tuple[tuple[int, int], Lists], TileTable | None] = field(default_factory=dict)

    def stand(self, call: Call) -> bool:
        """Whether these are the facts of a call of the same kind."""
        return self.watch is not None and self.watch.stands(call)


class FactBook:
    """Facts by call, summaries by tensor: nothing is reused after a tensor's version counter moved.

    It also keeps what was prepared by them for calls of one kind.
    """

    def __init__(self) -> None:
        self._facts: OrderedDict[Hashable, Facts] = OrderedDict()
        self._summaries: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._prepared: OrderedDict[Hashable, Any] = OrderedDict()

    def forget(self) -> None:
        """Drop everything derived from tensor values."""
        self._facts.clear()
        self._summaries.clear()
        self._prepared.clear()

    def prepared(self, kind: Hashable) -> Any:
        """What was prepared for calls of a kind, if it was; whether its facts stand is for the caller to ask."""
        return self._prepared.get(kind)

    def keep(self, kind: Hashable, prepared: Any) -> None:
        """Keep what was prepared for calls of a kind."""
        _remember(self._prepared, kind, prepared)

    def of(self, source: Variant, program: Variant, call: Call) -> Facts:
        """The facts of a call; `source` decides what is an error, `program` (after the passes) what is fast."""
        key = _key(source, program, call)
        facts = self._facts.get(key)
        if facts is None or not facts.stand(call):
            facts = self._learn(source, program, call)
            if facts.watch is not None:
                _remember(self._facts, key, facts)
        return facts

    def check_mask(
        self,
        source: Variant,
        values: dict[str, int | float | Tensor],
        sizes: tuple[int, int, int, int],
        q_offset: int | Tensor,
    ) -> None:
        """Refuse (batch, heads, q_len, kv_len) on which the mask provably has no meaning; scores are left alone."""
        mask = _mask_alone(source, source.origins)
        box = call_box(*sizes, _offset_range(q_offset))
        refusals = check_call(mask, box, self._without_floats(source, values), layouts(source, values)).refusals
        if refusals:
            raise CallError(refusals)

    def grants(
        self,
        program: Variant,
        values: dict[str, int | float | Tensor],
        sizes: tuple[int, int, int, int],
        q_offset: int | Tensor,
    ) -> Grants:
        """What a call of (batch, heads, q_len, kv_len) grants, at a positive scale."""
        box = call_box(*sizes, _offset_range(q_offset))
        return grants_of(program, box, self._without_floats(program, values), layouts(program, values), 1.0)

    def table(
        self, program: Variant, call: Call, facts: Facts, block: tuple[int, int], lists: Lists = Lists.KEYS
    ) -> TileTable | None:
        """What a kernel visits, for tiles of `block` = (queries, keys); none where it walks all tiles."""
        if (block, lists) not in facts.tables:
            _check_not_captured(call.q)
            routed = self._routed(program, call, block, lists)
            facts.tables[block, lists] = self._planned(program, call, block, lists) if routed is None else routed
        return facts.tables[block, lists]

    def _routed(self, program: Variant, call: Call, block: tuple[int, int], lists: Lists) -> TileTable | None:
        """The table made where the one captured table of blocks lies; `None` where the mask is of another form."""
        names, offset = tables_in(program.mask), offsets_of(call.q_offset)
        if len(names) != 1 or program.order is not None or 0 in (call.batch, call.heads, call.q_len, call.kv_len):
            return None
        table = call.values[names[0]]
        assert isinstance(table, Tensor)
        tiling = Tiling(call.batch, call.heads, call.q_len, call.kv_len, block, offset)
        known = self._unread(program, dict(call.values), floats_looked_into(program.mask))
        return routed_table(program.mask, table, tiling, known, lists)

    def _planned(self, program: Variant, call: Call, block: tuple[int, int], lists: Lists) -> TileTable | None:
        values = dict(call.values)
        tiles = plan_blocks(
            program,
            values,
            call.q_len,
            call.kv_len,
            batch=call.batch,
            heads=call.heads,
            block=block,
            q_offset=call.q_offset,
            known=self.known(program, values),
        )
        is_table = tiles.walk is Strategy.TABLE or lists is Lists.DIAGONALS
        return TABLES[lists](tiles.tiles, tiles.tiling, call.q.device) if is_table else None

    def known(self, variant: Variant, values: dict[str, int | float | Tensor]) -> Known:
        """What analysis may know of the values, summaries remembered by tensor version."""
        return known_values(variant, values, self._summary, self._summary_of_floats)

    def _without_floats(self, variant: Variant, values: dict[str, int | float | Tensor]) -> Known:
        """The same with no float tensor looked into: all they decide is which tiles are walked."""
        return known_values(variant, values, self._summary, looked_into=())

    def _unread(self, variant: Variant, values: dict[str, int | float | Tensor], looked_into: Collection[str]) -> Known:
        """The same with tables of blocks left where they are: all they decide is which tiles are walked."""
        names = tables_in(variant.mask)
        tables = [value for name in names if isinstance(value := values.get(name), Tensor)]

        def summary(tensor: Tensor) -> Summary:
            if any(tensor is table for table in tables):
                return UnreadFlags(tuple(tensor.shape))
            return self._summary(tensor)

        return known_values(variant, values, summary, self._summary_of_floats, looked_into)

    def _summary(self, tensor: Tensor) -> Summary:
        return self._summarized(tensor, summarize)

    def _summary_of_floats(self, tensor: Tensor) -> RealSummary:
        return self._summarized(tensor, summarize_floats)

    def _summarized(self, tensor: Tensor, summarized: Callable[[Tensor], S]) -> S:
        """The summary of a tensor's values as they are."""
        version = version_of(tensor)
        found = self._summaries.get(tensor)
        if found is not None and version is not None and found[0] == version:
            return found[1]  # type: ignore[no-any-return]
        _check_not_captured(tensor)
        summary = summarized(tensor)
        if version is not None:
            self._summaries[tensor] = (version, summary)
        return summary

    def _learn(self, source: Variant, program: Variant, call: Call) -> Facts:
        values = dict(call.values)
        if isinstance(call.q_offset, Tensor):
            _check_not_captured(call.q_offset)
        check_requirements(source, values, call.q_len, call.kv_len, call.q_offset)
        known = self._unread(source, values, looked_into=())
        offsets = _offset_range(call.q_offset)
        box = call_box(call.batch, call.heads, call.q_len, call.kv_len, offsets)
        places = layouts(source, values)
        verdict = check_call(source, box, known, places)
        refusals = verdict.refusals
        if not refusals and verdict.undecided:
            _check_not_captured(call.q)
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
        fast = grants_of(program, box, known, places, call.scale).fast
        floats = source.tensors if any(map(_reads_floats, verdict.undecided)) else ()
        return Facts(fast, _watch(source, call, {*floats_planned_by(program.mask), *(param.name for param in floats)}))


def _remember(known: OrderedDict[Hashable, Any], key: Hashable, value: Any) -> None:
    """Keep a value; the oldest of too many go."""
    known[key] = value
    while len(known) > REMEMBERED:
        known.popitem(last=False)


def _check_not_captured(tensor: Tensor) -> None:
    """Refuse to wait for a device, or to plan from values that a replay of a CUDA graph would not look at again."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        message = "a plan is made from values of tensors on the host, which the capture of a CUDA graph does not allow"
        help_ = "call the attention once with the same tensors before the capture"
        raise fail(CallError, "graph-capture", message, help=help_)


@lru_cache(maxsize=64)
def _mask_alone(variant: Variant, origins: Origins) -> Variant:
    return replace(variant, score=build.SCORE, normalizer=build.SCORE, weight=build.WEIGHT)


def _reads_floats(obligation: Obligation) -> bool:
    """Whether the elements of a float tensor decide where an obligation is reached."""
    nodes = postorder(obligation.violation, *chain.from_iterable(obligation.reached))
    return any(isinstance(node, Load) and node.dtype.is_float for node in nodes)


def _watch(variant: Variant, call: Call, floats: Collection[str]) -> Watch | None:
    """The tensors whose values facts are learnt from; `None` where one has no version to go by."""
    watched = _watched(variant, call, floats)
    versions = {name: version_of(tensor) for name, tensor in watched.items()}
    if None in versions.values():
        return None
    return Watch(tuple((name, weakref.ref(tensor), versions[name]) for name, tensor in watched.items()))


def _watched(variant: Variant, call: Call, floats: Collection[str]) -> dict[str | None, Tensor]:
    """Captured tensors, of float ones those that are named, and the offset where it is one."""
    names = (param.name for param in variant.tensors if not param.dtype.is_float or param.name in floats)
    everything = [*((name, call.values[name]) for name in names), (None, call.q_offset)]
    return {name: value for name, value in everything if isinstance(value, Tensor)}


def _key(variant: Variant, program: Variant, call: Call) -> Hashable:
    """What facts depend on beside the values of tensors."""
    scalars = tuple(call.values[param.name] for param in variant.scalars)
    offset = None if isinstance(call.q_offset, Tensor) else call.q_offset
    shapes = tuple((layout.shape, layout.strides) for layout in layouts(variant, call.values).values())
    which = tuple(map(id, _watched(variant, call, floats_planned_by(program.mask)).values()))
    return (call.batch, call.heads, call.q_len, call.kv_len, call.scale > 0, offset, scalars, shapes, which)


def _offset_range(q_offset: int | Tensor) -> tuple[int, int]:
    if isinstance(q_offset, Tensor):
        return (int(q_offset.min()), int(q_offset.max())) if q_offset.numel() else (0, 0)
    return q_offset, q_offset
