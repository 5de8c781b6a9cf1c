"""The passes in their order, and the loop that runs them with the verifier in between."""

from __future__ import annotations

from collections.abc import Callable

from attndsl.diagnostics import CallError, VerifyError, fail
from attndsl.ir.variant import Variant
from attndsl.ir.verify import verify
from attndsl.passes.fold_constants import fold_constants
from attndsl.passes.mask_dead_scores import mask_dead_scores
from attndsl.passes.normalize_comparisons import normalize_comparisons
from attndsl.passes.permute_tokens import permute_tokens
from attndsl.passes.simplify_arithmetic import simplify_arithmetic
from attndsl.passes.simplify_logic import simplify_logic

Pass = Callable[[Variant], Variant]

PASSES: tuple[tuple[Pass, str], ...] = (
    (permute_tokens, "on coordinates as they were written, of which storage has simpler ones than of positions"),
    (fold_constants, "so that the rules below see numbers where numbers were meant"),
    (simplify_arithmetic, "fewer shapes of integer expressions for the rules on conditions"),
    (simplify_logic, "no `where` on bools and no `not` above a comparison: what is left are comparisons and logic"),
    (mask_dead_scores, "conditions hidden in scores become mask before comparisons are solved"),
    (normalize_comparisons, "comparisons solved for the key are what closed forms are read from"),
)

ROUNDS = 16
"""Repetitions after which the passes are taken to work against each other."""


def run_passes(variant: Variant, after: str | None = None) -> Variant:
    """The variant when no pass changes it any more, or as it is after the named pass has run for the first time."""
    known = [pass_.__name__ for pass_, _ in PASSES]
    if after is not None and after not in known:
        listed = ", ".join(f"`{name}`" for name in known)
        raise fail(CallError, "unknown-pass", f"there is no pass `{after}`", None, f"in order, the passes are {listed}")
    verify(variant, "the front end")
    for _ in range(ROUNDS):
        before = variant
        for pass_, _reason in PASSES:
            variant = _verified(pass_, variant)
            if pass_.__name__ == after:
                return variant
        if variant is before:
            return variant
    raise VerifyError(f"the passes do not come to rest on `{variant.name}`")


def _verified(pass_: Pass, variant: Variant) -> Variant:
    changed = pass_(variant)
    if changed is not variant:
        verify(changed, pass_.__name__)
    return changed
