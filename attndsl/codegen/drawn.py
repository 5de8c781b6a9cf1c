"""A text that is written when somebody reads it, and known by what it is made from until then.

In: a template beside this package, and what it sees. Out: a `Drawn`. Whoever finds what was made of the text under its
`digest` needs neither the text nor the engine of templates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from attndsl.codegen.cpp_text import MODULE, environment, template_text


@dataclass(frozen=True, eq=False)
class Drawn:
    """`seen` is what the template sees, by name: dataclasses of finished lines, which their `repr` tells whole."""

    template: str
    seen: tuple[tuple[str, object], ...]

    @cached_property
    def digest(self) -> str:
        """A hash of everything that the text is made from."""
        return digest_of("\0".join((template_text(MODULE), template_text(self.template), repr(self.seen))))

    @cached_property
    def text(self) -> str:
        """The text; the same lines give the same bytes."""
        return environment().get_template(self.template).render(dict(self.seen))


def digest_of(text: str) -> str:
    """The hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
