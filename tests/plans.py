"""Plans against every pair of their mask: what random programs are held to, in the suite and in the fuzzer."""

from __future__ import annotations

from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from strategies import Case
from torch import Tensor
from torch.nn import functional

from attndsl.analysis import bands, quadtree
from attndsl.passes.pipeline import run_passes
from attndsl.reference import live_pairs
from attndsl.runtime.planner import BlockPlan, plan_blocks

BLOCKS = ((16, 16), (64, 64), (128, 128), (256, 256), (128, 64), (64, 256))
NAMES = ("empty", "partial", "full")


def counted(live: Tensor, block: tuple[int, int]) -> Tensor:
    """The classes of tiles by looking at every pair; tiles at the edges are as short as they are."""
    (rows, columns), (height, width) = live.shape[-2:], block

    def count(pairs: Tensor) -> Tensor:
        padded = functional.pad(pairs, (0, -columns % width, 0, -rows % height))
        return padded.unflatten(-1, (-1, width)).unflatten(-3, (-1, height)).sum((-3, -1))

    alive, all_ = count(live.int()), count(torch.ones_like(live, dtype=torch.int32))
    return torch.where(alive == 0, 0, torch.where(alive == all_, 2, 1)).to(torch.int8)


@dataclass
class Findings:
    """What a suite met: the shares of tiles by their true class, and how many of each the analysis told.

    Each program counts alike, however many tiles it has.
    """

    truth: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    found: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    programs: int = 0

    def add(self, found: Tensor, truth: Tensor) -> None:
        if truth.numel() == 0:
            return
        self.programs += 1
        for value, name in enumerate(NAMES):
            self.truth[name] += float((truth == value).double().mean())
            self.found[name] += float(((truth == value) & (found == value)).double().mean())

    @property
    def shares(self) -> dict[str, float]:
        """The share of tiles that truly are of each class."""
        return {name: total / max(1, self.programs) for name, total in self.truth.items()}

    @property
    def told(self) -> dict[str, float]:
        """Of the tiles of each class, the share that the analysis told."""
        return {name: self.found[name] / max(1e-9, total) for name, total in self.truth.items()}

    def check(self, told: float) -> None:
        """Each class must be well represented, and well told: an analysis that calls every tile partial is sound."""
        assert min(self.shares.values()) >= 0.2, f"{self}"
        assert min(self.told.values()) >= told, f"{self}"

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.0%} {name} (told {self.told[name]:.0%})" for name, share in self.shares.items())
        return f"{self.programs} programs: tiles {shares}"


def planned(case: Case, block: tuple[int, int], exact: bool = False) -> tuple[BlockPlan, Tensor, Tensor]:
    """The plan of a case, its classes, and the true ones."""
    where = {"batch": case.batch, "heads": case.q_heads, "q_offset": case.q_offset}
    # Short calls take the paths of long ones: several stretches of tile rows, large tiles that are cut.
    with patch.object(quadtree, "AT_FIRST", 8), patch.object(bands, "ROWS_AT_ONCE", 5):
        plan = plan_blocks(
            run_passes(case.variant), case.values, case.q_len, case.kv_len, block=block, exact=exact, **where
        )
    found, truth = torch.broadcast_tensors(
        plan.classes(), counted(live_pairs(case.variant, case.values, **case.grid), block)
    )
    return plan, found, truth


def check_sound(case: Case, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """No live pair in an empty tile, no dead one in a full tile; counts and `exact` say what the tiles are."""
    plan, found, truth = planned(case, block)
    assert not ((found == 0) & (truth != 0)).any(), "a live pair in an empty tile"
    assert not ((found == 2) & (truth != 2)).any(), "a dead pair in a full tile"
    assert plan.counts == {name: int((plan.classes() == at).sum()) for at, name in enumerate(NAMES)}
    assert not plan.tiles.exact or (found == truth).all(), "a plan that says it is exact is not"
    return found, truth


def check_exact(case: Case, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Settled by evaluation, every tile is what it is."""
    plan, found, truth = planned(case, block, exact=True)
    assert plan.tiles.exact
    assert (found == truth).all(), "an exact plan is not"
    return found, truth


def check_closed_form(case: Case, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bounds alone say what every tile is."""
    plan, found, truth = planned(case, block)
    assert plan.strategy == "closed_form"
    assert (found == truth).all(), "bounds are not exact"
    return found, truth
