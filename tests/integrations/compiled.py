"""Attentions and a layer for `torch.compile`, and how what is compiled is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from compare import assert_rows_close
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import attndsl as ad

DOCUMENTS = torch.tensor([[0] * 20 + [1] * 40, [0] * 33 + [1] * 27])
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
FIRST_KEYS = ad.aux.mass(lambda kv_idx: kv_idx < 4)
OWN_DOCUMENT = ad.aux.mass(lambda b, q_idx, kv_idx: DOCUMENTS[b, q_idx] == DOCUMENTS[b, kv_idx])


@ad.mask_mod
def window(q_idx: Any, kv_idx: Any, *, size: int) -> Any:
    return (kv_idx <= q_idx) & (q_idx - kv_idx < size)


@ad.mask_mod
def documents(b: Any, q_idx: Any, kv_idx: Any) -> Any:
    return DOCUMENTS[b, q_idx] == DOCUMENTS[b, kv_idx]


class Layer(nn.Module):
    """Learns a bias; a function of it is captured, and so are documents."""

    def __init__(self, *, binds: bool = False) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.3, -0.2, 0.1, 0.0]))
        self.register_buffer("documents", DOCUMENTS.clone())
        self.project = nn.Linear(16, 16)
        self.binds = binds

        def score_mod(score: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return score + torch.sigmoid(self.slopes)[h] * (kv_idx - q_idx)

        def same(b: Any, q_idx: Any, kv_idx: Any) -> Any:
            return self.documents[b, q_idx] == self.documents[b, kv_idx]

        self.attend = ad.attention(mask_mod=window(size=30) & ad.mask_mod(same), score_mod=score_mod)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attend = self.attend.bind(table=self.slopes, documents=self.documents) if self.binds else self.attend
        out, aux = attend(self.project(q), k, v, return_aux=True)
        return out * torch.sigmoid(aux.lse)[..., None], aux.entropy, aux.max_score


class Calling(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return self.function(q, k, v)


def inputs(length: int, *, heads: int = 4, kv_heads: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, heads, length, 16), (2, kv_heads, length, 16), (2, kv_heads, length, 16)]
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes]


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result, those of an `Aux` in the order of its fields."""
    match result:
        case Tensor():
            return [result]
        case None:
            return []
        case ad.Aux():
            return flat((result.lse, result.max_score, result.entropy, result.mass))
        case _:
            return [tensor for one in result for tensor in flat(one)]


def results(function: Callable[..., Any], args: list[Any], learnt: tuple[Tensor, ...] = ()) -> list[Tensor]:
    """What a function returns, and the gradients of its arguments and of what it has learnt."""
    found = flat(function(*args))
    loss = sum((one * torch.linspace(0, 1, one.numel()).view_as(one)).sum() for one in found if one.requires_grad)
    leaves = [one for one in (*args, *learnt) if isinstance(one, Tensor) and one.requires_grad]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [*(one.detach() for one in found), *(one for one in gradients if one is not None)]


def check(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == other.dtype
        assert_rows_close(one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1]), tolerance, f"{position}")


def counted(function: Callable[..., Any], backend: str = "aot_eager") -> tuple[Callable[..., Any], Any]:
    """A function that is compiled in one graph or not at all, and what counts its compilations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


ATTENTIONS = {
    "window": ad.attention(mask_mod=window(size=9)),
    "documents": ad.attention(mask_mod=documents),
    "sink": ad.attention(mask_mod=window(size=9), normalizer=ad.softmax(sink=SLOPES)),
    "sigmoid": ad.attention(mask_mod=window(size=9), normalizer=ad.normalizers.sigmoid()),
    "entmax": ad.attention(mask_mod=window(size=9), normalizer=ad.normalizers.entmax15()),
    "decay": ad.attention(mask_mod=window(size=9), weight_mod=ad.weights.decay(log_gamma=-SLOPES)),
}
GRID = ad.grid(y=8, x=8, tile=(4, 4))
ATTENTIONS["grid"] = ad.attention(
    mask_mod=lambda q_idx, kv_idx: abs(GRID(q_idx).y - GRID(kv_idx).y) + abs(GRID(q_idx).x - GRID(kv_idx).x) < 4,
    normalizer=ad.normalizers.entmax15(),
)
WINDOW = ATTENTIONS["window"]
