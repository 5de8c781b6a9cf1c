"""Captured tensors indexed inside a variant, all at once or one dimension after another.

In: a tensor or what is left of one, and what stands between the brackets. Out: a symbol: the element, or the tensor
with fewer open dimensions.
"""

from __future__ import annotations

from typing import Any

import torch

from attndsl.frontend.declared import Named, Open
from attndsl.frontend.indexing import entries, is_full, is_static, static_part, waiting_part
from attndsl.frontend.operands import Operands, Rows
from attndsl.frontend.run import Run
from attndsl.frontend.symbols import Symbol, symbols_in
from attndsl.frontend.tensors import Tensors
from attndsl.ir import build
from attndsl.ir.nodes import Expr


class Tables:
    """The indexing of one run."""

    def __init__(self, run: Run, operands: Operands, tensors: Tensors) -> None:
        self._run = run
        self._operands = operands
        self._tensors = tensors

    def index(self, target: Any, index: Any) -> Any:
        """`target[index]`, where a symbol is among them."""
        if isinstance(target, Named):
            target = self._operands.shared(target)
        if isinstance(target, Symbol):
            if not isinstance(target.held, Rows):
                return self._index_value(target, index)
            return self._opened(target.held, entries(index, target.held.indices.count(None)))
        rows = Rows(self._run.captured(target), (None,) * target.ndim)
        given = entries(index, target.ndim)
        if any(map(is_static, given)) and len(given) <= target.ndim:
            part = self._tensors.on_tensors("__getitem__", torch.Tensor.__getitem__, (target, static_part(given)), {})
            return self.index(part, tuple(waiting_part(given)))
        return self._opened(rows, given)

    def open_shape(self, symbol: Symbol) -> torch.Size:
        """The sizes of the dimensions not indexed yet."""
        if not isinstance(symbol.held, Rows):
            return torch.Size(())
        if isinstance(symbol.held.captured.value, Open):
            self._run.stop_open("`.shape`", symbol.held.captured)
        self._run.captures.reads_shape(symbol.held.captured)
        value = symbol.held.captured.value
        with torch._C.DisableTorchFunction():
            sizes = value.shape if isinstance(value, torch.Tensor) else ()
        return torch.Size(size for size, index in zip(sizes, symbol.held.indices, strict=True) if index is None)

    def _opened(self, rows: Rows, given: list[Any]) -> Symbol:
        """The tensor with these indices in its first open dimensions."""
        nodes, open_count = [self._node(item) for item in given], rows.indices.count(None)
        if len(given) > open_count:  # an index too many, which the builder reports
            return self._run.symbol(self._run.load(rows.captured, [node or build.integer(0) for node in nodes]))
        filled = iter([*nodes, *([None] * (open_count - len(nodes)))])
        indices = tuple(next(filled) if node is None else node for node in rows.indices)
        complete = [node for node in indices if node is not None]
        if len(complete) == len(indices):
            return self._run.symbol(self._run.load(rows.captured, complete))
        return self._run.symbol(Rows(rows.captured, indices))

    def _node(self, item: Any) -> Expr | None:
        """The node of an index; none for `:`."""
        if is_full(item):
            return None
        if isinstance(item, slice):
            self._run.fix([self._operands.expression(symbol) for symbol in symbols_in(item)])
        node = None if isinstance(item, bool | slice) or item is None else self._operands.node(item)
        if node is None:
            help_ = (
                "index every dimension with coordinates, integers or integer tensors of one element, or leave it `:`"
            )
            what = "a slice with bounds" if isinstance(item, slice) else f"`{item!r}`"
            self._run.stop("index-kind", f"a captured tensor is indexed by {what}", self._run.span(), help=help_)
        return node

    def _index_value(self, target: Symbol, index: Any) -> Symbol:
        if index is Ellipsis or (isinstance(index, tuple) and not index):
            return target
        help_ = "use it without an index"
        return self._run.stop("index-of-value", "a single value is indexed", self._run.span(), help=help_)
