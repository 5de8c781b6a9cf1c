"""Python text as a formatter leaves it: calls, collections and functions over captured values.

In: parts. Out: lines or texts that fit a page, for `codegen.export.file`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from attndsl.codegen.torch_expr import TorchPrinter
from attndsl.codegen.triton_layout import LINE_LENGTH
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Load, RowValue, Scalar, postorder

SHORT = 24
"""Values that stand in a list are no longer than this, or have a name."""

COORDINATES: dict[Expr, str] = {
    build.B: "b",
    build.H: "h",
    build.Q: "q_idx",
    build.K: "kv_idx",
    build.Q_LEN: "q_len",
    build.KV_LEN: "kv_len",
}


@dataclass(frozen=True, slots=True)
class Body:
    """Lines of a function, and the texts of what they lead to."""

    lines: tuple[str, ...]
    results: tuple[str, ...]


class Values:
    """Prints values of one function of an exported file, which has `at`, a grid; `symbols` are names of parameters.

    Leaves are named when they are first read. `lines` collects what was printed.
    """

    def __init__(self, symbols: Mapping[str, str], leaves: Mapping[Expr, str] | None = None) -> None:
        self._symbols = symbols
        self._printer = TorchPrinter(dict(leaves or {}), symbols)
        self._given = set(leaves or {})
        self._read: set[str] = set()
        self.lines = self._printer.lines

    def texts(self, *roots: Expr, short: bool = False) -> tuple[str, ...]:
        """The texts of values, each short enough for a list where that is asked for."""
        for node in postorder(*roots):
            if node not in self._given:
                self._name_leaf(node)
        return tuple(self._printer.values(roots, SHORT if short else None))

    def text(self, root: Expr) -> str:
        (found,) = self.texts(root)
        return found

    def read(self, name: str) -> None:
        """Name a parameter before anything reads it."""
        self._leaf(None, name, f'at.value("{name}")')

    def name(self, node: Expr, name: str) -> None:
        """From here on a value goes by a name."""
        self._given.add(node)
        self._printer.names[node] = name

    def _name_leaf(self, node: Expr) -> None:
        match node:
            case RowValue(name=name):
                self._leaf(node, f"row_{name}", f'rows["{name}"][..., None]')
            case Scalar(name=name):
                self._leaf(node, self._symbols[name], f'at.value("{self._symbols[name]}")')
            case Load(tensor=name):
                self._leaf(None, self._symbols[name], f'at.value("{self._symbols[name]}")')
            case _ if node in COORDINATES:
                self._leaf(node, COORDINATES[node], f"at.{COORDINATES[node]}")

    def _leaf(self, node: Expr | None, name: str, value: str) -> None:
        if node is not None:
            self._printer.names[node] = name
        if name not in self._read:
            self._read.add(name)
            self.lines.append(f"{name} = {value}")


def body(roots: Sequence[Expr], symbols: Mapping[str, str], leaves: Mapping[Expr, str] | None = None) -> Body:
    """A function that leads to these values."""
    values = Values(symbols, leaves)
    results = values.texts(*roots)
    return Body(tuple(values.lines), results)


def call_lines(function: str, arguments: Sequence[str], indent: int = 4) -> list[str]:
    """A call: on a line, its arguments on the next one, or each on its own."""
    together = ", ".join(arguments)
    if indent + len(f"{function}({together})") <= LINE_LENGTH:
        return [f"{function}({together})"]
    if indent + 4 + len(together) <= LINE_LENGTH:
        return [f"{function}(", f"    {together}", ")"]
    return [f"{function}(", *(f"    {argument}," for argument in arguments), ")"]


def sequence(items: Iterable[str], indent: int) -> str:
    """A tuple of strings."""
    texts = [quoted(item) for item in items]
    together = f"({', '.join(texts)}{',' * (len(texts) == 1)})"
    if indent + len(together) + 1 <= LINE_LENGTH:
        return together
    return "\n".join(["(", *(f"{' ' * (indent + 4)}{text}," for text in texts), f"{' ' * indent})"])


def mapping(items: Mapping[str, str], indent: int = 0) -> str:
    """A dictionary, each item on its line."""
    if not items:
        return "{}"
    lines = (f"{' ' * (indent + 4)}{quoted(key)}: {value}," for key, value in items.items())
    return "\n".join(["{", *lines, f"{' ' * indent}}}"])


def quoted(text: str) -> str:
    """A string as a formatter writes it."""
    single = repr(text)
    if '"' in text or not single.startswith("'"):
        return single
    return f'"{single[1:-1]}"'


def names_in(text: str) -> frozenset[str]:
    """The names a module's text reads."""
    return frozenset(node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name))
