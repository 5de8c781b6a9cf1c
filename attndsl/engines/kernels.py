"""The kernels of one variant for calls of one kind: which specialisation, which tile shapes, which tables.

In: a compilation, what is known of the calls, a call. Out: its `Rows`, or the pieces of its gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attndsl.analysis.backward import Backward
from attndsl.analysis.bounds import Strategy
from attndsl.analysis.streaming import Refusal
from attndsl.analysis.structure import Structure
from attndsl.codegen.names import row_pointer
from attndsl.codegen.placement import Side
from attndsl.codegen.plan import Emitted, Gather, KernelPlan, Specialisation
from attndsl.compiler import Compilation
from attndsl.ir.nodes import Load
from attndsl.ir.row_sums import RowSum
from attndsl.ir.variant import Variant
from attndsl.runtime import launch
from attndsl.runtime.arguments import Call, PagedCall
from attndsl.runtime.combining import combine
from attndsl.runtime.engine import Chunk, Pieces, Task
from attndsl.runtime.facts import FactBook, Facts
from attndsl.runtime.gradients.captures import keys_of_chunk
from attndsl.runtime.gradients.diagonals import by_distance, tile_diagonals
from attndsl.runtime.launch import Launch, Rows
from attndsl.runtime.native import launch as native
from attndsl.runtime.tables import Lists, TileTable
from attndsl.runtime.tiles import TileShape
from attndsl.runtime.tuning import tuned_tile


@dataclass(frozen=True)
class Kernels:
    """The kernels of one variant for calls of one kind (`runtime.kinds`): an `Engine`.

    `returned` are further sums of the rows, beside the output. `fast`, `strategy` and `tile` override what a call and
    its device suggest, and so does `splits`: the number of programs that share the keys of a query tile.
    """

    compilation: Compilation
    book: FactBook
    facts: Facts
    returned: tuple[RowSum, ...] = ()
    fast: bool | None = None
    strategy: Strategy | None = None
    tile: TileShape | None = None
    splits: int | None = None

    @property
    def program(self) -> Variant:
        return self.compilation.program

    @property
    def derivative(self) -> Backward | Refusal:
        return self._extended.derivation.derivative

    @property
    def _extended(self) -> Compilation:
        """The compilation of the program with its further sums."""
        return self.compilation.with_sums(self.returned)

    def forward(self, call: Call) -> Rows:
        """The output and what is known of its rows."""
        if call.v_head_dim == 0:
            # Kernels have at least one column of values: a stand-in for it keeps them inside the memory of the tensors.
            rows = self.forward(replace(call, v=call.v.new_zeros(*call.v.shape[:3], 1)))
            return replace(rows, out=rows.out[..., :0])
        derivation, spec = self.compilation.derivation, self._spec(call)
        splits = self._splits(call, spec)
        if splits > 1:
            return self._by_parts(call, replace(spec, split=True), splits)
        found: dict[str, Tensor] = {}
        for name in derivation.statistics_kernels:
            found |= self._run(call, name, spec, {}, found)
        out = call.q.new_zeros((call.batch, call.heads, call.q_len, call.v_head_dim))
        found |= self._run(call, "forward", spec, {"Out": out}, found)
        kept = {name: found[name] for name in derivation.streaming.kept}
        sums = self._run(call, "row_outputs", spec, {}, kept) if self.returned else {}
        return Rows(out, found.get("lse"), found[derivation.maximum], sums, kept)

    def _splits(self, call: Call, spec: Specialisation) -> int:
        """Among how many programs the keys of a query tile are shared; one where parts could not be put together."""
        if self.returned or not self.compilation.derivation.has_parts:
            return 1
        if self.splits is not None:
            return self.splits
        return launch.splits_for(call, self._tile(call, self.compilation.kernel("forward", spec)))

    def _by_parts(self, call: Call, spec: Specialisation, splits: int) -> Rows:
        """The rows of a call whose query tiles are walked by several programs each."""
        shape = (call.batch, call.heads * splits, call.q_len, call.v_head_dim)
        parts = call.q.new_empty(shape, dtype=torch.float32)
        found = self._run(call, "forward", spec, {"Out": parts}, {}, splits=splits)
        most = self.compilation.derivation.maximum
        rows = combine(parts, found["lse"], found[most], splits, call.q.dtype)
        assert rows.lse is not None
        known = {"lse": rows.lse, most: rows.max_score}
        return replace(rows, kept={name: known[name] for name in self.compilation.derivation.streaming.kept})

    def output(self, call: Call) -> Tensor:
        """The output alone."""
        return self.forward(call).out

    def sums(self, call: Call, rows: Mapping[str, Tensor], dout: Tensor) -> Mapping[str, Tensor]:
        """The further row sums of a backward."""
        if call.v_head_dim == 0:
            call, dout = _with_a_column(call, dout)
        return self._run(call, "backward_rows", self._spec(call), {"DOut": dout}, rows)

    def backward(self, call: Call, task: Task) -> Pieces:
        """The gradients a task wants, and the sums its captured elements are gathered from."""
        if call.v_head_dim == 0:
            call, dout = _with_a_column(call, task.dout)
            pieces = self.backward(call, replace(task, dout=dout))
            return replace(pieces, dv=None if pieces.dv is None else pieces.dv[..., :0])
        wanted, derivation = task.wanted, self._extended.derivation
        spec = replace(self._spec(call), gradients=frozenset(load.tensor for load in wanted.loads))
        loads = {which: derivation.captured(spec, which) for which in Structure}
        of_queries = wanted.q or bool(loads[Structure.ROW])
        of_keys = wanted.k or wanted.v or bool(loads[Structure.COLUMN])
        # Without a query there may be no kernel to write zeros.
        make = torch.empty_like if call.q_len else torch.zeros_like
        made = {"DQ": make(call.q, memory_format=torch.contiguous_format)} if of_queries else {}
        if of_keys:
            made |= {
                name: make(of, memory_format=torch.contiguous_format) for name, of in (("DK", call.k), ("DV", call.v))
            }
        sums: dict[str, Tensor] = {}
        for name in self._walks(of_queries, of_keys, bool(loads[Structure.DIAGONAL])):
            sums |= self._run(call, name, spec, {"DOut": task.dout, **made}, task.rows)
        rows, columns, diagonals = (
            {load: sums[name] for name, load in loads[which].items()}
            for which in (Structure.ROW, Structure.COLUMN, Structure.DIAGONAL)
        )
        return Pieces(
            made.get("DQ"),
            made.get("DK"),
            made.get("DV"),
            rows,
            columns,
            {load: self._by_distance(call, found) for load, found in diagonals.items()},
            self._chunks(call, spec, task, loads[Structure.PAIRS]),
        )

    def _walks(self, of_queries: bool, of_keys: bool, by_distance: bool) -> Iterator[str]:
        """The kernels that leave what belongs to queries, to keys, and to distances."""
        if of_queries:
            yield "backward_dq"
        if of_keys:
            yield "backward_dkv"
        if by_distance:
            yield "backward_diagonal"

    def _by_distance(self, call: Call, found: Tensor) -> Tensor:
        """What a kernel has summed along diagonals, by distance."""
        return by_distance(found, call.q_len, call.kv_len)

    def _chunks(self, call: Call, spec: Specialisation, task: Task, loads: Mapping[str, Load]) -> Iterator[Chunk]:
        """Derivatives pair by pair, a stretch of keys at a time."""
        if not loads:
            return
        tile = self._tile(call, self._extended.kernel("backward_pairs", spec))
        step = keys_of_chunk(call, tuple(loads.values()), tile.block_n)
        for start in range(0, call.kv_len, step):
            stretch = range(start, start + step)
            found = self._run(call, "backward_pairs", spec, {"DOut": task.dout}, task.rows, stretch)
            keys = range(start, min(start + step, call.kv_len))
            yield Chunk(keys, {load: found[name][..., : len(keys)] for name, load in loads.items()})

    def _spec(self, call: Call) -> Specialisation:
        return Specialisation(
            dtype=native.DTYPES[call.q.dtype],
            head_dim=call.head_dim,
            v_head_dim=call.v_head_dim,
            fast=self.facts.fast if self.fast is None else self.fast,
            offset_per_batch=isinstance(call.q_offset, Tensor),
            strategy=self.strategy,
            paged=isinstance(call, PagedCall),
        )

    def _run(
        self,
        call: Call,
        name: str,
        spec: Specialisation,
        tensors: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        stretch: range = range(0),
        splits: int = 1,
    ) -> dict[str, Tensor]:
        """Run a kernel; what it stores by name: of each row, of each key where it keeps keys, of each place of the
        diagonals of tiles, or of each pair with a `stretch` of keys."""
        kernel, tile, table = self._planned(call, name, spec)
        # What is written pair by pair is 0 where no tile is visited, and a call without queries or keys visits none.
        make = call.q.new_zeros if kernel.plan.gather is Gather.PAIRS or not call.q_len else call.q.new_empty
        dtype = torch.promote_types(call.q.dtype, torch.float32)
        lead = (call.batch, call.heads * splits)
        stored = {
            name: make((*lead, *self._shape(call, kernel, name, stretch)), dtype=dtype) for name in kernel.plan.stored
        }
        sizes = {"chunk_lo": stretch.start, "chunk_hi": stretch.stop, "splits": splits}
        if kernel.plan.gather is Gather.DIAGONAL:
            sizes["diagonals"] = tile_diagonals(call.q_len, call.kv_len, tile.block_m)
        given = {"Q": call.q, "K": call.k, "V": call.v, **tensors}
        pointers = {row_pointer(name): value for name, value in (*rows.items(), *stored.items())}
        self._launch(call, Launch(kernel, given, pointers, tile, table, sizes))
        return stored

    def _planned(self, call: Call, name: str, spec: Specialisation) -> tuple[Emitted, TileShape, TileTable | None]:
        """A kernel, its tiles and its table; the kernel that walks all tiles where there is no table to be had."""
        compilation = self.compilation if is_forward(name) else self._extended
        kernel = compilation.kernel(name, spec)
        tile = self._tile(call, kernel)
        table = None
        if kernel.plan.reads_table:
            table = self.book.table(
                self.compilation.program, call, self.facts, (tile.block_m, tile.block_n), _lists(kernel.plan)
            )
            if table is None:
                kernel = compilation.kernel(name, replace(spec, strategy=Strategy.DENSE))
        return kernel, tile, table

    def _shape(self, call: Call, kernel: Emitted, name: str, stretch: range) -> tuple[int, ...]:
        """The shape of what a kernel stores, of each batch and head."""
        match kernel.plan.gather:
            case Gather.WALK:
                return (call.q_len if kernel.plan.side is Side.QUERIES else call.kv_len,)
            case Gather.DIAGONAL:
                tile = self._tile(call, kernel)
                return (tile_diagonals(call.q_len, call.kv_len, tile.block_m), tile.block_m, tile.block_n)
            case Gather.PAIRS:
                return (call.q_len, len(stretch))

    def _launch(self, call: Call, task: Launch) -> Any:
        return launch.run(call, task)

    def _tile(self, call: Call, kernel: Emitted) -> TileShape:
        tile = (
            self.tile or self._tuned(call, kernel.plan.kernel, kernel.plan.spec) or launch.tile_for(call, kernel.plan)
        )
        if kernel.plan.gather is Gather.DIAGONAL:
            return replace(tile, block_n=tile.block_m)
        return tile

    def _tuned(self, call: Call, name: str, spec: Specialisation) -> TileShape | None:
        """The tile measured for calls like this one; further sums make other kernels of a backward."""
        if self.returned and not is_forward(name):
            return None
        return tuned_tile(self.compilation.fingerprint, name, spec, call)


def is_forward(name: str) -> bool:
    """Whether a kernel is the same with further sums and without."""
    return name == "forward" or name.startswith("statistics")


def _with_a_column(call: Call, dout: Tensor) -> tuple[Call, Tensor]:
    """A call whose values have no columns, and the gradient of its output, with a column of zeros that stands in."""
    return replace(call, v=call.v.new_zeros(*call.v.shape[:3], 1)), dout.new_zeros(*dout.shape[:3], 1)


def _lists(plan: KernelPlan) -> Lists:
    if plan.gather is Gather.DIAGONAL:
        return Lists.DIAGONALS
    return Lists.KEYS if plan.side is Side.QUERIES else Lists.QUERIES
