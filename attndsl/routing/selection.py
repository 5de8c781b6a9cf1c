"""Which blocks a router takes, by their scores.

In: scores `[B, H, query blocks, key blocks]`, -inf where a block must not be taken, and which blocks are kept whatever
their scores. Out: a bool map of what is taken; the router adds what is kept.

Best first; ties go to the lowest block. A NaN counts as -inf: a block whose score is either is not taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, fail
from attndsl.routing.scores import order


class Selection(Protocol):
    """What a router asks which blocks to take."""

    def __call__(self, scores: Tensor, kept: Tensor) -> Tensor: ...


class Over(StrEnum):
    ROW = "row"
    HEAD = "head"


class Weights(StrEnum):
    SOFTMAX = "softmax"
    MINMAX = "minmax"


@dataclass(frozen=True, slots=True)
class TopK:
    """The k best of the blocks that are not kept already."""

    k: int

    def __call__(self, scores: Tensor, kept: Tensor) -> Tensor:
        values, places = order(scores.masked_fill(kept, -torch.inf))
        taken = values[..., : self.k] > -torch.inf
        return torch.zeros_like(kept).scatter_(-1, places[..., : self.k], taken)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Blocks whose score is at least `least`."""

    least: float

    def __call__(self, scores: Tensor, kept: Tensor) -> Tensor:
        return (scores >= self.least) & (scores > -torch.inf)


@dataclass(frozen=True, slots=True)
class Cumulative:
    """The fewest best blocks whose weights sum to `mass` of all; see `cumulative`."""

    mass: float
    over: Over
    weights: Weights

    def __call__(self, scores: Tensor, kept: Tensor) -> Tensor:
        candidates = scores > -torch.inf
        if scores.numel() == 0:
            return candidates
        weights = softmax(scores) if self.weights is Weights.SOFTMAX else _minmax(scores)
        if self.over is Over.ROW:
            return fewest(weights, candidates, self.mass)
        return fewest(weights.flatten(2), candidates.flatten(2), self.mass).view(weights.shape)


def fewest(weights: Tensor, candidates: Tensor, mass: float) -> Tensor:
    """The fewest candidates along the last axis whose weights sum to `mass` of all; all of them where that is 1."""
    if weights.numel() == 0 or mass == 1:
        return candidates
    # What must not be taken comes last, behind candidates of weight 0.
    values, places = order(torch.where(candidates, weights, -1.0))
    values = values.clamp(min=0.0)
    before = values.cumsum(-1) - values
    taken = before < mass * values.sum(-1, keepdim=True)
    return torch.zeros_like(candidates).scatter_(-1, places, taken) & candidates


def top_k(k: int) -> TopK:
    """The k best blocks of every row, beside those kept anyway; all of them where there are fewer."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 0:
        raise fail(CallError, "bad-selection", f"`top_k` takes the number of blocks, got {k!r}")
    return TopK(k)


def threshold(least: float) -> Threshold:
    """Every block whose score is at least `least`."""
    if not isinstance(least, int | float) or least != least:
        raise fail(CallError, "bad-selection", f"`threshold` takes a number, got {least!r}")
    return Threshold(float(least))


def cumulative(mass: float, *, over: str = "row", weights: str = "softmax") -> Cumulative:
    """The fewest best blocks that together hold `mass` of the weight of all that may be taken; 1 takes all of them.

    `weights`: "softmax" of each row's scores, or "minmax", which maps the scores of a batch and head linearly to 0..1
    (all to 1 where they are equal). `over`: "row" counts every row's mass apart; "head" puts the rows of a batch and
    head together, so that rows differ in how many blocks they get. Weights and sums are float64. Blocks that are kept
    anyway count in the mass like any other.
    """
    check_mass(mass)
    if over not in tuple(Over) or weights not in tuple(Weights):
        message = f"there is no `cumulative` with over={over!r}, weights={weights!r}"
        help_ = 'over is "row" or "head", weights "softmax" or "minmax"'
        raise fail(CallError, "bad-selection", message, help=help_)
    return Cumulative(float(mass), Over(over), Weights(weights))


def check_mass(mass: float) -> None:
    """Refuse what is no share."""
    if not (isinstance(mass, int | float) and 0 < mass <= 1):
        raise fail(CallError, "bad-selection", f"`mass` is {mass!r}, expected more than 0 and at most 1")


def softmax(scores: Tensor) -> Tensor:
    """Over each row, in float64; a row that may take nothing has weights 0, and scores of +inf share the mass."""
    scores = scores.double()
    most = scores.amax(-1, keepdim=True)
    finite = torch.exp(scores - torch.where(most.isfinite(), most, 0.0))
    weights = torch.where(most == torch.inf, (scores == torch.inf).double(), finite)
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _minmax(scores: Tensor) -> Tensor:
    """Over each batch and head, in float64; what must not be taken has weight 0."""
    scores = scores.double()
    candidates = scores > -torch.inf
    most = scores.amax((-1, -2), keepdim=True)
    least = torch.where(candidates, scores, torch.inf).amin((-1, -2), keepdim=True)
    span = most - least
    weights = torch.where(span > 0, (scores - least) / span, 1.0)
    return torch.where(most == torch.inf, (scores == torch.inf).double(), torch.where(candidates, weights, 0.0))
