"""Holds the entropy of attention near what each head learns to be its own, while rows sharpen or blur by
learned temperatures."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = ad.parse("""
attention entropy_guided(temperature: tensor[H, N]) {
    mask   kv_idx <= q_idx
    score  score / temperature[h, q_idx]
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    """The first head is so cold that weights underflow to 0 in float32."""
    shares = draw.uniform(0.2, 0.9, size.heads)
    temperature = draw.uniform(0.3, 2.0, size.heads, size.length)
    temperature[0] /= 10
    return {**draw.qkv(size), "temperature": temperature, "share": shares, "margin": 0.2}


def run(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, share: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """The penalty of a row is (H - c_h log n)^2 where it is further off than the margin."""
    shaped("temperature", temperature, *q.shape[1:3])
    shaped("share", share, q.shape[1])
    ad.require((temperature > 0).all(), "`temperature` of a head and query is above 0")
    ad.require(margin >= 0, "`margin` is a share of the largest entropy, at least 0")
    out, aux = PROGRAM.entropy_guided(temperature=temperature)(q, k, v, return_aux=["entropy"])
    largest = torch.tensor(float(k.shape[2]), device=q.device).log()
    off = aux.entropy - share[:, None] * largest
    return out, torch.where(off.abs() > margin * largest, off * off, 0.0)


def formula(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, share: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """softmax(q k / (t_hi sqrt(d))) V; H_i = -sum_j a_ij log a_ij."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.mT / (q.shape[-1] ** 0.5 * temperature[..., None])).masked_fill(future, -torch.inf)
    logs = torch.where(future, 0.0, scores.log_softmax(-1))
    weights = scores.softmax(-1)
    entropy = -(weights * logs).sum(-1)
    largest = torch.tensor(k.shape[2], dtype=q.dtype).log().item()
    penalty = (entropy - share[:, None] * largest) ** 2
    return weights @ v, penalty * ((entropy - share[:, None] * largest).abs() > margin * largest)


ENTRY = Entry(
    systems=("Entropy-Guided Attention",),
    paper="Entropy-Guided Attention for Private LLMs",
    year=2025,
    conventions="Causal, with a temperature of each head and place of the query. The largest entropy is the "
    "logarithm of the length of the text, for early rows as well; the second result is the penalty of each row.",
    pitfall="The penalty trains scores through the entropy, whose gradient has the logarithm of the weight: a weight "
    "that underflows to 0 must give 0, not NaN.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the paper's algorithm 1; penalties of rows, not of a head's mean entropy, as the authors' "
    "`EntropyRegularization` has them",
    refuses={"margin": -0.1, "temperature": [torch.zeros(4, 97), torch.ones(4, 98)], "share": torch.ones(3)},
)
