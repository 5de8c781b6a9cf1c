"""Kernels run on small calls, held against the reference in float64: what the suites and the fuzzer of kernels share.

In: a program and a call. Out: the rows of a kernel, or an `AssertionError` that says which row is off. Kernels are
native ones, and Triton's in its interpreter where `TRITON_INTERPRET=1` was set before triton was imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

import pytest
import torch
from compare import assert_rows_close
from strategies import Case
from torch import Tensor

from attndsl.analysis.bounds import Strategy, choose_strategy
from attndsl.analysis.streaming import Streaming, stream
from attndsl.compiler import Compilation
from attndsl.engines.kernels import Kernels
from attndsl.engines.native import NativeKernels
from attndsl.frontend.parse import parse
from attndsl.ir.variant import Variant
from attndsl.reference import Result, attend, live_pairs
from attndsl.runtime import launch
from attndsl.runtime.arguments import Call, check_call
from attndsl.runtime.facts import FactBook, Facts
from attndsl.runtime.planner import plan_blocks
from attndsl.runtime.tables import TABLES, Lists, TileTable
from attndsl.runtime.tiles import TileShape

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

interpreted = [pytest.mark.interpreter, pytest.mark.skipif(not INTERPRETING, reason="needs TRITON_INTERPRET=1")]
"""The marks of every test that runs a Triton kernel."""

on_kernels = [pytest.mark.interpreter] if INTERPRETING else []
"""The marks of every test that runs in both tiers: Triton's kernels in one, native ones in the other."""

with_tiles = pytest.mark.skipif(not INTERPRETING, reason="native kernels have a tile of their own")
"""The mark of tests about the tiles of Triton's kernels."""

TILE = TileShape(16, 16, 4, 1) if INTERPRETING else None
"""Small tiles for small calls; native kernels have a tile of their own, which no one may choose."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of a row's largest error, relative to its largest value where that is above 1."""

Value = int | float | Tensor


class Program:
    """A variant with the values of its parameters, compiled once."""

    def __init__(self, variant: Variant, values: Mapping[str, Value]) -> None:
        self.variant = variant
        self.values = {**{param.name: param.default for param in variant.scalars}, **values}
        self._compilation = Compilation(variant)
        self._facts = FactBook()

    def call(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, q_offset: int | Tensor = 0) -> Call:
        return check_call(self.variant, self.values, q, k, v, scale=scale, enable_gqa=True, q_offset=q_offset)

    def is_fast(self, call: Call) -> bool:
        """Whether the fast kernel may run the call; refuses a call without a meaning."""
        return self._facts.of(self.variant, self._compilation.program, call).fast

    def run(
        self, call: Call, *, fast: bool, tile: TileShape | None = TILE, strategy: Strategy | None = None
    ) -> launch.Rows:
        """One forward; `strategy` is the walk, by default the mask's."""
        return self.kernels(call, fast=fast, tile=tile, strategy=strategy).forward(call)

    def kernels(
        self, call: Call, *, fast: bool, tile: TileShape | None = TILE, strategy: Strategy | None = None
    ) -> Kernels:
        """The kernels of the program for a call: native ones without a `tile`."""
        kernels = NativeKernels if tile is None else Kernels
        return kernels(self._compilation, _Tables(), Facts(fast), (), fast, strategy, tile)

    def walks(self) -> list[Strategy]:
        """The walks the mask allows besides the one its kernels take by default."""
        mask = self._compilation.program.mask
        possible = (Strategy.TABLE, Strategy.DENSE)
        return [strategy for strategy in possible if strategy is not choose_strategy(mask)]

    def expected(self, call: Call) -> Result:
        """The reference in float64, from the inputs as they are."""
        q, k, v = (tensor.double() for tensor in (call.q, call.k, call.v))
        return attend(self.variant, self.values, q, k, v, scale=call.scale, enable_gqa=True, q_offset=call.q_offset)


class _Tables(FactBook):
    """Makes the table a walk asks for, whatever planning would rather do."""

    def table(
        self, program: Variant, call: Call, facts: Facts, block: tuple[int, int], lists: Lists = Lists.KEYS
    ) -> TileTable:
        plan = plan_blocks(
            program,
            dict(call.values),
            call.q_len,
            call.kv_len,
            batch=call.batch,
            heads=call.heads,
            block=block,
            q_offset=call.q_offset,
        )
        return TABLES[lists](plan.tiles, plan.tiling, call.q.device)


@cache
def variant(text: str) -> Variant:
    """The one attention of a text; `mask`, `score` and other items alone stand for an attention without parameters."""
    return parse(text if "attention" in text else f"attention test() {{ {text} }}")[0]


def program(text: str, **values: Value) -> Program:
    """A program from text."""
    return Program(variant(text), values)


