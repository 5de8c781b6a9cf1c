"""How many tiles a random suite met that were empty, partial or full: a suite that meets only one kind tests little."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


def tile_classes(live: Tensor, tile: int = 16) -> Tensor:
    """0 empty, 1 partial, 2 full for each tile of `[..., Nq, Nk]` pairs, by counting them; edge tiles are clipped."""
    rows, columns = live.shape[-2:]
    padding = (0, -columns % tile, 0, -rows % tile)

    def count(pairs: Tensor) -> Tensor:
        padded = functional.pad(pairs, padding)
        return padded.unflatten(-1, (-1, tile)).unflatten(-3, (-1, tile)).sum((-3, -1))

    alive, all_ = count(live.int()), count(torch.ones_like(live, dtype=torch.int32))
    return torch.where(alive == 0, 0, torch.where(alive == all_, 2, 1))


@dataclass
class Census:
    """Tiles met so far, by class. Each program counts alike, however many tiles it has."""

    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("empty", "partial", "full"), 0.0))
    programs: int = 0

    def add(self, live: Tensor, tile: int = 16) -> None:
        """Count the tiles of one program."""
        classes = tile_classes(live, tile)
        if classes.numel() == 0:
            return
        self.programs += 1
        for value, name in enumerate(self.shares):
            share = float((classes == value).double().mean())
            self.shares[name] += (share - self.shares[name]) / self.programs

    def wants(self, live: Tensor, tile: int = 16) -> bool:
        """Whether a program helps the balance: while a class is below a quarter, one without tiles of it does not."""
        rarest = min(self.shares, key=self.shares.__getitem__)
        if self.programs < 10 or self.shares[rarest] >= 0.25:
            return True
        return bool((tile_classes(live, tile) == list(self.shares).index(rarest)).any())

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in self.shares.items())
        return f"{self.programs} programs: tiles {shares}"
