"""Video, text and location streams each read through a few agents; text and location say which of the video's count."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.weight_mod
def amplified(weight, b, h, q_idx, kv_idx, *, gates=ad.Tensor["B, H, Q, K"]):
    return weight * (1.0 + gates[b, h, q_idx, kv_idx]) / 3.0


plain = ad.attention(name="ref_atom_net_agents")
guided = ad.attention(weight_mod=amplified, name="ref_atom_net_video")


def inputs(size: Size, draw: Draw) -> Inputs:
    """The first axis is the stream: video, text, location."""
    tokens = (3, size.batch, size.heads, size.length, size.head_dim)
    named = {name: draw.normal(*tokens) for name in "qkv"}
    return {**named, "agents": draw.normal(3, size.batch, size.heads, 12, size.head_dim)}


def run(q: Tensor, k: Tensor, v: Tensor, agents: Tensor) -> Tensor:
    """Agents read their stream, tokens read the agents; maps of tokens and agents are small enough to be made."""
    ad.require(agents.shape[0] == 3, "`agents` has one set for each of three streams")
    flat = (each.flatten(0, 1) for each in (agents, k, v))
    read = plain(*flat).unflatten(0, (3, -1))
    others = plain(*(each[1:].flatten(0, 1) for each in (q, agents, read))).unflatten(0, (2, -1))
    maps = (q[1:] @ agents[1:].mT / q.shape[-1] ** 0.5).softmax(-1).sum(0)
    gates = maps.softmax(-1) + maps.softmax(-2)
    return (guided.bind(gates=gates)(q[0], agents[0], read[0]) + others.sum(0)) / 3


def formula(q: Tensor, k: Tensor, v: Tensor, agents: Tensor) -> Tensor:
    """mean_s M_s (softmax(A_s K_s^T) V_s), M_s = softmax(Q_s A_s^T); the video's is the mean of M, c M and t M.

    c and t are the softmaxes over agents and over tokens of the sum of the other streams' maps.
    """
    scale = q.shape[-1] ** -0.5
    maps = [(q[s] @ agents[s].mT * scale).softmax(-1) for s in range(3)]
    guide = maps[1] + maps[2]
    raised = guide.exp()
    channel, token = raised / raised.sum(-1, keepdim=True), raised / raised.sum(-2, keepdim=True)
    maps[0] = torch.stack([maps[0], channel * maps[0], token * maps[0]]).mean(0)
    values = [(agents[s] @ k[s].mT * scale).softmax(-1) @ v[s] for s in range(3)]
    return torch.stack([weights @ value for weights, value in zip(maps, values, strict=True)]).mean(0)


ENTRY = Entry(
    systems=("RefAtomNet (agent attention fusion)",),
    paper="Referring Atomic Video Action Recognition",
    year=2024,
    conventions="Streams have equally many tokens and agents. The fusion of the maps from queries to agents; agent "
    "tokens are fused the same way before, which is not here. Rows of the video's weights sum to less than 1.",
    pitfall="The streams are not merged by one softmax: the other streams' maps multiply weights that are normalised "
    "already, along agents and along tokens.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="a published reading of the paper with its equations of the cross-stream fusion",
    refuses={"agents": torch.zeros(2, 2, 4, 12, 32)},
)
