"""What a warm call costs on tensors so small that hardly anything is computed, beside compiled FlexAttention.

`kernel` is the time inside the native function, `host` the rest of a call: looking at the arguments, making the output,
handing over addresses. Calls come in bursts, in turns with the peer's; figures are medians, ratios of one turn each. A
call that records gradients has no peer, FlexAttention having no backward on a CPU: it is held against its plain call.
Sinks have none either: FlexAttention leaves the sink out. Target: half of FlexAttention's time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attndsl as ad
from attndsl.runtime.native.launch import Ready
from benchmarks.cpu.timing import ratio, turns
from benchmarks.harness import MISSED, Row, check, publish
from benchmarks.variants import Case, alibi, causal, soft_cap, window

LENGTH, HEADS, HEAD_DIM = 16, 2, 16
BURST = 200
SHARE = 0.5
TOLERANCE = 1e-5
SINK = 0.5
Contender = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Mode:
    """How gradients are treated: whether torch records them, and whether the tensors ask for them."""

    name: str
    recording: bool
    learning: bool = False

    def entered(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.recording else torch.no_grad()


MODES = (Mode("no grad", False), Mode("grad enabled", True), Mode("requires grad", True, learning=True))


def measured() -> list[tuple[Case, float | None]]:
    """The variants, each with its sink."""
    named = [
        Case("causal", mask_mod=causal),
        Case("window", mask_mod=window(5)),
        Case("alibi", score_mod=alibi(HEADS, "cpu"), mask_mod=causal),
        Case("soft cap", score_mod=soft_cap(5.0), mask_mod=causal),
    ]
    return [*((case, None) for case in named), (Case("sinks", mask_mod=causal), SINK)]


def contenders(case: Case, sink: float | None, mode: Mode) -> tuple[dict[str, Contender], dict[str, torch.Tensor]]:
    """Both on tensors of the same values, and what each is to give, in float64."""
    q, k, v = torch.randn(3, 1, HEADS, LENGTH, HEAD_DIM)
    learnt = tuple(tensor.clone().requires_grad_(mode.learning) for tensor in (q, k, v))
    logits = None if sink is None else torch.full((HEADS,), sink)
    attention, plain = (
        ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod, normalizer=ad.softmax(sink=value))
        for value in (logits, None)
    )
    assert case.mask_mod is not None
    blocks = create_block_mask(case.mask_mod, None, None, LENGTH, LENGTH, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    runs: dict[str, Contender] = {
        "attndsl": lambda: attention(*learnt),
        "flex": lambda: compiled(q, k, v, score_mod=case.score_mod, block_mask=blocks),
    }
    doubles = [tensor.double() for tensor in (q, k, v)]
    return runs, {"attndsl": attention.reference(*doubles), "flex": plain.reference(*doubles)}


def measure(case: Case, sink: float | None, mode: Mode, seconds: float) -> Row:
    """One row of the table, in microseconds a call."""
    torch._dynamo.reset()
    runs, expected = contenders(case, sink, mode)
    with mode.entered():
        for name, run in runs.items():
            check(f"{name}, {case.name}", run(), expected[name], TOLERANCE)
        inside = _inside(runs["attndsl"])
        found = turns({name: _burst(run) for name, run in {**runs, "kernel": inside}.items()}, seconds=seconds)
    flex, ours, kernel = (median(found[name]) * 1e3 / BURST for name in ("flex", "attndsl", "kernel"))
    share = ratio(found["attndsl"], found["flex"])
    return {
        "variant": case.name,
        "mode": mode.name,
        "flex us": flex,
        "attndsl us": ours,
        "of flex": share,
        "kernel us": kernel,
        "host us": ours - kernel,
        MISSED: not mode.learning and share > SHARE,
    }


def _burst(run: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(BURST):
            run()

    return repeated


def _inside(run: Contender) -> Callable[[], object]:
    """The native function alone, on what a call hands to it, which is kept."""
    handed: list[tuple[Ready, list[torch.Tensor]]] = []

    def listen(ready: Ready, tensors: list[torch.Tensor]) -> None:
        handed.append((ready, tensors))

    with mock.patch.object(Ready, "run", listen):
        run()
    ((ready, tensors),) = handed
    record, kernel = ready.record(tensors), ready.kernel
    # `tensors` stays: the record has their addresses.
    return lambda: (kernel.function(record, kernel.parallel, torch.get_num_threads()), tensors)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variants", nargs="+", help="only these, by name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    for case, sink in measured():
        if chosen.variants is None or case.name in chosen.variants:
            for mode in MODES:
                rows.append(measure(case, sink, mode, chosen.seconds))
                print(rows[-1], flush=True)
    publish("dispatch", f"Warm calls on tiny tensors, {chosen.threads} thread(s)", rows)


if __name__ == "__main__":
    main()
