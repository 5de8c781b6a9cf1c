"""Names of parameters: new ones beside those a program has, and programs in which parameters have others.

In: a program, or the names it has. Out: names that are free, and the rewrite rule that gives them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attndsl.ir.nodes import Expr, Load, Scalar, intern
from attndsl.ir.rewrite import Rule
from attndsl.ir.variant import Variant


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with as many underscores behind it as make it one that is not taken."""
    while name in taken:
        name += "_"
    return name


def free_names(variant: Variant, *wanted: str) -> tuple[str, ...]:
    """Names like those wanted that no parameter has."""
    taken = {param.name for param in variant.params}
    return tuple(free_name(name, taken) for name in wanted)


def renaming(names: Mapping[str, str]) -> Rule:
    """The rule that reads parameters under other names."""

    def rule(node: Expr) -> Expr | None:
        match node:
            case Scalar(name=name, dtype=dtype):
                return intern(Scalar, names[name], dtype)
            case Load(tensor=name, indices=indices, dtype=dtype):
                return intern(Load, names[name], indices, dtype)
            case _:
                return None

    return rule
