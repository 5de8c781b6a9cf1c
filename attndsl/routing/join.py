"""A block table in a mask: a variant whose mask also asks a captured bool tensor.

In: a variant and how a table is laid out. Out: the joined variant, compiled once for each layout, and the values of the
parameters it adds. From there on a table is like any captured tensor: reference, plans, checks and kernels honour it at
any tile size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from torch import Tensor

from attndsl.compiler import Compilation
from attndsl.frontend.bindings import Bindings, Bound, Leaf, Value
from attndsl.ir import build
from attndsl.ir.names import free_names
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import DType
from attndsl.ir.variant import ScalarParam, TensorParam, Variant
from attndsl.routing.table import BlockTable
from attndsl.runtime.facts import FactBook


@dataclass(frozen=True, slots=True)
class Layout:
    """What a kernel depends on of a table; `keys` is `None` where a tensor says the block of every key."""

    queries: int
    keys: int | None
    by_batch: bool
    by_head: bool
    offset_by_batch: bool


@dataclass(frozen=True, slots=True)
class Names:
    """Names of parameters: the table, the position of the first query, the block of every key."""

    live: str
    first: str
    key_blocks: str


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """A variant joined with tables of one layout. The names are those of the parameters the table adds."""

    compilation: Compilation
    facts: FactBook
    names: Names

    def bindings(self, values: Mapping[str, Value], table: BlockTable, q_offset: int | Tensor) -> Bindings:
        """The values of the variant's parameters, and those of the table."""
        added: dict[str, Value] = {self.names.live: table.live, self.names.first: q_offset}
        if isinstance(table.block[1], Tensor):
            added[self.names.key_blocks] = table.block[1]
        everything = {**values, **added}
        params = self.compilation.source.params
        captured = {param.name: Bound(everything[param.name], param.dtype, Leaf()) for param in params}
        return Bindings(captured, {}, tuple(captured))


class Joins:
    """What a variant joined with tables compiles to, by layout."""

    def __init__(self, variant: Variant) -> None:
        self._variant = variant
        self._joined: dict[Layout, Joined] = {}

    def of(self, table: BlockTable, q_offset: int | Tensor) -> Joined:
        """The variant joined with tables like this one."""
        return self.laid_out(layout_of(table, q_offset))

    def laid_out(self, layout: Layout) -> Joined:
        """The variant joined with tables of a layout."""
        found = self._joined.get(layout)
        if found is None:
            names = _names(self._variant)
            compilation = Compilation(join_table(self._variant, layout, names))
            found = self._joined[layout] = Joined(compilation, FactBook(), names)
        return found

    def forget(self) -> None:
        """Drop everything derived from tensor values."""
        for joined in self._joined.values():
            joined.facts.forget()


_joins: WeakKeyDictionary[Compilation, Joins] = WeakKeyDictionary()


def joins_of(compilation: Compilation) -> Joins:
    """The joins of a compilation: attentions that share kernels share these too."""
    return _joins.setdefault(compilation, Joins(compilation.source))


def layout_of(table: BlockTable, q_offset: int | Tensor) -> Layout:
    """How a table is laid out."""
    queries, keys = table.block
    by_batch, by_head = (size != 1 for size in table.live.shape[:2])
    return Layout(queries, None if isinstance(keys, Tensor) else keys, by_batch, by_head, isinstance(q_offset, Tensor))


def join_table(variant: Variant, layout: Layout, names: Names) -> Variant:
    """The variant with `and blocks[b, h, (q_idx - first_query) // bq, kv_idx // bk]` at the end of its mask."""
    if layout.offset_by_batch:
        first: Expr = build.load(names.first, (build.B,), DType.I64)
        added: tuple[TensorParam | ScalarParam, ...] = (TensorParam(names.first, DType.I64, ("B",)),)
    else:
        first, added = build.scalar(names.first, DType.I64), (ScalarParam(names.first, DType.I64),)
    if layout.keys is None:
        key_block: Expr = build.load(names.key_blocks, (build.K,), DType.I64)
        added = (*added, TensorParam(names.key_blocks, DType.I64, ("Nk",)))
    else:
        key_block = _block(build.K, layout.keys)
    zero = build.integer(0)
    indices = (
        build.B if layout.by_batch else zero,
        build.H if layout.by_head else zero,
        _block(build.apply(Op.SUB, build.Q, first), layout.queries),
        key_block,
    )
    allowed = build.load(names.live, indices, DType.BOOL)
    mask = allowed if variant.mask is build.TRUE else build.apply(Op.AND, variant.mask, allowed)
    table = TensorParam(names.live, DType.BOOL, ("B", "H", "Tq", "Tk"))
    return replace(variant, params=(*variant.params, table, *added), mask=mask)


def _block(index: Expr, size: int) -> Expr:
    return index if size == 1 else build.apply(Op.FLOORDIV, index, build.integer(size))


def _names(variant: Variant) -> Names:
    return Names(*free_names(variant, "blocks", "first_query", "key_blocks"))
