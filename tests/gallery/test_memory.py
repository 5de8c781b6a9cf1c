"""The memory of a call of the gallery's memory-efficient attention: its inputs' and outputs', not its pairs'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from proof import cast, gradients

from examples.gallery.entry import Draw, entries

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LENGTH = 8192


def kilobytes(name: str) -> int:
    """What the system says of this process."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


@pytest.mark.skipif(not RESET.exists(), reason="the system does not tell a process its peak of memory")
def test_a_training_step_takes_memory_for_tokens_not_for_pairs() -> None:
    entry = entries()["memory_efficient"]
    inputs = entry.inputs(replace(entry.usual, length=LENGTH, head_dim=32), Draw(0))
    given = cast(inputs, torch.float32, learnt=True)
    gradients(entry.run(**{name: value[:, :, :64] for name, value in given.items()}), given)  # builds the kernels
    RESET.write_text("5")
    before = kilobytes("VmRSS")
    found = gradients(entry.run(**given), given)
    grown = kilobytes("VmHWM") - before
    assert all(each.isfinite().all() for each in found.values())
    scores = 4 * LENGTH * LENGTH // 1024
    assert grown < scores / 4, f"{grown} KiB; the scores of one head would be {scores}"
