"""The functions every text has: the library's normalizers and weight mods, written in the language.

In: `normalizers.attn` and `weights.attn` beside this module. Out: their `Def`s by name, read when a text first uses a
name it does not define.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from attndsl.diagnostics import Reporter, Source
from attndsl.frontend.declarations import Declarations
from attndsl.frontend.scope import Def, Stage
from attndsl.frontend.syntax import children_of, syntax_tree

FILES: Mapping[Stage, str] = {Stage.NORMALIZER: "normalizers.attn", Stage.WEIGHT: "weights.attn"}


@dataclass(frozen=True, eq=False, slots=True)
class Library:
    """The functions of one file, those for its own use included; a text uses them where `stage` says."""

    stage: Stage
    source: Source
    functions: Mapping[str, Def]


def find(name: str) -> tuple[Library, Def] | None:
    """The function a text means by a name that it does not define itself, and where it is written."""
    return next(((library, library.functions[name]) for library in _libraries() if name in _public(library)), None)


def offered(stage: Stage) -> set[str]:
    """The names texts may use in a stage."""
    return {name for library in _libraries() if stage in (library.stage, Stage.LET) for name in _public(library)}


@cache
def _libraries() -> tuple[Library, ...]:
    return tuple(_read(stage, name) for stage, name in FILES.items())


def _read(stage: Stage, name: str) -> Library:
    source = Source(name, files("attndsl.frontend").joinpath(name).read_text(encoding="utf-8"))
    reporter = Reporter()
    functions = Declarations(source, reporter).functions(children_of(syntax_tree(source), "function"))
    reporter.check()
    return Library(stage, source, functions)


def _public(library: Library) -> set[str]:
    return {name for name in library.functions if not name.startswith("_")}
