"""The texts a C++ kernel is put together from: headers as they are, and the template that arranges the rest."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

HEADERS = ("cpp_lanes.h", "cpp_storage.h", "cpp_math.h", "cpp_tiles.h", "cpp_rows.h")
"""What every module begins with, in this order."""

SOLVE = "cpp_solve.h"
"""What modules that look for roots of rows go on with."""

PRODUCTS = ("cpp_products.h", "cpp_amx.h")
"""The two products of a tile: on vectors, and of bfloats on matrix registers."""

SUMS = "cpp_gradients.h"
"""The products of gradients."""

PAGES = "cpp_pages.h"
"""Where keys lie that a pool keeps in pages."""

MODULE, TEMPLATE, GRADIENTS = "module.cpp.jinja", "forward.cpp.jinja", "gradients.cpp.jinja"
"""What templates begin with, that of the forward, and that of everything after it."""


@cache
def template_text(name: str) -> str:
    """The text of a file beside the templates."""
    return (files("attndsl.codegen") / "templates" / name).read_text("utf-8")


@cache
def environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
