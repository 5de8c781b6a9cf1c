"""A compiled variant over values of its parameters: what is called, planned, explained and tuned.

In: a compilation, the facts known of its calls, a value for every parameter. Out: calls checked against them, and the
instance whose mask also asks a block table, which from there on is one like any other.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from attndsl.compiler import Compilation
from attndsl.ir.variant import Variant
from attndsl.routing.given import table_of_call, table_of_plan
from attndsl.routing.join import joins_of
from attndsl.routing.table import BlockTable
from attndsl.runtime.arguments import Call, check_call
from attndsl.runtime.facts import FactBook, Facts
from attndsl.runtime.kinds import Values, taken_apart


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """`tensors` and `numbers` are the values as calls of one kind compare them."""

    compilation: Compilation
    book: FactBook
    values: Values
    tensors: tuple[Tensor, ...]
    numbers: Hashable

    @classmethod
    def of(cls, compilation: Compilation, book: FactBook, values: Values) -> Self:
        """The instance over these values."""
        return cls(compilation, book, values, *taken_apart(values))

    @property
    def source(self) -> Variant:
        """The program as it was written, which says what is an error."""
        return self.compilation.source

    @property
    def program(self) -> Variant:
        """The program after the passes, which says what is fast."""
        return self.compilation.program

    def checked(self, q: Any, k: Any, v: Any, *, scale: Any, enable_gqa: Any, q_offset: Any) -> Call:
        """The call, or a `CallError` with everything that does not fit."""
        return check_call(self.source, self.values, q, k, v, scale=scale, enable_gqa=enable_gqa, q_offset=q_offset)

    def facts(self, call: Call) -> Facts:
        """What is known of a checked call."""
        return self.book.of(self.source, self.program, call)

    def routed(self, blocks: Any, call: Call, *, enable_gqa: bool) -> Instance:
        """The instance that also asks what a user passed as `blocks=` of a call."""
        return self._joined(table_of_call(blocks, call, enable_gqa), call.q_offset)

    def routed_for(self, blocks: Any, sizes: tuple[int, int, int, int], q_offset: int | Tensor) -> Instance:
        """The same for a plan of (batch, heads, q_len, kv_len), which has no tensors."""
        return self._joined(table_of_plan(blocks, *sizes), q_offset)

    def _joined(self, table: BlockTable, q_offset: int | Tensor) -> Instance:
        joined = joins_of(self.compilation).of(table, q_offset)
        values = joined.bindings(self.values, table, q_offset).resolve()
        return Instance.of(joined.compilation, joined.facts, values)
