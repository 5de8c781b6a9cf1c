"""Python values as operands of the language.

In: symbols, numbers, tensors of one element. Out: nodes; nothing for values that mean nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attndsl.frontend.captures import Captured
from attndsl.frontend.declared import Named
from attndsl.frontend.lifting import Lifting, is_numpy_number
from attndsl.frontend.run import Run
from attndsl.frontend.symbols import Symbol
from attndsl.ir.nodes import Expr


@dataclass(frozen=True, slots=True)
class Rows:
    """A captured tensor of which some dimensions are indexed; `None` stands for those that are not."""

    captured: Captured
    indices: tuple[Expr | None, ...]


class Operands:
    """The operands of one run."""

    def __init__(self, run: Run, lifting: Lifting) -> None:
        self._run = run
        self._lifting = lifting

    def expression(self, symbol: Symbol) -> Expr:
        """The node of a symbol; a tensor with open dimensions is one index short, which the builder reports."""
        if isinstance(symbol.held, Rows):
            rows = symbol.held
            symbol.held = self._run.load(rows.captured, [index for index in rows.indices if index is not None])
        node: Expr = symbol.held
        return node

    def node(self, value: Any) -> Expr | None:
        """The node of an operand; none for what means nothing here."""
        if isinstance(value, Symbol):
            return self.expression(value)
        if isinstance(value, Named):
            return self.node(self.shared(value))
        if isinstance(value, bool | int | float):
            return self._run.builder.literal(value)
        if isinstance(value, torch.Tensor):
            return self._of_tensor(value)
        return self.node(value.item()) if is_numpy_number(value) else None

    def shared(self, value: Named) -> Any:
        """What a parameter of several mods is in this run."""
        return self._lifting.declared(value, value.name, None, None)

    def nodes(self, values: Sequence[Any]) -> tuple[Expr, ...] | None:
        """The nodes of all operands; none where one means nothing here."""
        nodes = [self.node(value) for value in values]
        found = tuple(node for node in nodes if node is not None)
        if len(found) == len(nodes):
            return found
        self._run.fix(found)
        return None

    def required(self, values: Sequence[Any], what: str) -> tuple[Expr, ...]:
        """The nodes of operands; a `TypeError`, as Python raises it, where one means nothing here."""
        nodes = self.nodes(values)
        if nodes is None:
            kinds = ", ".join(type(value).__name__ for value in values)
            raise TypeError(f"`{what}` does not take ({kinds})")
        return nodes

    def _of_tensor(self, tensor: torch.Tensor) -> Expr | None:
        if self._run.captures.made_inside(tensor) and tensor.ndim == 0:
            with torch._C.DisableTorchFunction():
                return None if tensor.is_complex() else self._run.builder.literal(tensor.item())
        return self._run.load(self._run.captured(tensor), [])
