"""The random programs are what the suites that use them rely on."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from census import Census, tile_classes
from compare import assert_rows_close
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from strategies import Case, affine_masks, cases, mask_cases

from attndsl.dense import evaluate_all
from attndsl.ir.nodes import Apply, Load
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.reference import attend, environment, live_pairs

ANY = cases(tensor_offsets=True, weights=True)
RANDOM = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("strategy", [cases(), mask_cases(), affine_masks()], ids=["cases", "masks", "affine"])
def test_a_good_mix_of_tiles(strategy: st.SearchStrategy[Case]) -> None:
    census = Census()

    @seed(0)
    @settings(RANDOM, max_examples=150)
    @given(strategy)
    def draw(case: Case) -> None:
        census.add(live_pairs(case.variant, case.values, **case.grid))

    draw()
    print(census)
    assert min(census.shares.values()) >= 0.2, str(census)


def test_every_operator_is_met() -> None:
    met: Counter[Op] = Counter()

    @seed(1)
    @settings(RANDOM, max_examples=600)
    @given(ANY)
    def draw(case: Case) -> None:
        met.update(node.op for node in postorder(*case.variant) if isinstance(node, Apply))

    draw()
    assert sorted(op.name for op in Op if op not in met) == []


@settings(RANDOM, max_examples=60)
@given(ANY)
def test_loads_of_live_pairs_are_in_bounds(case: Case) -> None:
    loads = [node for node in postorder(case.variant.score, case.variant.mask) if isinstance(node, Load)]
    env = environment(case.variant, case.values, **case.grid)
    live = live_pairs(case.variant, case.values, **case.grid)
    for load in loads:
        for index, size in zip(evaluate_all(load.indices, env), case.values[load.tensor].shape, strict=True):
            assert not bool((live & ((index < 0) | (index >= size))).any())


@settings(RANDOM, max_examples=40)
@given(cases(max_programs=2, tensor_offsets=True, weights=True))
def test_single_precision_agrees_with_double(case: Case) -> None:
    options = {"enable_gqa": True, "q_offset": case.q_offset}
    double = attend(case.variant, case.values, *case.inputs(dtype=torch.float64), **options)
    single = attend(case.variant, case.values, *case.inputs(dtype=torch.float32), **options)
    assert_rows_close(single.out, double.out, 1e-4)
    assert_rows_close(single.lse[..., None], double.lse[..., None], 1e-4)


@settings(RANDOM, max_examples=20)
@given(ANY)
def test_a_case_prints_as_a_program_with_its_sizes(case: Case) -> None:
    text = repr(case)
    assert f"q_len={case.q_len}" in text
    assert "attention random(" in text
    assert all(param.name in text for param in case.variant.params)


def test_tiles_are_counted_at_their_clipped_size() -> None:
    live = torch.zeros(1, 1, 17, 33, dtype=torch.bool)
    live[..., :16, :16] = True
    live[..., 16, 32] = True
    live[..., 3, 20] = True
    assert tile_classes(live)[0, 0].tolist() == [[2, 1, 0], [0, 0, 2]]
