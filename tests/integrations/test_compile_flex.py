"""`ad.flex_attention` inside `torch.compile`: functions in the graph, and the values they close over as its inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import and_masks, create_block_mask

import attndsl as ad
from attndsl.integrations.sources import sources, value_at

pytestmark = [
    pytest.mark.usefixtures("forgotten", "dense_engines"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # torch's compiler warns of torch itself
]

DOCUMENTS = torch.tensor([[0] * 10 + [1] * 14, [0] * 17 + [1] * 7])
FACTOR = 2.0


def causal(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return q >= kv


def documents(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return DOCUMENTS[b, q] == DOCUMENTS[b, kv]


def same(of: Tensor) -> Callable[..., Any]:
    return lambda b, h, q, kv: of[b, q] == of[b, kv]


def window(size: int, *, is_causal: bool = True) -> Callable[..., Any]:
    def mask(b: Any, h: Any, q: Any, kv: Any) -> Any:
        near = (q - kv < size) & (kv - q < size)
        return near & (q >= kv) if is_causal else near

    return mask


def soft_cap(score: Any, b: Any, h: Any, q: Any, kv: Any, cap: float = 3.0) -> Any:
    return cap * torch.tanh(score / cap)


def doubled(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
    return score * FACTOR


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def score_mod(self, score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return score + torch.sigmoid(self.slopes)[h] * (kv - q)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return ad.flex_attention(q, k, v, self.score_mod, causal, return_lse=True)


def inputs(length: int = 24) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(2, 2, length, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]


def attend(q: Tensor, k: Tensor, v: Tensor, score_mod: Any, mask_mod: Any) -> Tensor:
    return ad.flex_attention(q, k, v, score_mod, mask_mod)  # type: ignore[no-any-return]


def dense(q: Tensor, k: Tensor, v: Tensor, score_mod: Any, mask_mod: Any) -> Tensor:
    """Written out, function by function."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    b, h, i, j = torch.meshgrid(*(torch.arange(size) for size in scores.shape), indexing="ij")
    scores = scores if score_mod is None else score_mod(scores, b, h, i, j)
    live = torch.ones_like(scores, dtype=torch.bool) if mask_mod is None else mask_mod(b, h, i, j)
    return torch.where(live, scores, -torch.inf).softmax(-1) @ v


def check(compiled: Callable[..., Any], args: list[Tensor], score_mod: Any = None, mask_mod: Any = None) -> None:
    found, expected = (run(*args, score_mod, mask_mod) for run in (compiled, dense))
    assert_rows_close(found, expected, 1e-9)
    pairs = zip(*(torch.autograd.grad(out.sin().sum(), args) for out in (found, expected)), strict=True)
    for one, other in pairs:
        assert_rows_close(one, other, 1e-9)


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter), counter


MODS = {
    "none": (None, None),
    "mask": (None, causal),
    "documents": (None, documents),
    "both masks": (None, and_masks(causal, documents)),
    "score": (soft_cap, causal),
    "partial": (functools.partial(soft_cap, cap=2.0), causal),
    "variable": (doubled, window(5)),
    "method": (Layer().score_mod, causal),
}


@pytest.mark.parametrize("name", MODS)
def test_functions_are_part_of_the_graph(name: str) -> None:
    compiled, counter = counted(attend)
    check(compiled, inputs(), *MODS[name])
    assert counter.frame_count == 1


def test_lengths_and_numbers_share_a_graph() -> None:
    compiled, counter = counted(attend)
    for length, size in ((24, 3), (20, 5), (17, 7), (22, 9)):
        check(compiled, inputs(length), None, window(size))
    assert counter.frame_count <= 3


def test_what_functions_close_over_is_read_at_each_call() -> None:
    compiled, counter = counted(attend)
    args, of = inputs(), DOCUMENTS.clone()
    check(compiled, args, None, same(of))
    check(compiled, args, None, same(DOCUMENTS.flip(0)))
    of.zero_()
    check(compiled, args, None, same(of))
    assert counter.frame_count == 1


def test_what_decides_a_trace_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = counted(attend)
    args = inputs()
    check(compiled, args, None, window(5))
    check(compiled, args, None, window(5, is_causal=False))
    check(compiled, args, None, and_masks(causal, documents))
    check(compiled, args, None, and_masks(window(4), documents))
    check(compiled, args, doubled, causal)
    monkeypatch.setitem(globals(), "FACTOR", 0.5)
    check(compiled, args, doubled, causal)


def test_parameters_of_a_module_learn() -> None:
    layer, args = Layer(), inputs()
    compiled, counter = counted(layer)
    out, lse = compiled(*args)
    expected = dense(*args, layer.score_mod, causal)
    assert_rows_close(out, expected, 1e-9)
    (found,), (wanted,) = (torch.autograd.grad(one.sin().sum(), [layer.slopes]) for one in (out, expected))
    assert_rows_close(found[None], wanted[None], 1e-9)
    assert lse.shape == out.shape[:3]
    assert counter.frame_count == 1


class Causal:
    def __call__(self, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return q >= kv


def made_inside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length = k.new_full((2,), 11)
    return ad.flex_attention(q, k, v, None, lambda b, h, i, j: j < length[b])  # type: ignore[no-any-return]


OUTSIDE: dict[str, Callable[..., Any]] = {
    "block mask": lambda q, k, v: ad.flex_attention(q, k, v, None, BLOCK_MASK),
    "object": lambda q, k, v: ad.flex_attention(q, k, v, None, Causal()),
    "made inside": made_inside,
}
BLOCK_MASK = create_block_mask(causal, None, None, 24, 24, device="cpu", BLOCK_SIZE=8)


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_out_of_sight_breaks_the_graph(name: str) -> None:
    args = [one.detach().float() for one in inputs()]
    with pytest.raises(torch._dynamo.exc.Unsupported, match="pass the mask function itself"):
        torch.compile(OUTSIDE[name], fullgraph=True, backend="eager")(*args)
    torch._dynamo.reset()
    assert_rows_close(torch.compile(OUTSIDE[name], backend="eager")(*args), OUTSIDE[name](*args), 1e-5)


@pytest.mark.parametrize("name", MODS)
def test_paths_lead_to_what_they_were_found_at(name: str) -> None:
    found = sources(MODS[name])
    assert found is not None
    assert all(value_at(MODS[name], source.path) is source.value for source in found)


def test_no_paths_where_more_may_be_read() -> None:
    assert sources((Causal(),)) is None
    assert sources((lambda: Layer.forward,)) is None
