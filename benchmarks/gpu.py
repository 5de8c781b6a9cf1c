"""Forward on a GPU against compiled FlexAttention and scaled_dot_product_attention, in TFLOP/s of useful work.

Useful work is what the live pairs need, 4 * head_dim operations each: skipped tiles earn nothing, and neither does
computing masked pairs. Every contender is checked against a dense float64 result before it is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attndsl as ad
from benchmarks.harness import Row, check, medians, publish
from benchmarks.variants import Case, cases

LENGTHS = (2048, 4096, 8192, 16384, 32768)
HEAD_DIMS = (64, 128)
HEADS = 16
TOKENS = 32768
REPEATS = 20
TOLERANCE = 2e-2
CHECKED_ROWS = 256
DENSE_MASK_LIMIT = 8192
Contender = Callable[[], torch.Tensor]


def live(case: Case, rows: torch.Tensor, length: int) -> torch.Tensor:
    """Which keys these queries see, straight from the mask function."""
    keys = torch.arange(length, device=rows.device)
    seen = torch.ones(len(rows), length, dtype=torch.bool, device=rows.device)
    return seen if case.mask_mod is None else seen & case.mask_mod(0, 0, rows[:, None], keys[None])


def live_pairs(case: Case, length: int, device: str) -> int:
    """How many (query, key) pairs of one head contribute."""
    return sum(int(live(case, rows, length).sum()) for rows in torch.split(torch.arange(length, device=device), 1024))


def dense(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows of the first head in float64, by the definition."""
    query, key, value = q[0, 0, rows].double(), k[0, 0].double(), v[0, 0].double()
    score = query @ key.T / query.shape[-1] ** 0.5
    if case.score_mod is not None:
        score = case.score_mod(score, 0, 0, rows[:, None], torch.arange(len(key), device=rows.device)[None])
    score = score.masked_fill(~live(case, rows, len(key)), float("-inf"))
    weight: torch.Tensor = score.softmax(dim=-1)
    return weight @ value


def sdpa(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Contender | None:
    """torch's own attention: its fast paths, a dense mask where affordable, nothing where a score is changed."""
    attend = torch.nn.functional.scaled_dot_product_attention
    length = q.shape[2]
    if case.score_mod is not None:
        return None
    if case.mask_mod is None or case.name == "causal":
        return lambda: attend(q, k, v, is_causal=case.name == "causal")
    if length > DENSE_MASK_LIMIT:
        return None
    mask = live(case, torch.arange(length, device=q.device), length)
    return lambda: attend(q, k, v, attn_mask=mask)


def contenders(
    case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, compiled: Callable[..., torch.Tensor]
) -> dict[str, Contender]:
    """attndsl and its peers on the same tensors."""
    attention = ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod, name="measured")
    length = q.shape[2]
    blocks = None
    if case.mask_mod is not None:
        blocks = create_block_mask(case.mask_mod, None, None, length, length, device=q.device)
    found: dict[str, Contender | None] = {
        "attndsl": lambda: attention(q, k, v, backend="triton"),
        "flex": lambda: compiled(q, k, v, score_mod=case.score_mod, block_mask=blocks),
        "sdpa": sdpa(case, q, k, v),
    }
    return {name: run for name, run in found.items() if run is not None}


def measure(case: Case, length: int, head_dim: int) -> Row:
    """One row of the table: TFLOP/s of each contender, and the gain over FlexAttention."""
    torch._dynamo.reset()
    shape = (TOKENS // length, HEADS, length, head_dim)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    runs = contenders(case, q, k, v, torch.compile(flex_attention, dynamic=False))
    rows = torch.randperm(length, device="cuda")[:CHECKED_ROWS]
    expected = dense(case, q, k, v, rows)
    for name, run in runs.items():
        check(f"{name}, {case.name}, {length}", run()[0, 0, rows], expected, TOLERANCE)
    operations = 4 * head_dim * live_pairs(case, length, "cuda") * shape[0] * HEADS
    times = medians(runs, repeats=REPEATS)
    figures = {f"{name} TFLOP/s": operations / milliseconds / 1e9 for name, milliseconds in times.items()}
    return {
        "variant": case.name,
        "length": length,
        "head dim": head_dim,
        **figures,
        "over flex": times["flex"] / times["attndsl"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device and there is none here: nothing measured")
        return
    torch.manual_seed(0)
    rows: list[Row] = []
    for head_dim in chosen.head_dims:
        for length in chosen.lengths:
            rows.extend(measure(case, length, head_dim) for case in cases(length, HEADS, "cuda"))
    publish("gpu", "Forward, bf16", rows)


if __name__ == "__main__":
    main()
