"""A plan as Triton text: prints what it holds into the lines its template arranges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from attndsl.codegen.copied import copied
from attndsl.codegen.placement import Side
from attndsl.codegen.plan import Gather, KernelPlan
from attndsl.codegen.triton_diagonals import DiagonalsText
from attndsl.codegen.triton_keys import KeysText
from attndsl.codegen.triton_module import ModuleText
from attndsl.codegen.triton_queries import QueriesText

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel for a module of several: its text, the helpers it calls, the arguments Triton must not specialise on."""

    text: str
    helpers: frozenset[str]
    runtime_args: tuple[str, ...]


def emit(plan: KernelPlan) -> str:
    """The module text of a kernel; the same plan gives the same bytes."""
    template, text = _printed(plan)
    return rendered(template, layout="module.py.jinja", kernel=text, helpers=helper_sources(text.helpers))


def emit_function(plan: KernelPlan) -> Function:
    """A kernel without the module around it."""
    template, text = _printed(plan)
    return Function(rendered(template, layout="function.py.jinja", kernel=text), text.helpers, text.runtime_args)


def rendered(template: str, **seen: Any) -> str:
    """A template, filled in."""
    return _environment().get_template(template).render(**seen)


def helper_sources(names: Iterable[str]) -> tuple[str, ...]:
    """The text of helper functions."""
    return copied("codegen/templates/triton_helpers.py", *sorted(names))


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
