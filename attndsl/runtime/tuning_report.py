"""What tuning found: for each kernel the tiles that were tried, how long they took, and which is used from now on.

In: measurements. Out: a `TuningReport`, which prints as a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.runtime.tiles import TileShape


@dataclass(frozen=True, slots=True)
class Trial:
    """A tile and the milliseconds its kernel takes with it, or why it has none."""

    tile: TileShape
    ms: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class KernelTuning:
    """One kernel: every tile tried, the default first. `gain` is how many times faster the chosen one is than that,
    measured in turns with it."""

    kernel: str
    trials: tuple[Trial, ...]
    chosen: TileShape
    gain: float

    @property
    def default(self) -> TileShape:
        return self.trials[0].tile


@dataclass(frozen=True, slots=True)
class TuningReport:
    """Every kernel of a call. `rows_checked` of `rows` queries are held against the reference, with all keys; what
    the budget left untried says so in `note`."""

    name: str
    device: str
    kernels: tuple[KernelTuning, ...]
    rows_checked: int
    rows: int
    note: str = ""

    @property
    def chosen(self) -> dict[str, TileShape]:
        """The tile of each kernel from now on."""
        return {kernel.kernel: kernel.chosen for kernel in self.kernels}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        checked = "all" if self.rows_checked == self.rows else f"{self.rows_checked} of {self.rows}"
        yield f"{self.name} on {self.device}, {checked} queries checked against the reference"
        for kernel in self.kernels:
            yield f"  {kernel.kernel}: {_gain(kernel)}"
            yield f"    {'queries':>7}  {'keys':>4}  {'warps':>5}  {'stages':>6}  {'ms':>9}"
            for trial in sorted(kernel.trials, key=_order):
                tile = trial.tile
                sizes = f"{tile.block_m:>7}  {tile.block_n:>4}  {tile.num_warps:>5}  {tile.num_stages:>6}"
                yield f"    {sizes}  {_result(trial)}{_marks(kernel, tile)}"
        if self.note:
            yield f"  {self.note}"


def _order(trial: Trial) -> tuple[bool, float]:
    """Those measured first, fastest first."""
    return trial.ms is None, trial.ms or 0.0


def _result(trial: Trial) -> str:
    return f"{'-':>9}  {trial.why}" if trial.ms is None else f"{trial.ms:>9.4f}"


def _marks(kernel: KernelTuning, tile: TileShape) -> str:
    return ("  <- used" if tile == kernel.chosen else "") + ("  (default)" if tile == kernel.default else "")


def _gain(kernel: KernelTuning) -> str:
    return "the default stays" if kernel.chosen == kernel.default else f"{kernel.gain:.2f} times as fast as the default"
