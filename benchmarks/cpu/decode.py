"""Few queries against a long cache on a CPU: bytes of keys and values read a second, beside a measured copy.

A copy counts what it reads and what it writes; a read, here torch's sum, is what reading alone reaches. Every output is
checked against a dense float64 result first. Target: 0.8 of the copy at one query and 32k keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import attndsl as ad
from benchmarks.cpu.forward import DTYPES, TOLERANCES, Contender
from benchmarks.cpu.timing import THREADS, ratio, turns
from benchmarks.harness import MISSED, Row, check, publish
from benchmarks.variants import causal

HEADS = 8
KEYS = 32768
QUERIES = (1, 4, 16)
HEAD_DIMS = (64, 128)
COPIED = 2**28
SHARE = 0.8


def measure(queries: int, head_dim: int, dtype: str) -> Row:
    """One row of the table: GB/s of attndsl, of SDPA and of a copy."""
    q = torch.randn(1, HEADS, queries, head_dim).to(DTYPES[dtype])
    k, v = (torch.randn(1, HEADS, KEYS, head_dim).to(DTYPES[dtype]) for _ in range(2))
    attention = ad.attention(mask_mod=causal, name="measured")
    keys = torch.arange(KEYS)
    seen = keys[None] <= torch.arange(KEYS - queries, KEYS)[:, None]
    attend = torch.nn.functional.scaled_dot_product_attention
    source = torch.ones(COPIED // 8)
    target = torch.empty_like(source)
    runs: dict[str, Contender] = {
        "attndsl": lambda: attention(q, k, v, q_offset=KEYS - queries, backend="cpu"),
        "sdpa": lambda: attend(q, k, v, attn_mask=seen),
        "copy": lambda: target.copy_(source),
        "read": lambda: source.sum(),
    }
    expected = attend(q.double(), k.double(), v.double(), attn_mask=seen)
    for name in ("attndsl", "sdpa"):
        check(f"{name}, {queries} queries", runs[name](), expected, TOLERANCES[dtype])
    keys_and_values = k.nbytes + v.nbytes
    moved = {"attndsl": keys_and_values, "sdpa": keys_and_values, "copy": 2 * source.nbytes, "read": source.nbytes}
    times = turns(runs)
    rates = {name: moved[name] / min(each) / 1e6 for name, each in times.items()}
    share, of_read = (ratio(times[name], times["attndsl"]) * keys_and_values / moved[name] for name in ("copy", "read"))
    return {
        "dtype": dtype,
        "head dim": head_dim,
        "queries": queries,
        **{f"{name} GB/s": rate for name, rate in rates.items()},
        "of the copy": share,
        "of the read": of_read,
        MISSED: queries == 1 and share < SHARE,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=THREADS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    rows = [measure(n, head_dim, dtype) for dtype in chosen.dtypes for head_dim in HEAD_DIMS for n in QUERIES]
    publish("cpu_decode", f"{KEYS} keys, few queries, on a CPU, {chosen.threads} threads", rows)


if __name__ == "__main__":
    main()
