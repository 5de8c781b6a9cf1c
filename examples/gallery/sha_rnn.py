"""One attention head for a recurrent network, on stored states that are gated channel by channel and not projected."""

import torch
from torch import Tensor
from torch.nn import functional

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="sha_rnn")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = size.head_dim
    return {
        "states": draw.normal(size.batch, size.length, width),
        "memory": draw.normal(size.batch, size.length // 2, width),
        "weight": draw.normal(width, width) / width**0.5,
        "scales": draw.normal(3, width),
        "over": draw.normal(width, 2 * width) / width**0.5,
    }


def run(states: Tensor, memory: Tensor, weight: Tensor, scales: Tensor, over: Tensor) -> Tensor:
    """The memory stands before the states, so queries start where it ends."""
    q_gate, k_gate, v_gate = torch.sigmoid(scales)
    content, forget = (v_gate @ over).chunk(2)
    q = functional.layer_norm(states @ weight, states.shape[-1:], eps=1e-12) * q_gate
    stored = torch.cat([memory, states], 1)
    k, v = stored * k_gate, stored * (torch.sigmoid(forget) * torch.tanh(content))
    return attention(q[:, None], k[:, None], v[:, None], q_offset=memory.shape[1])[:, 0]


def formula(states: Tensor, memory: Tensor, weight: Tensor, scales: Tensor, over: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V with Q = s(qs) LN(W h), K = s(ks) m, V = f(s(vs)) m, m = (memory; h)."""
    width = states.shape[-1]
    hidden = states @ weight
    spread = hidden.var(-1, unbiased=False, keepdim=True)
    q = (hidden - hidden.mean(-1, keepdim=True)) / (spread + 1e-12).sqrt() * torch.sigmoid(scales[0])
    mixed = torch.sigmoid(scales[2]) @ over
    gate = torch.tanh(mixed[:width]) * torch.sigmoid(mixed[width:])
    m = torch.cat([memory, states], 1)
    future = torch.ones(states.shape[1], m.shape[1], dtype=torch.bool, device=m.device).triu(memory.shape[1] + 1)
    scores = q @ (torch.sigmoid(scales[1]) * m).mT / width**0.5
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ (gate * m)


ENTRY = Entry(
    systems=("SHA-RNN",),
    paper="Single Headed Attention RNN: Stop Thinking With Your Head",
    year=2019,
    conventions="Causal over memory and states. One head; the released ones are 1024 wide, kernels here go to 256.",
    pitfall="The gate of the values is a small network of its own and may change their sign: it is not a sigmoid, as "
    "those of queries and keys are.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the `Attention` of the author's sha-rnn, as several repositories carry it: values are gated by `Overparam`",
    usual=Size(1, 1, 4096, 256),
)
