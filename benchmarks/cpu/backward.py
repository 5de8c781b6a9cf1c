"""Backward on a CPU against dense autograd and that of scaled_dot_product_attention, in GFLOP/s of useful work.

FlexAttention has no backward on CPUs. Useful work is what the live pairs need, 10 * head_dim operations each: five
products. Gradients of every contender are checked against dense float64 autograd before they are timed, one after the
other. Target: three times as fast as dense autograd, causal at 4096 tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import attndsl as ad
from benchmarks.cpu.forward import DTYPES, HEADS, measured
from benchmarks.cpu.peak import peak_rate
from benchmarks.cpu.timing import THREADS, ratio, turns
from benchmarks.gpu import live_pairs
from benchmarks.harness import MISSED, Row, check, publish
from benchmarks.variants import Case

LENGTHS, HEAD_DIMS = (1024, 4096), (64, 128)
TOLERANCES = {"fp32": 1e-4, "bf16": 4e-2}
GAIN, CAUSAL = 3.0, "causal"
Contender = Callable[[], tuple[Tensor, ...]]


def dense_of(case: Case, length: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention as one writes it down in torch: all scores, a mask, a softmax."""
    b, h = torch.zeros(1, 1, 1, 1, dtype=torch.long), torch.arange(HEADS)[None, :, None, None]
    q_idx, kv_idx = torch.arange(length)[None, None, :, None], torch.arange(length)[None, None, None]
    hidden = None if case.mask_mod is None else ~case.mask_mod(b, h, q_idx, kv_idx)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        score = q @ k.mT * q.shape[-1] ** -0.5
        score = score if case.score_mod is None else case.score_mod(score, b, h, q_idx, kv_idx).to(q.dtype)
        score = score if hidden is None else score.masked_fill(hidden, -torch.inf)
        out: Tensor = score.softmax(-1) @ v
        return out

    return attend


def contenders(case: Case, inputs: tuple[Tensor, Tensor, Tensor], dout: Tensor) -> dict[str, Contender]:
    """The backward of each, of a forward that was done before."""
    attention = ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod)
    forwards: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "attndsl": attention,
        "dense": dense_of(case, dout.shape[2]),
    }
    if case.name in ("dense", CAUSAL):
        attend = torch.nn.functional.scaled_dot_product_attention
        forwards["sdpa"] = lambda q, k, v: attend(q, k, v, is_causal=case.name == CAUSAL)
    return {name: _backward(forward(*inputs), inputs, dout) for name, forward in forwards.items()}


def _backward(out: Tensor, inputs: Sequence[Tensor], dout: Tensor) -> Contender:
    return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)


def measure(case: Case, length: int, head_dim: int, dtype: str) -> Row:
    """One row of the table: GFLOP/s of each contender, and the gains over them."""
    shape = (1, HEADS, length, head_dim)
    q, k, v = (torch.randn(shape).to(DTYPES[dtype]).requires_grad_() for _ in range(3))
    dout = torch.randn(shape).to(DTYPES[dtype])
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in (q, k, v))
    expected = _backward(dense_of(case, length)(*exact), exact, dout.double())()
    runs = contenders(case, (q, k, v), dout)
    for name, run in runs.items():
        for which, found, wanted in zip("qkv", run(), expected, strict=True):
            # Head by head: the gradient of a query that sees one key alone is 0, and no measure of an error.
            title = f"gradient of {which}, {name}, {case.name}, {length}"
            check(title, found[0].flatten(1), wanted[0].flatten(1), TOLERANCES[dtype])
    times = turns(runs)
    operations = 10 * head_dim * live_pairs(case, length, "cpu") * HEADS
    gain = ratio(times["dense"], times["attndsl"])
    least = {name: min(each) for name, each in times.items()}
    return {
        "dtype": dtype,
        "head dim": head_dim,
        "length": length,
        "variant": case.name,
        **{f"{name} GFLOP/s": operations / milliseconds / 1e6 for name, milliseconds in least.items()},
        "of peak": operations / least["attndsl"] / 1e6 / peak_rate(dtype),
        "over dense": gain,
        "over sdpa": ratio(times["sdpa"], times["attndsl"]) if "sdpa" in times else None,
        MISSED: case.name == CAUSAL and length == LENGTHS[-1] and gain < GAIN,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--variants", nargs="+", help="only these, by name")
    parser.add_argument("--threads", type=int, default=THREADS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    for dtype in chosen.dtypes:
        for head_dim in chosen.head_dims:
            for length in chosen.lengths:
                for case in measured(length):
                    if chosen.variants is None or case.name in chosen.variants:
                        rows.append(measure(case, length, head_dim, dtype))
                        print(rows[-1], flush=True)
    publish("cpu_backward", f"Backward on a CPU, {chosen.threads} threads", rows)


if __name__ == "__main__":
    main()
