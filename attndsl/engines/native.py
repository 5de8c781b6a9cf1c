"""Native kernels: the same calls and the same pieces as of Triton's, from fewer launches.

In: as for `engines.kernels`. Out: the same; a forward is made ready once for its kind of calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from attndsl.analysis.structure import Structure
from attndsl.codegen.cpp_tiles import BLOCK
from attndsl.codegen.plan import Emitted, Specialisation, Target
from attndsl.engines.kernels import Kernels
from attndsl.runtime.arguments import Call
from attndsl.runtime.launch import Launch, Rows
from attndsl.runtime.native import launch as native
from attndsl.runtime.native.forward import Forward
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import TileShape


@dataclass(frozen=True)
class NativeKernels(Kernels):
    """The same in C++: one kernel passes over the keys as often as the statistics ask for, and one walk leaves the
    gradients of q, k, v and captures together."""

    _forwards: list[Forward] = field(default_factory=list, init=False, repr=False, compare=False)

    def forward(self, call: Call) -> Rows:
        rows = self._forward(call).rows(call)
        return (
            replace(rows, sums=self._run(call, "row_outputs", self._spec(call), {}, rows.kept))
            if self.returned
            else rows
        )

    def output(self, call: Call) -> Tensor:
        return self._forward(call).output(call)

    def _forward(self, call: Call) -> Forward:
        """The forward kernel for calls of this kind, made once."""
        if not self._forwards:
            spec = replace(self._spec(call), storages=native.storages(self.program, call))
            self._forwards.append(Forward.of(call, *self._planned(call, "forward", spec)))
        return self._forwards[0]

    def _planned(self, call: Call, name: str, spec: Specialisation) -> tuple[Emitted, TileShape, TileTable | None]:
        """The text of a kernel is written for its tile. What is taken in stretches of keys has the default's."""
        tile = None if name == "backward_pairs" else self._tuned(call, name, spec)
        block = None if tile is None or (tile.block_m, tile.block_n) == BLOCK else (tile.block_m, tile.block_n)
        return super()._planned(call, name, replace(spec, block=block))

    def _walks(self, of_queries: bool, of_keys: bool, by_distance: bool) -> Iterator[str]:
        if of_queries and of_keys:
            return iter(("backward",))
        return super()._walks(of_queries, of_keys, by_distance)

    def _by_distance(self, call: Call, found: Tensor) -> Tensor:
        return found

    def _spec(self, call: Call) -> Specialisation:
        return replace(
            super()._spec(call),
            v_head_dim=max(call.v_head_dim, 1),
            storages=native.storages(self._extended.derivation.program, call),
            target=Target.CPP,
        )

    def _shape(self, call: Call, kernel: Emitted, name: str, stretch: range) -> tuple[int, ...]:
        match kernel.plan.structures.get(name, Structure.ROW):
            case Structure.ROW:
                return (call.q_len,)
            case Structure.COLUMN:
                return (call.kv_len,)
            case Structure.DIAGONAL:
                return (max(call.q_len + call.kv_len - 1, 0),)
            case Structure.PAIRS:
                return (call.q_len, len(stretch))

    def _launch(self, call: Call, task: Launch) -> None:
        # Of what is written, the memory stays the same.
        tensors = {name: tensor.resolve_neg() for name, tensor in task.tensors.items()}
        native.run(native.prepared(task.kernel.plan.variant, call), replace(task, tensors=tensors))

    def _tile(self, call: Call, kernel: Emitted) -> TileShape:
        return native.tile_for(call, kernel.plan)
