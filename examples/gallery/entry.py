"""What an entry of the gallery is: a published system as a few lines of attndsl, beside its formula in plain torch.

In: a module of this folder that defines `ENTRY`. Out: `entries()`, for the tests that prove them, the benchmark that
times them and the pages that show them.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
Inputs = dict[str, Any]
Results = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """How large the tensors of a call are; an entry on a grid takes a grid of about `length` places."""

    batch: int
    heads: int
    length: int
    head_dim: int


SIZES = (Size(2, 4, 97, 32), Size(1, 4, 161, 32))
"""Of the proofs: ragged against tiles of 16, 32, 64 and 128, the second longer than one tile of any target."""

USUAL = Size(1, 8, 4096, 64)


class Draw:
    """Random tensors of one seed, float64: what an entry makes its inputs from."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Of mean 0 and deviation 1."""
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Between `low` and `high`."""
        return low + (high - low) * torch.rand(*shape, generator=self._generator, dtype=torch.float64)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64, from `low` to `high - 1`."""
        return torch.randint(low, high, shape, generator=self._generator)

    def qkv(
        self, size: Size, *, kv_heads: int | None = None, kv_length: int | None = None, v_head_dim: int | None = None
    ) -> Inputs:
        """`q` (B, H, N, D), `k` (B, Hkv, Nk, D) and `v` (B, Hkv, Nk, Dv)."""
        heads = size.heads if kv_heads is None else kv_heads
        keys = size.length if kv_length is None else kv_length
        return {
            "q": self.normal(size.batch, size.heads, size.length, size.head_dim),
            "k": self.normal(size.batch, heads, keys, size.head_dim),
            "v": self.normal(size.batch, heads, keys, size.head_dim if v_head_dim is None else v_head_dim),
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """A system: what it is called in the catalog, where it was published, how it runs here, and what it means.

    `inputs(size, draw)` makes named arguments: float tensors in float64, other tensors, plain numbers. `run(**inputs)`
    is the system through attndsl and `formula(**inputs)` the same from the paper's equations in plain torch; they
    return a tensor or a tuple of tensors. `refuses` holds, for arguments with a domain, a value outside it or a list of
    them. `trained`: whether gradients matter, and are proven. `usual`: the size it is compiled and timed at.
    """

    systems: tuple[str, ...]
    paper: str
    year: int
    conventions: str
    pitfall: str
    inputs: Callable[[Size, Draw], Inputs]
    run: Callable[..., Results]
    formula: Callable[..., Results]
    source: str = ""
    refuses: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    usual: Size = USUAL


def entries() -> dict[str, Entry]:
    """Every entry of the folder, by the name of its module."""
    return {name: module.ENTRY for name, module in _modules().items()}


def text_of(name: str) -> str:
    """The source of an entry."""
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


@cache
def _modules() -> dict[str, ModuleType]:
    names = sorted(found.name for found in pkgutil.iter_modules([str(FOLDER)]))
    modules = {name: importlib.import_module(f"examples.gallery.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "ENTRY")}


@cache
def catalog() -> list[dict[str, Any]]:
    """The published systems attndsl means to run: name, title of the paper, family and the capabilities it takes."""
    systems: list[dict[str, Any]] = json.loads((FOLDER / "catalog.json").read_text(encoding="utf-8"))
    return systems
