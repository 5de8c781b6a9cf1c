"""Planning what to skip: against FlexAttention's `create_block_mask` at 16k tokens, and alone at lengths beyond it.

Targets at 16k, in tiles of 128: sliding window and packed documents 1000 times faster in a hundredth of the memory, 2-D
neighbourhood and radial attention 100 times faster. At 1M tokens: no table and under 1 ms in a call for closed forms,
under 50 ms and 50 MB for packed documents; under 200 ms for radial attention over a video of 100k tokens. Every figure
is of a plan from scratch, summaries of captured tensors and the kernel's table included; tracing, done once, is not.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import attndsl as ad
from attndsl.analysis.bounds import Strategy
from attndsl.runtime.arguments import check_call
from attndsl.runtime.facts import FactBook
from attndsl.runtime.planner import BlockPlan
from attndsl.runtime.tables import build_table
from benchmarks.harness import MISSED, Row, medians, publish
from benchmarks.variants import Mod, documents, window

LENGTH = 2**14
LONG = 2**20
VIDEO = (25, 64, 64)
BLOCK = (128, 128)
REPEATS = 15
PEER_REPEATS = 3
MB = 1e6


@dataclass(frozen=True, slots=True)
class Contest:
    """One mask, as attndsl and as FlexAttention write it, with the least ratios of time and memory."""

    name: str
    attention: ad.Attention
    peer: Mod
    faster: float
    smaller: float


def document_ids(length: int) -> Tensor:
    """Packed documents of uneven length, 512 tokens on average; the same ones every time."""
    ends = torch.randint(128, 1024, (4 * length // 512 + 4,), generator=torch.Generator().manual_seed(0)).cumsum(0)
    return torch.searchsorted(ends, torch.arange(length), right=True).int()


def contests() -> list[Contest]:
    """The masks both can plan."""
    canvas, video = ad.grid(y=128, x=128), ad.grid(t=16, y=32, x=32)
    return [
        Contest("window 1024", ad.attention(mask_mod=window(1024)), window(1024), 1000, 100),
        Contest("documents", ad.attention(mask_mod=documents(LENGTH, "cpu")), documents(LENGTH, "cpu"), 1000, 100),
        Contest(
            "neighbourhood 13x13",
            ad.attention(mask_mod=ad.masks.neighborhood(canvas, window=13)),
            neighbourhood(128, 128, 13),
            100,
            1,
        ),
        Contest("radial 16x32x32", ad.attention(mask_mod=ad.masks.radial(video)), radial(16, 1024), 100, 1),
    ]


def neighbourhood(height: int, width: int, size: int) -> Mod:
    """Neighbourhood attention on a canvas: a clamped window of constant size along both axes."""

    def near(place: Tensor, key: Tensor, length: int) -> Tensor:
        start = (place - size // 2).clamp(0, length - size)
        return (key >= start) & (key < start + size)

    def mask(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        along_y = near(q_idx // width, kv_idx // width, height)
        return along_y & near(q_idx % width, kv_idx % width, width)

    return mask


def radial(frames: int, tokens: int, block: int = 128) -> Mod:
    """Radial attention for video, the width of each distance between frames looked up; every query sees frame 0."""
    bits = tokens.bit_length()
    groups = [distance.bit_length() for distance in range(frames)]
    widths = torch.tensor([tokens, tokens, *(max(2**bits >> group, block) for group in groups[2:])])
    steps = torch.tensor([max((block << group) >> bits, 1) for group in groups])

    def mask(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        distance = (q_idx // tokens - kv_idx // tokens).abs()
        near = (q_idx % tokens - kv_idx % tokens).abs() <= widths[distance]
        return (near & (distance % steps[distance] == 0)) | (kv_idx < tokens)

    return mask


def plan(attention: ad.Attention, length: int) -> BlockPlan:
    """A plan from scratch, and the table a kernel walks where it needs one."""
    attention.invalidate()
    found = attention.plan(length, block=BLOCK)
    if found.walk is Strategy.TABLE:
        build_table(found.tiles, found.tiling, torch.device("cpu"))
    return found


def classes(block_mask: BlockMask) -> Tensor:
    """The tiles FlexAttention lists: 0 empty, 1 partial, 2 full."""
    counts, indices = block_mask.kv_num_blocks, block_mask.kv_indices
    full_counts, full_indices = block_mask.full_kv_num_blocks, block_mask.full_kv_indices
    assert full_counts is not None
    assert full_indices is not None
    found = torch.zeros(indices.shape, dtype=torch.int8)
    for kind, some, where in ((1, counts, indices), (2, full_counts, full_indices)):
        listed = torch.arange(where.shape[-1]) < some[..., None]
        found.scatter_reduce_(3, where.long(), (listed * kind).to(torch.int8), "amax")
    return found


def growth(run: Callable[[], object]) -> float:
    """The most memory a run holds beyond what was held before, in bytes, as the system or Python counts it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    run()
    by_system = _resident("VmHWM") - before
    tracemalloc.start()
    run()
    by_python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(max(by_system, by_python, 1))


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def compared(contest: Contest) -> Row:
    """One mask planned by both, the tiles compared first."""

    def ours() -> BlockPlan:
        return plan(contest.attention, LENGTH)

    def peer() -> BlockMask:
        return create_block_mask(contest.peer, 1, 1, LENGTH, LENGTH, device="cpu", BLOCK_SIZE=BLOCK)

    if not torch.equal(ours().classes(), classes(peer())):
        raise SystemExit(f"{contest.name}: the two plans differ")
    times = medians({"attndsl": ours}, repeats=REPEATS) | medians({"flex": peer}, repeats=PEER_REPEATS, warmup=0)
    memory = growth(ours), growth(peer)
    row = _row(contest.name, LENGTH, ours(), times["attndsl"], memory[0])
    del row["tokens"], row["strategy"]
    row |= {"flex ms": times["flex"], "flex MB": memory[1] / MB}
    row |= {"faster": times["flex"] / times["attndsl"], "smaller": memory[1] / memory[0]}
    row[MISSED] = row["faster"] < contest.faster or row["smaller"] < contest.smaller
    return row


