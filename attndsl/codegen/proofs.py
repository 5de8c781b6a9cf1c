"""Every proof a kernel makes use of, for its header and for people.

In: a `KernelPlan`. Out: its `Proof`s, and the lines of a header that say what is known, where, and what follows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from attndsl.analysis.proofs import Claim, Condition, Fact, Proof
from attndsl.codegen.plan import KernelPlan
from attndsl.ir.nodes import Load
from attndsl.ir.printer import print_expr
from attndsl.ir.rewrite import postorder

WIDTH = 100
UNBROKEN = "\N{NO-BREAK SPACE}"


def proofs_of(plan: KernelPlan) -> tuple[Proof, ...]:
    """The proofs behind a plan."""
    return (*_of_branches(plan), *plan.rows, *(_of_integers(plan) if plan.spec.fast else ()))


def fact_text(fact: Fact) -> str:
    """A fact as one reads it: of those about `q_idx` every query is meant."""
    return fact.value if isinstance(fact, Condition) else print_expr(fact).replace("\n", "; ")


def claim_text(proof: Proof) -> str:
    """What is claimed, and of what."""
    return f"{proof.claim.value} {proof.about}".rstrip()


def header_lines(plan: KernelPlan) -> Iterator[str]:
    """A line or two for each proof. What the launcher checks whatever the variant goes without saying."""
    for proof in proofs_of(plan):
        facts = [fact_text(fact) for fact in proof.facts if not isinstance(fact, Condition)]
        given = f", where {', '.join(fact.replace(' ', UNBROKEN) for fact in facts)}" if facts else ""
        text = f"{claim_text(proof)}{given}: {proof.effect}"
        lines = textwrap.wrap(text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_long_words=False)
        yield from (line.replace(UNBROKEN, " ") for line in lines)


def _of_branches(plan: KernelPlan) -> Iterator[Proof]:
    for condition in plan.variant.moved_to_mask:
        span = plan.variant.origins.first(condition)
        place = "" if span is None else f" ({span.source.base_name}:{span.line})"
        why = "a branch of the score is -inf, and what it is added to is finite"
        yield Proof(Claim.DEAD_BRANCH, (), why, "part of the mask", f"`{print_expr(condition)}`{place}")


def _of_integers(plan: KernelPlan) -> Iterator[Proof]:
    ranges = "coordinates, scalars and captured integers are within ranges that say so"
    yield Proof(Claim.INT32, (Condition.INT32,), ranges, "int32 arithmetic")
    nodes = tuple(postorder(plan.mask, plan.score))
    if any(isinstance(node, Load) for node in nodes):
        yield Proof(Claim.IN_BOUNDS, (Condition.IN_BOUNDS,), ranges, "indices are not clamped")
    natural = dict.fromkeys(f"`{print_expr(node)}`" for node in nodes if node in plan.cheap_division)
    if natural:
        effect = "rounding towards zero is rounding down"
        yield Proof(Claim.NATURAL, (Condition.NATURAL,), "signs follow from operands", effect, ", ".join(natural))
    if plan.scales_late:
        why = "there is no score mod between the scale and the exponential"
        yield Proof(Claim.SCALE, (Condition.POSITIVE_SCALE,), why, "it joins the exponent")
