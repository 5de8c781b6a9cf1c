"""Thresholds of rows in native kernels: every dtype and shape of call, and what tiles below them leave out."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_rows_close
from engines import DenseEngine
from hypothesis import HealthCheck, Phase, given, seed, settings
from launches import INTERPRETING, Program, check, check_case, check_walks, inputs, program
from normalizers import solved, weight_mod
from strategies import Case, cases
from torch import Tensor

import attndsl as ad

pytestmark = pytest.mark.skipif(INTERPRETING, reason="native kernels run in the other tier")

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
N = ad.normalizers
SOLVING = {"sparsemax": N.sparsemax, "entmax15": N.entmax15, "topk": lambda: N.topk(5)}
EXPENSIVE = settings(deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))

RELU = "max(score - t, 0.0)"
SUMS_TO_ONE = "total = 1.0, lower = -20.0, upper = 20.0"
CAUSAL = "mask kv_idx <= q_idx"


@ad.mask_mod
def mostly_causal(q_idx, kv_idx):
    """Rows without a key, partial tiles and full ones."""
    return (kv_idx <= q_idx) & (q_idx != 7)


@ad.weight_mod
def decayed(weight, h, q_idx, kv_idx, *, rate):
    return weight * ad.exp(-(rate[h] * rate[h]) * (q_idx - kv_idx)) + 0.01


def subject_of(name: str, **mods: object) -> Program:
    attention = ad.attention(**{"mask_mod": mostly_causal, **mods}, normalizer=SOLVING[name]())
    return Program(attention.variant, attention._values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SOLVING)
def test_every_dtype(name: str, dtype: torch.dtype) -> None:
    sizes = {"heads": 4, "kv_heads": 2, "q_len": 150, "kv_len": 170, "head_dim": 40, "v_head_dim": 24}
    # Which scores are the largest is a matter of bits.
    batch = 1 if name == "topk" else 2
    check(subject_of(name), *inputs(**sizes, batch=batch, dtype=dtype), statistics=name != "topk")


@pytest.mark.parametrize("queries", [1, 3, 4, 5, 16, 17])
def test_few_queries_against_many_keys(queries: int) -> None:
    tensors = inputs(heads=4, kv_heads=2, q_len=queries, kv_len=4500, head_dim=32)
    check(subject_of("sparsemax"), *tensors, q_offset=4500 - queries)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (1, 1), (63, 64), (64, 65), (129, 1)], ids=str)
def test_lengths_at_the_edges_of_tiles(sizes: tuple[int, int]) -> None:
    q_len, kv_len = sizes
    check(subject_of("entmax15"), *inputs(q_len=q_len, kv_len=kv_len), q_offset=torch.tensor([2]))


@pytest.mark.as_users
def test_every_walk_finds_the_same_threshold() -> None:
    subject = subject_of("entmax15")
    check_walks(subject, subject.call(*inputs(heads=2, q_len=150)))


def test_beside_block_tables() -> None:
    kept = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.4
    tensors = inputs(heads=2, q_len=150, dtype=torch.float64)
    attention = ad.attention(mask_mod=mostly_causal, normalizer=N.sparsemax())
    how = {"blocks": ad.BlockTable(kept, block=(64, 64))}
    found, exact = attention(*tensors, backend="cpu", **how), attention.reference(*tensors, **how)
    assert_rows_close(found, exact, 1e-10)


@pytest.mark.parametrize("name", SOLVING)
def test_weight_mods_on_top(name: str) -> None:
    rate = torch.randn(2, generator=torch.Generator().manual_seed(0))
    check(subject_of(name, weight_mod=decayed(rate=rate)), *inputs(heads=2, q_len=100))


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_thresholds_to_the_last_bits_of_doubles(name: str) -> None:
    subject = subject_of(name)
    call = subject.call(*inputs(heads=2, q_len=150, dtype=torch.float64))
    kept, wanted = (rows.kept for rows in (subject.run(call, fast=True), DenseEngine(subject.variant).forward(call)))
    live = torch.arange(150) != 7
    assert kept.keys() == wanted.keys() >= {"tau_i"}
    torch.testing.assert_close(kept["tau_i"][..., live], wanted["tau_i"][..., live], rtol=0, atol=2e-15)


PROGRAMS = {
    "between constants": f"normalizer max(score - row_solve(t: {RELU}, {SUMS_TO_ONE}), 0.0)",
    "times the score": f"normalizer row_solve(t: {RELU}, {SUMS_TO_ONE}) * exp(score)",
    "of one another": f"""
        let a = row_solve(t: {RELU}, {SUMS_TO_ONE})
        let c = row_solve(t: {RELU} * max(score - a, 0.0), total = 0.5, lower = a - 3.0, upper = 20.0)
        normalizer max(score - c, 0.0)
    """,
    "then a sum": f"""
        let a = row_solve(t: {RELU}, {SUMS_TO_ONE})
        normalizer max(score - a, 0.0) / (row_sum(max(score - a, 0.0) ** 2.0) + 0.1)
    """,
    "by the key": f"normalizer max(score - row_solve(t: {RELU} * abs(bias[kv_idx]), {SUMS_TO_ONE}), 0.0)",
    "below a shifted maximum": """
        let c = score + bias[kv_idx]
        let m = row_max(c)
        normalizer max(c - row_solve(t: max(c - t, 0.0), total = 1.0, lower = m - 1.0, upper = m), 0.0)
    """,
    "by the row": """
        let m = row_max(score)
        let c = 0.5 + abs(rows[h, q_idx])
        normalizer max(score - row_solve(t: max(score - t, 0.0), total = c, lower = m - c, upper = m), 0.0)
    """,
    "no less will do": f"normalizer max(score - row_solve(t: {RELU}, total = 1.0, lower = -20.0, upper = -15.0), 0.0)",
    "any will do": f"normalizer max(score - row_solve(t: {RELU}, total = 9.0e9, lower = -2.0, upper = 15.0), 0.0)",
    "at an angle": f"score score + log(float(kv_idx)) normalizer max(score - row_solve(t: {RELU}, {SUMS_TO_ONE}), 0.0)",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_thresholds_of_all_kinds(name: str) -> None:
    text, generator = PROGRAMS[name], torch.Generator().manual_seed(0)
    params = {"bias": "tensor[N]", "rows": "tensor[H, N]"}
    values = {"bias": torch.randn(170, generator=generator), "rows": torch.randn(2, 150, generator=generator)}
    used = {param: values[param] for param in params if f"{param}[" in text}
    declared = ", ".join(f"{param}: {params[param]}" for param in used)
    subject = program(f"attention t({declared}) {{ {CAUSAL} {text} }}", **used)
    check(subject, *inputs(heads=2, q_len=150, kv_len=170))


@pytest.mark.parametrize("end", ["total", "lower", "upper"])
def test_an_end_that_is_no_number(end: str) -> None:
    ends = {"total": "1.0", "lower": "-20.0", "upper": "20.0", end: "x[q_idx]"}
    listed = ", ".join(f"{name} = {value}" for name, value in ends.items())
    text = f"attention t(x: tensor[N]) {{ {CAUSAL} normalizer max(score - row_solve(t: {RELU}, {listed}), 0.0) }}"
    x = torch.full((40,), float(ends["lower" if end == "lower" else "upper"].replace("x[q_idx]", "0.5")))
    x[5] = math.nan
    subject = program(text, x=x)
    rows = subject.run(subject.call(*inputs()), fast=True)
    assert rows.out.isnan().all(-1)[0, 0].nonzero().flatten().tolist() == [5]


def test_vectors_of_queries_that_see_nothing_of_a_tile() -> None:
    """Beside others that do: they keep no scores of it."""
    for dtype in (torch.float32, torch.float64):
        tensors = inputs(batch=2, q_len=200, head_dim=32, dtype=dtype)
        check(program(f"mask abs(q_idx // 8 - kv_idx // 8) <= 1 {PROGRAMS['between constants']}"), *tensors)


def test_tiles_below_all_thresholds_take_no_part() -> None:
    """Only their last keys have weight: what the others hold cannot show, and what shows is exact."""
    q, k, v = inputs(q_len=70, kv_len=300, head_dim=16)
    attention = ad.attention(score_mod=lambda score, kv_idx: score + kv_idx, normalizer=N.sparsemax())
    clean = attention(q, k, v, backend="cpu")
    v[:, :, :192] = math.nan
    assert torch.equal(attention(q, k, v, backend="cpu"), clean)
    v[:, :, 299] = math.nan
    assert bool(attention(q, k, v, backend="cpu").isnan().any())


def test_the_number_of_threads_changes_no_bit() -> None:
    usual, attention = torch.get_num_threads(), ad.attention(mask_mod=mostly_causal, normalizer=N.entmax15())
    tensors, found = inputs(heads=3, q_len=200), list[Tensor]()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(attention(*tensors, backend="cpu"))
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(one, found[0]) for one in found)


@seed(0)
@settings(EXPENSIVE, max_examples=5)
@given(cases(row=lambda scope: (solved(scope), weight_mod(scope)), max_programs=2, max_length=200, tensor_offsets=True))
def test_random_programs(case: Case) -> None:
    check_case(case)
