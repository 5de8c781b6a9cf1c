"""What a backend does for one variant: a forward pass, and the pieces of a backward pass.

A backend implements `Engine`; `runtime.autograd` makes a differentiable call of one. Tensors of rows are
`[B, Hq, Nq]`, float32 (float64 from float64 inputs), contiguous.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from attndsl.analysis.backward import Backward
from attndsl.analysis.streaming import Refusal
from attndsl.ir.nodes import Load
from attndsl.ir.variant import Variant
from attndsl.runtime.arguments import Call
from attndsl.runtime.launch import Rows


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a backward pass is asked for. `loads` are captured elements whose derivatives are wanted pair by pair."""

    q: bool
    k: bool
    v: bool
    loads: tuple[Load, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A backward pass: `rows` has by name what the forward kept, `Backward.sums` and `Backward.rows`, row by row.

    It also has the gradients of row outputs, under the names of these after a `d`: `dlse`, `dentropy`.
    `dout` has the shape and dtype of the output and any strides, 0 among them. Its rows without a live key count for
    nothing, NaN or not.
    """

    rows: Mapping[str, Tensor]
    dout: Tensor
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Chunk:
    """Derivatives `[B, Hq, Nq, len(keys)]` of every pair with a stretch of keys; 0 where a pair is not live."""

    keys: range
    derivatives: Mapping[Load, Tensor]


@dataclass(frozen=True, slots=True)
class Pieces:
    """The gradients of q, k and v, and sums over pairs of the derivatives by captured elements, all in float32.

    Of the elements wanted, each is in the one mapping its `Structure` names: `rows` `[B, Hq, Nq]`, summed over the
    keys; `columns` `[B, Hq, Nk]`, summed over the queries of each query head; `diagonals` `[B, Hq, Nq + Nk - 1]`,
    summed over the pairs of each distance from row to key, both counted from 0, the first of them 1 - Nk; `chunks`,
    which are taken once and in order, a stretch of keys at a time. An element that is nowhere has no derivative.
    """

    dq: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None
    rows: Mapping[Load, Tensor] = field(default_factory=dict)
    columns: Mapping[Load, Tensor] = field(default_factory=dict)
    diagonals: Mapping[Load, Tensor] = field(default_factory=dict)
    chunks: Iterable[Chunk] = ()


class Engine(Protocol):
    """One variant on one backend, for calls of one kind."""

    @property
    def program(self) -> Variant:
        """The variant the kernels compute, after its passes; its loads are those of `Wanted` and `Pieces`."""

    @property
    def derivative(self) -> Backward | Refusal:
        """How the variant is differentiated."""

    def forward(self, call: Call) -> Rows:
        """The output and the rows; `kept` holds the row values that `derivative` reads, names in `sums` left out."""

    def output(self, call: Call) -> Tensor:
        """The output of `forward` alone."""

    def sums(self, call: Call, rows: Mapping[str, Tensor], dout: Tensor) -> Mapping[str, Tensor]:
        """The row sums `Backward.sums` asks for, by name; not called where it asks for none."""

    def backward(self, call: Call, task: Task) -> Pieces:
        """What is wanted, and no more."""
