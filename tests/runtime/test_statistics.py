"""What a call may be asked for beside its output."""

from __future__ import annotations

import gc

import torch

import attndsl as ad
from attndsl.codegen.plan import Emitted, Specialisation
from attndsl.compiler import Compilation
from attndsl.runtime.arguments import check_call
from attndsl.runtime.statistics import wanted_statistics

STATISTIC = torch.zeros(1, 1, 3)


def test_everything_is_what_there_is() -> None:
    wanted = wanted_statistics(True)
    assert wanted is not None
    aux = wanted.of(None, STATISTIC, {})
    assert aux.lse is None
    assert aux.max_score is STATISTIC
    assert aux.entropy is None
    assert wanted.of(STATISTIC, STATISTIC, {"entropy": STATISTIC}).entropy is STATISTIC


def test_masses_come_in_the_order_they_were_asked_for() -> None:
    wanted = wanted_statistics([ad.aux.mass(lambda kv_idx: kv_idx < 4), "lse", ad.aux.mass(lambda kv_idx: kv_idx > 4)])
    assert wanted is not None
    found = {"mass_0": torch.zeros(1), "mass_1": torch.ones(1)}
    aux = wanted.of(STATISTIC, STATISTIC, found)
    assert aux.mass == (found["mass_0"], found["mass_1"])
    assert aux.max_score is None


def test_a_predicate_written_anew_compiles_nothing_anew() -> None:
    """Nor does one of another number or tensor: it is the same program, of which one compilation is kept."""
    attention = ad.attention(mask_mod=lambda q_idx, kv_idx: kv_idx <= q_idx)
    q = torch.zeros(1, 1, 20, 16)
    call = check_call(attention.variant, {}, q, q, q, scale=None, enable_gqa=False, q_offset=0)
    compilation = Compilation(attention.variant)

    def kernel(last: int, table: torch.Tensor) -> Emitted:
        masses = [ad.aux.mass(lambda kv_idx: kv_idx < last), ad.aux.mass(lambda kv_idx: table[kv_idx] > 4)]
        wanted = wanted_statistics(masses)
        assert wanted is not None
        extended = compilation.with_sums(wanted.sums(call).sums)
        return extended.kernel("row_outputs", Specialisation("fp32", 16, 16))

    first = kernel(4, torch.arange(20))
    gc.collect()
    assert all(kernel(last, torch.arange(20 + last)) is first for last in (4, 5, 6))
