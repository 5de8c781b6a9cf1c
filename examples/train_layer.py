"""A layer that learns everything about its attention: queries, keys, values, a sink and a bias of distances.

Each query sees the last WINDOW tokens and a sink, a number of its head that takes weight where no key deserves it; a
table of its head adds a learned number for each distance. Three steps of Adam towards a teacher of the same shape, once
through attndsl in float32 and once densely in float64, written with torch alone: losses and weights stay together.

    python examples/train_layer.py

Both passes are emitted kernels: Triton with a GPU or under `TRITON_INTERPRET=1`, C++ elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import attndsl as ad

LENGTH, WIDTH, HEADS, KV_HEADS, WINDOW, STEPS = 40, 32, 4, 2, 12, 3
TOLERANCE = 1e-5

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@ad.score_mod
def bias_of_distance(score, h, q_idx, kv_idx, *, bias):
    return score + bias[h, q_idx - kv_idx]


class Layer(torch.nn.Module):
    """Projections around an attention with a learned sink and a learned bias of distances."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        head_dim = WIDTH // HEADS
        self.attend = attend
        self.q_proj = torch.nn.Linear(WIDTH, HEADS * head_dim, bias=False)
        self.k_proj = torch.nn.Linear(WIDTH, KV_HEADS * head_dim, bias=False)
        self.v_proj = torch.nn.Linear(WIDTH, KV_HEADS * head_dim, bias=False)
        self.out_proj = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.sink = torch.nn.Parameter(torch.randn(HEADS))
        self.bias = torch.nn.Parameter(torch.randn(HEADS, WINDOW))

    def forward(self, x: Tensor) -> Tensor:
        projected = (proj(x).unflatten(-1, (-1, WIDTH // HEADS)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (heads.transpose(1, 2) for heads in projected)
        return self.out_proj(self.attend(q, k, v, self.sink, self.bias).transpose(1, 2).flatten(-2))


def compiled(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, bias: Tensor) -> Tensor:
    """The attention in attndsl; its kernels are made once, whatever the tensors of a call."""
    attention = ad.attention(
        mask_mod=ad.masks.sliding_window(window=WINDOW),
        score_mod=bias_of_distance(bias=bias),
        normalizer=ad.softmax(sink=sink),
        name="learned",
    )
    return attention(q, k, v, enable_gqa=True)


def dense(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, bias: Tensor) -> Tensor:
    """The same by its formula: a sink is one more key, whose value is 0."""
    k, v = (tensor.repeat_interleave(HEADS // KV_HEADS, 1) for tensor in (k, v))
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    seen = (distance >= 0) & (distance < WINDOW)
    score = q @ k.mT / q.shape[-1] ** 0.5 + bias[:, distance.clamp(0, WINDOW - 1)]
    score = torch.cat((score.masked_fill(~seen, -torch.inf), sink[:, None, None].expand(*score.shape[:3], 1)), -1)
    return score.softmax(-1)[..., :-1] @ v


def train(layer: Layer, x: Tensor, target: Tensor) -> list[float]:
    """The losses of a few steps."""
    optimiser, losses = torch.optim.Adam(layer.parameters(), lr=1e-2), []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student, teacher, judge = Layer(compiled), Layer(dense), Layer(dense)
    judge.load_state_dict(student.state_dict())
    x = torch.randn(2, LENGTH, WIDTH)
    with torch.no_grad():
        target = teacher(x)
    found = train(student.to(device), x.to(device), target.to(device))
    expected = train(judge.double(), x.double(), target.double())
    print(f"through emitted kernels, {STEPS} steps of Adam")
    for one, other in zip(found, expected, strict=True):
        print(f"loss {one:.6f}, densely in float64 {other:.6f}")
    exact = dict(judge.named_parameters())
    for name, weight in student.named_parameters():
        error = (weight.detach().cpu() - exact[name].detach()).abs().max().item()
        print(f"{name:<16} {error:.0e} from the float64 run")
        assert error < TOLERANCE, name


if __name__ == "__main__":
    main()
