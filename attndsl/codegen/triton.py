"""A plan as Triton text: prints what it holds into the lines its template arranges."""

from __future__ import annotations

import ast
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from attndsl.codegen.placement import Side
from attndsl.codegen.plan import Gather, KernelPlan
from attndsl.codegen.triton_diagonals import DiagonalsText
from attndsl.codegen.triton_keys import KeysText
from attndsl.codegen.triton_module import ModuleText
from attndsl.codegen.triton_queries import QueriesText

if TYPE_CHECKING:
    import jinja2


def emit(plan: KernelPlan) -> str:
    """The module text of a kernel; the same plan gives the same bytes."""
    template, text = _printed(plan)
    helpers = tuple(_helper_sources()[name] for name in sorted(text.helpers))
    return _environment().get_template(template).render(kernel=text, helpers=helpers)


def _printed(plan: KernelPlan) -> tuple[str, ModuleText]:
    """The template of a kernel, and what it sees."""
    if plan.gather is Gather.DIAGONAL:
        return "diagonals.py.jinja", DiagonalsText(plan).module()
    if plan.side is Side.KEYS:
        return "queries.py.jinja", QueriesText(plan).module()
    return "keys.py.jinja" if plan.solve is None else "solve.py.jinja", KeysText(plan).module()


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("attndsl.codegen") / "templates" / name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@cache
def _helper_sources() -> dict[str, str]:
    """The text of every helper function, by name."""
    text = (files("attndsl.codegen") / "templates" / "triton_helpers.py").read_text("utf-8")
    lines = text.splitlines()
    return {
        node.name: "\n".join(lines[node.decorator_list[0].lineno - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
