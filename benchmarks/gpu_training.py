"""Forward and backward on a GPU against compiled FlexAttention, in TFLOP/s of useful work.

Useful work is what the live pairs need, 4 * head_dim operations each forward and 10 backward: skipped tiles and what is
computed again earn nothing. FlexAttention knows no sinks and no sigmoid, so it gets what its users do: a factor from
its lse, and scores that are the logarithm of the weight. Outputs and all gradients, of learned tensors too, are checked
against float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

import attndsl as ad
from benchmarks.gpu import HEAD_DIMS, HEADS, REPEATS, TOKENS, TOLERANCE, live_pairs
from benchmarks.harness import Row, check, medians, publish
from benchmarks.variants import Case, Mod, causal, documents, window

LENGTHS = (2048, 8192)
CHECKED_LENGTH = 1024
FORWARD_AND_BACKWARD = 14
"""Operations for each live pair and column of the head: two products forward, five backward, two for each number."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Flex = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Training:
    """A variant, its peer on FlexAttention and its blocks, and what is learned beside q, k and v."""

    case: Case
    attention: ad.Attention
    peer: Callable[[Flex, BlockMask | None], Attend]
    learned: tuple[Tensor, ...] = ()


def trainings(length: int, heads: int, device: str) -> list[Training]:
    """Every variant for tensors of this length and head count on this device."""
    generator = torch.Generator().manual_seed(0)

    def weights(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device).requires_grad_()

    slopes, bias, sink = weights(heads), weights(heads, 2 * length - 1), weights(heads)
    plain = [
        Case("causal", mask_mod=causal),
        Case("documents", mask_mod=documents(length, device)),
        Case("window 1024", mask_mod=window(1024)),
    ]
    return [
        *(_scored(case) for case in plain),
        _scored(Case("alibi, learned slopes", _alibi(slopes, length), causal), slopes),
        _scored(Case("learned bias of distances", _relative(bias, length), causal), bias),
        _with_sink(Case("sinks", mask_mod=causal), sink),
        _sigmoid(Case("sigmoid", mask_mod=causal), length),
    ]


def _scored(case: Case, *learned: Tensor) -> Training:
    """A softmax, whatever its scores."""
    attention = ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod, name="measured")

    def peer(flex: Flex, blocks: BlockMask | None) -> Attend:
        return lambda q, k, v: flex(q, k, v, score_mod=case.score_mod, block_mask=blocks)

    return Training(case, attention, peer, learned)


def _alibi(slopes: Tensor, length: int) -> Mod:
    def linear_bias(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + slopes[h] * (kv_idx - q_idx) / length

    return linear_bias


def _relative(bias: Tensor, length: int) -> Mod:
    def by_distance(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[h, q_idx - kv_idx + length - 1]

    return by_distance


def _with_sink(case: Case, sink: Tensor) -> Training:
    attention = ad.attention(mask_mod=case.mask_mod, normalizer=ad.softmax(sink=sink), name="measured")

    def peer(flex: Flex, blocks: BlockMask | None) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, aux = flex(q, k, v, block_mask=blocks, return_aux=AuxRequest(lse=True))
            share = torch.sigmoid(aux.lse - sink[:, None])
            rescaled: Tensor = out * share[..., None].to(out.dtype)
            return rescaled

        return attend

    return Training(case, attention, peer, (sink,))


def _sigmoid(case: Case, length: int) -> Training:
    """Softmax of log f(s) is f(s) over its sum, and the sum is what its lse is the logarithm of."""
    bias = -math.log(length)
    attention = ad.attention(mask_mod=case.mask_mod, normalizer=ad.normalizers.sigmoid(bias=bias), name="measured")

    def log_sigmoid(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return -torch.log(1.0 + torch.exp(-(score + bias)))

    def peer(flex: Flex, blocks: BlockMask | None) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, aux = flex(q, k, v, score_mod=log_sigmoid, block_mask=blocks, return_aux=AuxRequest(lse=True))
            summed: Tensor = out * aux.lse.exp()[..., None].to(out.dtype)
            return summed

        return attend

    return Training(case, attention, peer)


def blocks_of(training: Training, length: int, device: str) -> BlockMask | None:
    """What FlexAttention skips; made once, not timed."""
    mask = training.case.mask_mod
    return None if mask is None else create_block_mask(mask, None, None, length, length, device=device)


def contenders(training: Training, length: int, device: str, flex: Flex, backend: str) -> dict[str, Attend]:
    """attndsl and its peer."""
    attend, blocks = training.attention, blocks_of(training, length, device)
    return {
        "attndsl": lambda q, k, v: attend(q, k, v, backend=backend),
        "flex": training.peer(flex, blocks),
    }


def step(attend: Attend, inputs: Sequence[Tensor], learned: Sequence[Tensor], dout: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of q, k, v and what is learned."""
    out = attend(*inputs)
    return out, *torch.autograd.grad(out, [*inputs, *learned], dout.to(out.dtype))


def check_contenders(training: Training, runs: dict[str, Attend], inputs: Sequence[Tensor], tolerance: float) -> None:
    """Output and gradients of every contender against float64."""
    dout = torch.randn_like(inputs[2])
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = step(training.attention.reference, exact, training.learned, dout)
    for name, attend in runs.items():
        results = step(attend, inputs, training.learned, dout)
        for place, (found, other) in enumerate(zip(results, expected, strict=True)):
            if place > len(inputs):
                found, other = found.reshape(1, -1), other.reshape(1, -1)
            check(f"{name}, {training.case.name}, result {place}", found.detach(), other.detach(), tolerance)


def tensors(batch: int, heads: int, length: int, head_dim: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v."""
    shape = (batch, heads, length, head_dim)
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]


def measure(place: int, length: int, head_dim: int) -> Row:
    """One row of the table: the variant at a place of `trainings`, checked at a short length, timed at a long one."""
    torch._dynamo.reset()
    flex = torch.compile(flex_attention, dynamic=False)
    short = trainings(CHECKED_LENGTH, HEADS, "cuda")[place]
    runs = contenders(short, CHECKED_LENGTH, "cuda", flex, "triton")
    check_contenders(short, runs, tensors(1, HEADS, CHECKED_LENGTH, head_dim, "cuda", torch.bfloat16), TOLERANCE)
    training, batch = trainings(length, HEADS, "cuda")[place], TOKENS // length
    inputs = tensors(batch, HEADS, length, head_dim, "cuda", torch.bfloat16)
    dout = torch.randn_like(inputs[2])
    timed = {
        name: lambda attend=attend: step(attend, inputs, training.learned, dout)
        for name, attend in contenders(training, length, "cuda", flex, "triton").items()
    }
    operations = FORWARD_AND_BACKWARD * head_dim * live_pairs(training.case, length, "cuda") * batch * HEADS
    times = medians(timed, repeats=REPEATS)
    figures = {f"{name} TFLOP/s": operations / milliseconds / 1e9 for name, milliseconds in times.items()}
    sizes = {"variant": training.case.name, "length": length, "head dim": head_dim}
    return {**sizes, **figures, "over flex": times["flex"] / times["attndsl"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu_training needs a CUDA device and there is none here: nothing measured")
        return
    torch.manual_seed(0)
    places = range(len(trainings(CHECKED_LENGTH, HEADS, "cuda")))
    rows = [
        measure(place, length, head_dim)
        for head_dim in chosen.head_dims
        for length in chosen.lengths
        for place in places
    ]
    publish("gpu_training", "Forward and backward, bf16", rows)


if __name__ == "__main__":
    main()
