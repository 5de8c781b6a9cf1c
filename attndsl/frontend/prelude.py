"""The functions every text has: the library's normalizers, written in the language.

In: `normalizers.attn` beside this module. Out: its `Def`s by name, read when a text first uses a name it
does not define.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from attndsl.diagnostics import Reporter, Source
from attndsl.frontend.declarations import Declarations
from attndsl.frontend.scope import Def
from attndsl.frontend.syntax import children_of, syntax_tree

FILE = "normalizers.attn"


@cache
def source() -> Source:
    """The text they are written in."""
    return Source(FILE, files("attndsl.frontend").joinpath(FILE).read_text(encoding="utf-8"))


@cache
def functions() -> Mapping[str, Def]:
    """All of them, those for themselves alone included."""
    reporter = Reporter()
    found = Declarations(source(), reporter).functions(children_of(syntax_tree(source()), "function"))
    reporter.check()
    return found


def offered() -> set[str]:
    """The names texts may use."""
    return {name for name in functions() if not name.startswith("_")}


def function(name: str) -> Def | None:
    """The function a text means by a name that it does not define itself."""
    return functions()[name] if name in offered() else None