def alone(name: str, attention: ad.Attention, length: int, most_ms: float, most_mb: float | None = None) -> Row:
    """One mask at a length `create_block_mask` does not reach."""
    times = medians({"attndsl": lambda: plan(attention, length)}, repeats=REPEATS)
    row = _row(name, length, plan(attention, length), times["attndsl"], growth(lambda: plan(attention, length)))
    row[MISSED] = row["ms"] > most_ms or (most_mb is not None and row["MB"] > most_mb)
    return row


def in_a_call(name: str, attention: ad.Attention, length: int) -> Row:
    """What a closed form costs the host in a call: the facts its kernel is chosen by, and no table."""
    q = torch.empty(1, 1, length, 16, dtype=torch.bfloat16)
    compilation, values = attention._compilation, attention._values()
    book = FactBook()
    call = check_call(compilation.source, values, q, q, q, scale=None, q_offset=0)
    times = []
    for _ in range(100):
        start = time.perf_counter()
        book.of(compilation.source, compilation.program, call)
        times.append((time.perf_counter() - start) * 1e3)
    found = attention.plan(length, block=BLOCK)
    row: Row = {"mask": name, "tokens": length, "strategy": found.strategy, "table bytes": found.nbytes}
    row |= {"ms": statistics.median(times), "first ms": times[0]}
    row[MISSED] = row["ms"] > 1.0 or found.nbytes != 0
    return row


def _row(name: str, length: int, found: BlockPlan, ms: float, memory: float) -> Row:
    row: Row = {"mask": name, "tokens": length, "strategy": found.strategy, "bytes": found.nbytes}
    return row | {"skipped": found.sparsity, "ms": ms, "MB": memory / MB}


def main() -> None:
    publish("plan", "What is skipped, planned from scratch beside create_block_mask", list(map(compared, contests())))
    closed = {
        "causal": ad.attention(mask_mod=ad.masks.causal),
        "window 1024": ad.attention(mask_mod=ad.masks.sliding_window(window=1024)),
        "sink 4, window 1024": ad.attention(mask_mod=ad.masks.sinks_and_window(sink=4, window=1024)),
    }
    publish("plan_calls", "Closed forms in a call", [in_a_call(name, some, LONG) for name, some in closed.items()])
    rows = [alone(name, attention, LONG, most_ms=50.0, most_mb=50.0) for name, attention in closed.items()]
    packed = ad.attention(mask_mod=ad.masks.document(doc=document_ids(LONG)) & ad.masks.causal)
    rows.append(alone("documents", packed, LONG, most_ms=50.0, most_mb=50.0))
    frames, height, width = VIDEO
    video = ad.attention(mask_mod=ad.masks.radial(ad.grid(t=frames, y=height, x=width)))
    rows.append(alone("radial 25x64x64", video, frames * height * width, most_ms=200.0))
    publish("plan_long", "What is skipped at lengths create_block_mask does not reach", rows)


if __name__ == "__main__":
    main()
