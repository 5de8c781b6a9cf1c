"""Grids and requirements in both front ends: the same program, the same refusals."""

from __future__ import annotations

import pytest
import torch

import attndsl as ad
from attndsl.frontend.parse import parse
from attndsl.frontend.tracing import trace
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.printer import print_variant
from attndsl.passes.pipeline import run_passes

GRID = ad.grid(t=3, y=4, x=5)


@ad.mask_mod
def near(q_idx, kv_idx, *, reach):  # type: ignore[no-untyped-def]
    ad.require(reach >= 1, 'a "reach" of 0 (or less) shows nothing # at all')
    return (abs(GRID(q_idx).y - GRID(kv_idx).y) < reach) & (GRID(q_idx).t == GRID(kv_idx).t)


TEXT = """
attention near(reach: int) {
    grid g(t = 3, y = 4, x = 5)
    require reach >= 1, "a \\"reach\\" of 0 (or less) shows nothing # at all"
    mask abs(g(q_idx).y - g(kv_idx).y) < reach and g(q_idx).t == g(kv_idx).t
}
"""


def test_coordinates_of_numbers_and_tensors() -> None:
    assert GRID.length == 60
    assert list(GRID(37)) == [1, 3, 2]
    t, y, x = GRID(torch.arange(60))
    assert torch.equal(torch.stack([t, y, x]), torch.cartesian_prod(*map(torch.arange, (3, 4, 5))).T)
    assert repr(GRID) == "grid(t = 3, y = 4, x = 5)"
    with pytest.raises(AttributeError, match="has no axis `z`"):
        _ = GRID(3).z


def test_both_front_ends_make_the_same_program() -> None:
    traced, (written,) = trace(mask_mod=near(reach=2)).variant, parse(TEXT)
    assert traced.roots == written.roots
    assert traced.requirements == written.requirements
    assert len(written.requirements) == 3
    assert fingerprint(run_passes(traced)) == fingerprint(run_passes(written))


def test_requirements_print_and_parse_back() -> None:
    (variant,) = parse(TEXT)
    (again,) = parse(print_variant(variant))
    assert again == variant
    assert run_passes(variant).requirements == variant.requirements


def test_requirements_tell_variants_apart_but_not_their_kernels() -> None:
    (bare,) = parse(TEXT.replace("require reach >= 1", "require reach >= 2"))
    (variant,) = parse(TEXT)
    assert bare != variant
    assert fingerprint(bare) == fingerprint(variant)


def test_a_grid_of_one_axis_and_functions_of_the_body() -> None:
    text = """
    attention a {
        grid line(x = 8)
        def at(i) = line(i).x
        mask at(q_idx) == at(kv_idx) and line(q_idx - 3).x >= 0
    }
    """
    (variant,) = parse(text)
    assert "//" not in print_variant(variant)
    assert len(variant.requirements) == 2, "what is made of `q_idx` requires nothing"


def test_grid_and_require_stay_free_as_names() -> None:
    (variant,) = parse("attention a(grid: int, require: int) { mask grid < require }")
    assert [param.name for param in variant.params] == ["grid", "require"]


def test_a_requirement_keeps_the_scalar_it_alone_reads() -> None:
    def mask(q_idx, kv_idx, *, window, limit):  # type: ignore[no-untyped-def]
        ad.require(window <= limit, "wider than allowed")
        return q_idx - kv_idx < window

    attention = ad.attention(mask_mod=ad.mask_mod(mask)(window=4, limit=8))
    assert attention.plan(16).counts["full"] + attention.plan(16).counts["partial"] == 1
    with pytest.raises(ad.DiagnosticError, match="wider than allowed"):
        attention.bind(limit=3).plan(16)


def test_two_scalars_of_one_name_in_requirements() -> None:
    def mask(q_idx, kv_idx, *, window):  # type: ignore[no-untyped-def]
        ad.require(window >= 1, "too narrow")
        return q_idx - kv_idx < window

    def other(q_idx, kv_idx, *, window):  # type: ignore[no-untyped-def]
        ad.require(window >= 1, "too narrow")
        return kv_idx - q_idx < window

    both = ad.attention(mask_mod=ad.mask_mod(mask)(window=4) & ad.mask_mod(other)(window=2))
    assert len(both.variant.requirements) == 2
    with pytest.raises(ad.DiagnosticError, match="`other_window` is 0"):
        both.bind(**{"other.window": 0}).plan(16)


def test_plain_values_are_required_at_once() -> None:
    ad.require(True, "fine")
    ad.require(torch.tensor([True, True]), "fine")
    for condition in (False, 0, torch.tensor([True, False])):
        with pytest.raises(ad.DiagnosticError, match="not fine"):
            ad.require(condition, "not fine")


def test_mistakes_of_mods_are_reported_together() -> None:
    def mask(q_idx, kv_idx):  # type: ignore[no-untyped-def]
        ad.require(kv_idx < 3, "no")
        ad.require(q_idx, "no")
        return (GRID(q_idx).z == 1) & (GRID(q_idx / 2).x == 0)

    with pytest.raises(ad.DiagnosticError) as caught:
        ad.attention(mask_mod=mask)
    codes = [diagnostic.code for diagnostic in caught.value.diagnostics]
    assert codes == ["requirement-operand", "requirement-not-boolean", "unknown-axis", "grid-index"]
    assert all(diagnostic.span is not None for diagnostic in caught.value.diagnostics)


@pytest.mark.parametrize(
    "sizes", [{}, {"x": 0}, {"x": 2.0}, {"x": True}, dict.fromkeys("abcde", 2), {"y": 2**16, "x": 2**15}]
)
def test_sizes_that_make_no_grid(sizes: dict[str, int]) -> None:
    with pytest.raises(ad.DiagnosticError) as caught:
        ad.grid(**sizes)
    assert caught.value.diagnostics[0].code == "grid-size"
