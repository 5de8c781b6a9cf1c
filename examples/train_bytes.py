"""A language model of bytes that learns its attention too, on the sources of Python's standard library.

Two layers; each query sees the last WINDOW bytes and a sink of its head, and a table of its head adds a learned number
for each distance. The same model is trained twice on the same bytes: through attndsl's kernels in float32, and densely,
by `attn.reference` in float64. Loss by loss the two stay together, and the kernels are done long before.

    python examples/train_bytes.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import attndsl as ad

LENGTH, WIDTH, HEADS, LAYERS, WINDOW = 384, 64, 4, 2, 64
BATCH, STEPS, EVERY = 4, 40, 5
TOLERANCE = 1e-4


@ad.score_mod
def bias_of_distance(score, h, q_idx, kv_idx, *, bias):
    return score + bias[h, q_idx - kv_idx]


class Layer(torch.nn.Module):
    """Attention with a learned sink and a learned bias of distances, then two linear maps; both around a residual."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run = run
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.sink = torch.nn.Parameter(torch.zeros(HEADS))
        self.bias = torch.nn.Parameter(torch.zeros(HEADS, WINDOW))

    def forward(self, x: Tensor) -> Tensor:
        attention = ad.attention(
            mask_mod=ad.masks.sliding_window(window=WINDOW),
            score_mod=bias_of_distance(bias=self.bias),
            normalizer=ad.softmax(sink=self.sink),
        )
        q, k, v = self.qkv(functional.layer_norm(x, x.shape[-1:])).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.run(attention, q, k, v).transpose(1, 2).flatten(-2))
        return x + self.down(functional.gelu(self.up(functional.layer_norm(x, x.shape[-1:]))))


class Model(torch.nn.Module):
    """Bytes to the logits of the bytes after them."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, WIDTH)
        self.layers = torch.nn.Sequential(*(Layer(run) for _ in range(LAYERS)))
        self.head = torch.nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(text)))


def through_kernels(attention: ad.Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v)


def densely(attention: ad.Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention.reference(q, k, v)


def standard_library() -> Tensor:
    """The sources of the modules that are single files, one after the other."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()


def train(model: Model, text: Tensor) -> tuple[list[float], float]:
    """The loss of every step, in bits a byte, and the seconds all steps took."""
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    places = torch.Generator().manual_seed(1)
    losses, start = [], time.perf_counter()
    for _ in range(STEPS):
        starts = torch.randint(len(text) - LENGTH - 1, (BATCH, 1), generator=places)
        batch = text[starts + torch.arange(LENGTH + 1)]
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item() / torch.log(torch.tensor(2.0)).item())
    return losses, time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    text = standard_library()
    model, judge = Model(through_kernels), Model(densely)
    judge.load_state_dict(model.state_dict())
    print(f"{len(text)} bytes of the standard library, {STEPS} steps of {BATCH} x {LENGTH} bytes")
    found, fast = train(model, text)
    exact, slow = train(judge.double(), text)
    for step in range(0, STEPS, EVERY):
        print(f"step {step:>3}: {found[step]:.4f} bits a byte, densely {exact[step]:.4f}")
    error = max(abs(one - other) for one, other in zip(found, exact, strict=True))
    print(f"at most {error:.0e} apart; {fast:.1f} s through kernels, {slow:.1f} s densely in float64")
    for number, layer in enumerate(model.layers):
        sink, bias = layer.sink.abs().max(), layer.bias.abs().max()
        print(f"layer {number} learnt a sink up to {sink:.3f}, a bias up to {bias:.3f}")
    assert error < TOLERANCE
    assert min(found) < 0.8 * found[0]


if __name__ == "__main__":
    main()
