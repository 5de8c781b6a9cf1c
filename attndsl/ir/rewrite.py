"""Walking and rewriting expressions. Drivers recurse (without the Python stack), rules never do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.nodes import Expr, children, with_children
from attndsl.ir.nodes import postorder as postorder
from attndsl.ir.variant import Variant

Rule = Callable[[Expr], Expr | None]
"""Looks at one node whose operands are already rewritten; `None` means no match."""

LIMIT = 64
"""Sweeps after which a set of rules is taken to run in circles."""


def sweep(roots: Iterable[Expr], rule: Rule) -> dict[Expr, Expr]:
    """What one bottom-up pass of a rule makes of every node below the roots."""
    moves: dict[Expr, Expr] = {}
    for node in postorder(*roots):
        current = with_children(node, tuple(moves[child] for child in children(node)))
        replacement = rule(current)
        moves[node] = current if replacement is None else replacement
    return moves


def rewrite(root: Expr, rule: Rule) -> Expr:
    """The expression with a rule applied everywhere until it no longer matches anywhere."""
    for _ in range(LIMIT):
        changed = sweep((root,), rule)[root]
        if changed is root:
            return root
        root = changed
    raise VerifyError(f"a rule does not come to rest on {root}")


def rewrite_variant(variant: Variant, rule: Rule) -> Variant:
    """The variant with a rule applied to rest in every stage; spans follow the nodes; unchanged input is returned."""
    for _ in range(LIMIT):
        moves = sweep(variant.roots, rule)
        changed = variant.map(moves.__getitem__)
        if changed is variant:
            return variant
        variant = replace(changed, origins=variant.origins.moved(moves))
    raise VerifyError(f"a rule does not come to rest on `{variant.name}`")


def substitute(root: Expr, values: Mapping[Expr, Expr]) -> Expr:
    """The expression with nodes replaced by others, once (replacements are not looked into)."""
    return substituted((root,), values)[root]


_SWAPPED: dict[Expr, Expr] = {
    build.Q: build.K,
    build.K: build.Q,
    build.Q_LEN: build.KV_LEN,
    build.KV_LEN: build.Q_LEN,
}


def swapped(root: Expr) -> Expr:
    """The expression with queries and keys, and their lengths, in each other's place."""
    return substitute(root, _SWAPPED)


def substituted(roots: Iterable[Expr], values: Mapping[Expr, Expr]) -> dict[Expr, Expr]:
    """What becomes of every node below the roots where nodes are replaced by others, once."""
    moves: dict[Expr, Expr] = {}
    for node in postorder(*roots):
        replacement = values.get(node)
        if replacement is None:
            replacement = with_children(node, tuple(moves[child] for child in children(node)))
        moves[node] = replacement
    return moves


def uses(roots: Iterable[Expr]) -> dict[Expr, int]:
    """How many operands refer to each node; a root counts one use of itself."""
    counts: dict[Expr, int] = {}
    roots = tuple(roots)
    for root in roots:
        counts[root] = counts.get(root, 0) + 1
    for node in postorder(*roots):
        for child in children(node):
            counts[child] = counts.get(child, 0) + 1
    return counts
