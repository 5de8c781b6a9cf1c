"""Programs by their text, for what holds no Python objects: an operator in a graph is given the text of its program.

In: a compilation that is about to be called from a graph. Out: its text, and from the text, in this process or in
another, the compilation again with what is known of its calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from attndsl.analysis.bounds import floats_planned_by
from attndsl.compiler import Compilation, in_graphs, without_values
from attndsl.ir.nodes import Coord, Load
from attndsl.ir.printer import print_variant
from attndsl.ir.variant import Param, TensorParam, Variant
from attndsl.routing.join import Layout, joins_of
from attndsl.runtime.facts import FactBook

REMEMBERED = 256
"""Programs that are kept although no attention has them: those of graphs that were loaded."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A compiled variant, and what is known of its calls."""

    compilation: Compilation
    facts: FactBook

    @property
    def source(self) -> Variant:
        return self.compilation.source


_books: WeakKeyDictionary[Compilation, FactBook] = WeakKeyDictionary()


def text_of_masks(*variants: Variant) -> str:
    """Variants of which masks alone count, as one text."""
    named = (replace(variant, name=f"mass_{position}") for position, variant in enumerate(variants))
    return "\n".join(print_variant(without_values(variant)) for variant in named)


def program_of(text: str) -> Program:
    """The program of a text: that of a living attention, whose errors know where it was written, or the text's own.

    The text may begin with a comment.
    """
    program = text.partition("\n")[2] if text.startswith("#") else text
    compilation = in_graphs.get(program)
    if compilation is None:
        compilation = _compiled(program)
    return Program(compilation, _books.setdefault(compilation, FactBook()))


@lru_cache(maxsize=REMEMBERED)
def variants_of(text: str) -> tuple[Variant, ...]:
    """The variants of a text."""
    from attndsl.frontend.parse import parse  # brings the parser, which Python variants do without

    return parse(text, "<graph>") if text else ()


def joined_text(text: str, *layout: Any) -> tuple[str, str, str, str]:
    """The text of a program whose mask also asks a block table of this layout, and the names of the table's parts."""
    joined = joins_of(program_of(text).compilation).laid_out(Layout(*layout))
    return joined.compilation.text(), joined.names.live, joined.names.first, joined.names.key_blocks


def names_of(text: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """For each variant of a text the names of its parameters, each with its kind: `tensor`, `int` or `float`."""
    return tuple(tuple((param.name, _kind(param)) for param in variant.params) for variant in variants_of(text))


def counted_tensors(text: str) -> tuple[str, ...]:
    """The captured floats that are not read at coordinates as they are: the host waits for the places their gradients
    are added to."""
    source = program_of(text).source
    floats = (param.name for param in source.tensors if param.dtype.is_float)
    return tuple(name for name in floats if not all(map(_is_plain, source.loads_of(name))))


def plans_by_floats(text: str) -> bool:
    """Whether the host looks at captured floats to find the tiles of a call."""
    return bool(floats_planned_by(program_of(text).compilation.program.mask))


def forget() -> None:
    """Drop everything derived from tensor values."""
    for facts in list(_books.values()):
        facts.forget()


@lru_cache(maxsize=REMEMBERED)
def _compiled(text: str) -> Compilation:
    (variant,) = variants_of(text)
    return Compilation(variant)


def _is_plain(load: Load) -> bool:
    return all(isinstance(index, Coord) for index in load.indices) and len({*load.indices}) == len(load.indices)


def _kind(param: Param) -> str:
    return "tensor" if isinstance(param, TensorParam) else "int" if param.dtype.is_int else "float"
