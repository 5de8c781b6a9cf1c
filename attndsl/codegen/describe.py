"""A kernel plan for people: one line for each decision. In: a `KernelPlan`. Out: text."""

from __future__ import annotations

from collections.abc import Iterator

from attndsl.analysis.bounds import Strategy
from attndsl.codegen.placement import Placement, Side, Statement
from attndsl.codegen.plan import KernelPlan
from attndsl.codegen.walk import KeyBound, KeyWalk
from attndsl.ir.nodes import Expr
from attndsl.ir.printer import print_expr

INDENT = 12
WALKS = {
    Strategy.CLOSED_FORM: "key ranges computed in the kernel",
    Strategy.TABLE: "runs of key tiles prepared on the host",
    Strategy.DENSE: "all key tiles",
}


def describe(plan: KernelPlan) -> str:
    """The decisions of a plan, in the order a kernel meets them."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: KernelPlan) -> Iterator[str]:
    spec = plan.spec
    yield _line("kernel", f"{plan.kernel}, {spec.dtype}, head dim {spec.head_dim}, values {spec.v_head_dim}")
    yield _line("integers", plan.index.value)
    yield from _walk(plan.walk, plan.never)
    yield _line("mask", print_expr(plan.mask))
    yield _line("score", print_expr(plan.score))
    for part in plan.statistics:
        yield _line(part.kind.value, f"{part.name} of {print_expr(part.integrand)}{_rescaled(part.rescale)}")
    for product in plan.products:
        value = print_expr(product.value)
        yield _line("product", f"{product.name} of {value} with {product.operand.value}{_rescaled(product.rescale)}")
    yield from (_line("at the end", print_expr(value)) for value in plan.at_end)
    for placement in (plan.placement, plan.peaks, plan.rest, plan.last):
        yield from _placement(placement, plan.side is Side.QUERIES)


def _rescaled(rescale: Expr | None) -> str:
    return "" if rescale is None else f", rescaled by {print_expr(rescale)}"


def _walk(walk: KeyWalk, never: bool) -> Iterator[str]:
    """Which keys a query tile visits, and in what regions."""
    yield _line("walk", WALKS[walk.strategy])
    for number, keys in enumerate(walk.ranges):
        for name, bounds in (("key >=", keys.lower), ("key <=", keys.upper)):
            yield from (_line(name, _bound(bound)) for bound in bounds)
        yield from (_line("only if", print_expr(gate)) for gate in keys.gates)
        if number + 1 < len(walk.ranges):
            yield _line("or", "")
    regions = [
        "partial tiles" if walk.has_left or walk.strategy is Strategy.TABLE else "",
        "full tiles without mask code" if walk.has_full else "",
        "partial tiles" if walk.strategy is not Strategy.TABLE else "",
    ]
    yield _line("regions", "none: no pair is ever live" if never else ", then ".join(filter(None, regions)))
    if walk.ascending:
        yield _line("order", "last query tiles first: they have the most keys")


def _bound(bound: KeyBound) -> str:
    return f"{print_expr(bound.value)}  ({bound.trend.name.lower()} along the query)"


def _placement(placement: Placement, is_by_query: bool) -> Iterator[str]:
    """The values that have a name, by where they are computed."""
    scopes = (
        ("per program", placement.program),
        ("per query", placement.own if is_by_query else placement.walked),
        ("per key", placement.walked if is_by_query else placement.own),
        ("per pair", placement.tile),
    )
    for scope, statements in scopes:
        yield from (_line(scope, _statement(statement)) for statement in statements)


def _statement(statement: Statement) -> str:
    origin = "" if statement.origin is None else f"  # {statement.origin}"
    return f"{statement.name} = {print_expr(statement.value)}{origin}"


def _line(name: str, text: str) -> str:
    return f"{name:<{INDENT}}" + text.replace("\n", "\n" + " " * INDENT)