def check(
    subject: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tile: TileShape | None = TILE,
    note: str = "",
    fast: bool | None = None,
    statistics: bool = True,
    **how: float | int | Tensor,
) -> launch.Rows:
    """Run both kernels the call allows and hold them against the reference; returns the rows of the last.

    `fast` demands that the fast kernel be allowed or not; `statistics` compares `lse` and `max_score` too.
    """
    call = subject.call(q, k, v, **how)
    is_fast = subject.is_fast(call)
    assert fast is None or fast is is_fast, f"the fast kernel is {'' if is_fast else 'not '}allowed"
    return checked(subject, call, tile, note, statistics)[False]


def checked(
    subject: Program, call: Call, tile: TileShape | None = TILE, note: str = "", statistics: bool = True
) -> dict[bool, launch.Rows]:
    """The rows of the general kernel, and of the fast one where the call allows it, held against the reference."""
    expected, found = subject.expected(call), {}
    for kind in (True, False) if subject.is_fast(call) else (False,):
        found[kind] = subject.run(call, fast=kind, tile=tile)
        which = f"{'fast' if kind else 'general'} kernel, {tile}\n{note}"
        compare(found[kind], expected, TOLERANCE[call.q.dtype], which, statistics)
    return found


def check_walks(
    subject: Program, call: Call, tile: TileShape | None = TILE, note: str = "", usual: launch.Rows | None = None
) -> None:
    """Every way to walk the keys gives the same bits; `usual` are those of the usual way, where they are known."""
    fast = subject.is_fast(call)
    usual = subject.run(call, fast=fast, tile=tile) if usual is None else usual
    for strategy in subject.walks():
        rows = subject.run(call, fast=fast, tile=tile, strategy=strategy)
        for name in ("out", "lse", "max_score"):
            equal = same(getattr(rows, name), getattr(usual, name))
            assert equal, f"{name} of the {strategy.value} walk has other bits\n{note}"


def compare(rows: launch.Rows, expected: Result, tolerance: float, note: str, statistics: bool = True) -> None:
    assert_rows_close(rows.out, expected.out, tolerance, f"output, {note}")
    assert (rows.lse is None) == (expected.lse is None), f"lse, {note}"
    if statistics:
        if rows.lse is not None:
            assert_rows_close(rows.lse[..., None], expected.lse[..., None], tolerance, f"lse, {note}")
        assert_rows_close(rows.max_score[..., None], expected.max_score[..., None], tolerance, f"max_score, {note}")


def streams(case: Case) -> bool:
    """Whether kernels take a program at all; what they refuse, the reference computes."""
    return isinstance(stream(Compilation(case.variant).program), Streaming)


def check_case(case: Case, tile: TileShape | None = TILE) -> None:
    """A random program through its kernels; a failure prints it as text."""
    subject, tensors = Program(case.variant, case.values), case.inputs()
    call, note = subject.call(*tensors, q_offset=case.q_offset), repr(case)
    found = checked(subject, call, tile, note)
    check_walks(subject, call, tile, note, usual=found[subject.is_fast(call)])
    dirty = subject.call(*poisoned(tensors, *unseen(case)), q_offset=case.q_offset)
    check_poison(subject, dirty, found, tile, note)


def check_poison(
    subject: Program, dirty: Call, clean: Mapping[bool, launch.Rows], tile: TileShape | None, note: str
) -> None:
    """NaN in keys and values no query of their (batch, key head) sees, and in queries that see none, is unseen."""
    for fast, expected in clean.items():
        rows = subject.run(dirty, fast=fast, tile=tile)
        for name in ("out", "lse", "max_score"):
            assert same(getattr(rows, name), getattr(expected, name)), f"poison shows in {name}\n{note}"


def unseen(case: Case) -> tuple[Tensor, Tensor]:
    """The queries `[B, Hq, Nq]` that see no key, and the keys `[B, Hkv, Nk]` that no query sees."""
    live = live_pairs(case.variant, case.values, **case.grid)
    live = live.expand(case.batch, case.q_heads, case.q_len, case.kv_len)
    return ~live.any(-1), ~live.unflatten(1, (case.kv_heads, -1)).any(2).any(-2)


def poisoned(tensors: tuple[Tensor, ...], rows: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    """q, k and v with NaN in these rows and keys."""
    places = (rows, keys, keys)
    return tuple(torch.where(dead[..., None], torch.nan, tensor) for dead, tensor in zip(places, tensors, strict=True))


def same(found: Tensor | None, other: Tensor | None) -> bool:
    """Whether both have the same bits, or neither is there."""
    return found is other if found is None or other is None else torch.equal(found, other)


def inputs(
    *,
    batch: int = 1,
    heads: int = 1,
    kv_heads: int | None = None,
    q_len: int = 40,
    kv_len: int | None = None,
    head_dim: int = 16,
    v_head_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of those sizes."""
    kv_heads = heads if kv_heads is None else kv_heads
    kv_len = q_len if kv_len is None else kv_len
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, heads, q_len, head_dim),
        (batch, kv_heads, kv_len, head_dim),
        (batch, kv_heads, kv_len, head_dim if v_head_dim is None else v_head_dim),
    )
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v
