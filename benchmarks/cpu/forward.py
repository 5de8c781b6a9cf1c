"""Forward on a CPU against compiled FlexAttention and scaled_dot_product_attention, in GFLOP/s of useful work.

Useful work is what the live pairs need, 4 * head_dim operations each: skipped tiles earn nothing, and neither does
computing masked pairs. Every contender is checked against a dense float64 result before it is timed.
Targets: over FlexAttention 1.5 in float32 and 2.5 in bfloat16 (geometric means) and never below 1, 4 on the
neighbourhood; dense and causal at least scaled_dot_product_attention. Gains are medians over pairs of runs, one after
the other.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attndsl as ad
from benchmarks.cpu.peak import peak_rate
from benchmarks.cpu.timing import THREADS, product_rate, ratio, turns
from benchmarks.gpu import CHECKED_ROWS, dense, live_pairs
from benchmarks.harness import MISSED, Row, check, publish
from benchmarks.variants import Case, cases, window

LENGTHS = (1024, 4096, 16384)
HEAD_DIMS = (64, 128)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2}
GAINS = {"fp32": 1.5, "bf16": 2.5}
HEADS = 8
SIDE, REACH = 64, 6
NEIGHBOURHOOD = "neighbourhood 13x13"
NEIGHBOURHOOD_GAIN = 4.0
PREFIX = 300
MANY_VARIANTS = 1000
Contender = Callable[[], torch.Tensor]


def neighbourhood(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """On a square grid, the keys at most `REACH` rows and columns away."""
    rows, columns = q_idx // SIDE - kv_idx // SIDE, q_idx % SIDE - kv_idx % SIDE
    return (rows <= REACH) & (rows >= -REACH) & (columns <= REACH) & (columns >= -REACH)


def prefix(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Causal, and the first keys are seen by every query."""
    return (q_idx >= kv_idx) | (kv_idx < PREFIX)


def measured(length: int) -> list[Case]:
    """The variants for tensors of this length."""
    more = [Case("window 256", mask_mod=window(256)), Case("prefix", mask_mod=prefix)]
    if length == SIDE * SIDE:
        more.append(Case(NEIGHBOURHOOD, mask_mod=neighbourhood))
    return [*cases(length, HEADS, "cpu"), *more]


def contenders(
    case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, only: str | None = None
) -> dict[str, Contender]:
    """attndsl and its peers on the same tensors, or one of them."""
    attention = ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod, name="measured")
    # To compile imports torch's compiler, which is FlexAttention's time and nobody else's.
    compiled = torch.compile(flex_attention, dynamic=False) if only in (None, "flex") else flex_attention
    length = q.shape[2]
    blocks = None
    if case.mask_mod is not None and only in (None, "flex"):
        blocks = create_block_mask(case.mask_mod, None, None, length, length, device="cpu")
    attend = torch.nn.functional.scaled_dot_product_attention
    found: dict[str, Contender] = {
        "attndsl": lambda: attention(q, k, v, backend="cpu"),
        "flex": lambda: compiled(q, k, v, score_mod=case.score_mod, block_mask=blocks),
    }
    if case.name in ("dense", "causal"):
        found["sdpa"] = lambda: attend(q, k, v, is_causal=case.name == "causal")
    return found


def measure(case: Case, length: int, head_dim: int, dtype: str) -> Row:
    """One row of the table: GFLOP/s of each contender, and the gain over FlexAttention."""
    torch._dynamo.reset()
    q, k, v = (torch.randn(1, HEADS, length, head_dim).to(DTYPES[dtype]) for _ in range(3))
    runs = contenders(case, q, k, v)
    rows = torch.randperm(length)[:CHECKED_ROWS]
    expected = dense(case, q, k, v, rows)
    for name, run in runs.items():
        check(f"{name}, {case.name}, {length}", run()[0, 0, rows], expected, TOLERANCES[dtype])
    operations = 4 * head_dim * live_pairs(case, length, "cpu") * HEADS
    found = turns(runs)
    times = {name: min(each) for name, each in found.items()}
    gain = ratio(found["flex"], found["attndsl"])
    over_sdpa = ratio(found["sdpa"], found["attndsl"]) if "sdpa" in found else None
    floor = NEIGHBOURHOOD_GAIN if case.name == NEIGHBOURHOOD else 1.0
    return {
        "dtype": dtype,
        "head dim": head_dim,
        "length": length,
        "variant": case.name,
        **{f"{name} GFLOP/s": operations / milliseconds / 1e6 for name, milliseconds in times.items()},
        "of peak": operations / times["attndsl"] / 1e6 / peak_rate(dtype),
        "over flex": gain,
        "over sdpa": over_sdpa,
        MISSED: gain < floor or (over_sdpa is not None and over_sdpa < 1.0),
    }


def means(rows: Sequence[Row]) -> list[Row]:
    """The geometric mean gain of each type."""
    found: list[Row] = []
    for dtype, group in groupby(rows, key=lambda row: str(row["dtype"])):
        gains = [float(row["over flex"]) for row in group]
        mean = math.exp(sum(map(math.log, gains)) / len(gains))
        found.append({"dtype": dtype, "variant": "geometric mean", "over flex": mean, MISSED: mean < GAINS[dtype]})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--variants", nargs="+", help="only these, by name")
    parser.add_argument("--threads", type=int, default=THREADS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    # Past the limit FlexAttention silently runs unfused, which is no comparison.
    torch._dynamo.config.recompile_limit = MANY_VARIANTS
    torch.manual_seed(0)
    rows: list[Row] = []
    for dtype in chosen.dtypes:
        for head_dim in chosen.head_dims:
            for length in chosen.lengths:
                for case in measured(length):
                    if chosen.variants is None or case.name in chosen.variants:
                        rows.append(measure(case, length, head_dim, dtype))
                        print(rows[-1], flush=True)
    rates: list[Row] = [
        {"dtype": dtype, "variant": name, "attndsl GFLOP/s": None, "measured GFLOP/s": rate}
        for dtype in chosen.dtypes
        for name, rate in (("torch matrix product", product_rate(DTYPES[dtype])), ("peak", peak_rate(dtype)))
    ]
    publish("cpu_forward", f"Forward on a CPU, {chosen.threads} threads", [*rows, *means(rows), *rates])


if __name__ == "__main__":
    main()
