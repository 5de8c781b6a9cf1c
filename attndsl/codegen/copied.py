"""Functions of this package as text, for modules that must do without it: what is copied is what is tested here.

In: the file of a module inside the package, and names. Out: the text of those functions, classes and constants, as
written. The module is read, not imported.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.resources import files


def copied(module: str, *names: str) -> tuple[str, ...]:
    """The text of top-level functions, classes and constants, e.g. `copied("dense.py", "bit_length")`."""
    found = _definitions(module)
    return tuple(found[name] for name in names)


def definitions_of(module: str) -> tuple[str, ...]:
    """The text of all of them."""
    return tuple(_definitions(module).values())


@cache
def _definitions(module: str) -> dict[str, str]:
    text = files("attndsl").joinpath(module).read_text("utf-8")
    lines = text.splitlines()
    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        match node:
            case (
                ast.FunctionDef(name=name, decorator_list=decorators)
                | ast.ClassDef(name=name, decorator_list=decorators)
            ):
                first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
            case ast.Assign(targets=[ast.Name(id=name)]):
                first = node.lineno
            case _:
                continue
        found[name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found
