"""Small programs for the tests of passes, as text on both ends."""

from __future__ import annotations

from attndsl.frontend.parse import parse
from attndsl.ir.printer import print_expr
from attndsl.ir.variant import Variant
from attndsl.ir.verify import verify
from attndsl.passes.pipeline import Pass

PARAMETERS = """window: int, n: int, slope: float,
    doc: int tensor[N], flags: bool tensor[N], bias: tensor[N], lengths: int tensor[B]"""


def program(mask: str = "true", score: str = "score", normalizer: str = "softmax()", weight: str = "weight") -> Variant:
    """A variant with these stages over the parameters above."""
    stages = {"score": score, "mask": mask, "normalizer": normalizer, "weight": weight}
    body = "\n".join(f"    {stage} {text}" for stage, text in stages.items())
    (variant,) = parse(f"attention t({PARAMETERS}) {{\n{body}\n}}")
    return variant


def check_mask(pass_: Pass, before: str, after: str) -> None:
    """A pass makes this mask of that one."""
    _check(pass_, program(mask=before), program(mask=after))


def check_score(pass_: Pass, before: str, after: str) -> None:
    """A pass makes this score of that one."""
    _check(pass_, program(score=before), program(score=after))


def _check(pass_: Pass, before: Variant, expected: Variant) -> None:
    after = pass_(before)
    verify(after, pass_.__name__)
    for got, wanted in zip(after.roots, expected.roots, strict=True):
        assert got is wanted, f"{print_expr(got)}, expected {print_expr(wanted)}"
    assert pass_(after) is after, "a pass leaves nothing for itself to do"
