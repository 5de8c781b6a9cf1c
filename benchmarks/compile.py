"""What the kernels use, forward and backward, at their default tiles, compiled ahead of time with no GPU at hand.

Targets: no spilled bytes on cuda:80, cuda:90 and cuda:100, and `wgmma` on cuda:90. Head dims that are no
powers of two are compiled for cuda:90 alone.
"""

from __future__ import annotations

import torch

import attndsl as ad
from benchmarks.harness import MISSED, Row, publish
from benchmarks.variants import Case, cases

TARGETS = ("cuda:80", "cuda:90", "cuda:100")
HEAD_DIMS = (64, 128)
OTHER_HEAD_DIMS = (80, 96, 100, 192)
WARPGROUP_TARGET = "cuda:90"
WARPGROUP_KERNELS = ("forward", "backward_dq", "backward_dkv")


def reports(case: Case, target: str, head_dim: int) -> list[Row]:
    """One row for each kernel of the variant."""
    attention = ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod, name="measured")
    rows: list[Row] = []
    for kernel in attention.compile_for(target, dtype=torch.bfloat16, head_dim=head_dim).kernels:
        needs_wgmma = target == WARPGROUP_TARGET and kernel.name in WARPGROUP_KERNELS
        wgmma = kernel.assembly.count("wgmma.mma_async")
        rows.append(
            {
                "variant": case.name,
                "kernel": kernel.name,
                "target": target,
                "head dim": head_dim,
                "tile": f"{kernel.tile.block_m}x{kernel.tile.block_n}",
                "warps": kernel.tile.num_warps,
                "registers": kernel.registers,
                "spilled bytes": kernel.spilled_bytes,
                "shared bytes": kernel.shared_bytes,
                "wgmma": wgmma,
                MISSED: kernel.spilled_bytes != 0 or (needs_wgmma and wgmma == 0),
            }
        )
    return rows


def main() -> None:
    rows: list[Row] = []
    for case in cases(length=4096, heads=16, device="cpu"):
        for target in TARGETS:
            others = OTHER_HEAD_DIMS if target == WARPGROUP_TARGET else ()
            for head_dim in (*HEAD_DIMS, *others):
                rows.extend(reports(case, target, head_dim))
    publish("compile", "Resources of the emitted kernels, bf16", rows)


if __name__ == "__main__":
    main()
