"""A learned prior over distances, a generalized Gaussian to each head, multiplied into the softmax; of shape 1 it is
ALiBi, of scale 0 no position at all."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = ad.parse("""
attention bayesian_prior(alpha: tensor[H], beta: tensor[H], mu: tensor[H], sharpness: tensor[H]) {
    let distance = abs(kv_idx - q_idx - mu[h]) + 1e-5
    let prior = -alpha[h] * exp(beta[h] * log(distance))
    mask   kv_idx <= q_idx
    score  sharpness[h] * log(q_idx + 1) * (score + prior)
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    """Every other head's prior has its peak on a token."""
    on_token = torch.arange(size.heads) % 2 == 0
    peak = draw.uniform(-3.5, -0.5, size.heads)
    return {
        **draw.qkv(size),
        "alpha": draw.uniform(0.05, 0.5, size.heads),
        "beta": draw.uniform(0.3, 1.2, size.heads),
        "mu": torch.where(on_token, peak.round(), peak),
        "sharpness": draw.uniform(0.2, 0.6, size.heads),
    }


def run(q: Tensor, k: Tensor, v: Tensor, **of_heads: Tensor) -> Tensor:
    for name, value in of_heads.items():
        shaped(name, value, q.shape[1])
    ad.require((of_heads["alpha"] >= 0).all(), "`alpha` scales a penalty, at least 0")
    ad.require((of_heads["beta"] > 0).all(), "`beta` is the shape of a generalized Gaussian, above 0")
    ad.require((of_heads["sharpness"] >= 0).all(), "`sharpness` scales the logarithm of a length, at least 0")
    return PROGRAM.bayesian_prior(**of_heads)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, mu: Tensor, sharpness: Tensor) -> Tensor:
    """softmax_j(s log(n_i) (q_i k_j / sqrt(d) - alpha (|j - i - mu| + eps)^beta)), n_i the number of keys seen."""
    alpha, beta, mu, sharpness = (each[:, None, None] for each in (alpha, beta, mu, sharpness))
    places = torch.arange(q.shape[2], device=q.device)
    distance = (places - places[:, None] - mu).abs() + 1e-5
    seen = (places + 1).to(q.dtype)[:, None]
    scores = sharpness * seen.log() * (q @ k.mT / q.shape[-1] ** 0.5 - alpha * distance**beta)
    return scores.masked_fill(places > places[:, None], -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("GGD-BAM (Bayesian positional prior)",),
    paper="Bayesian Attention Mechanism: A Probabilistic Framework for Positional Encoding and Context Length "
    "Extrapolation",
    year=2025,
    conventions="Causal, with scalable softmax: prior and dot product alike are multiplied by s log n, n being the "
    "number of keys the query sees. Parameters are those of a head.",
    pitfall="The derivative by beta is a multiple of the logarithm of the distance: 1e-5 is added to it, so that it "
    "is finite where a distance equals mu.",
    source="a public implementation of its scalable-softmax form, with a FlexAttention score_mod; there the logarithm "
    "multiplies the prior as well, and its n grows with the query",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "alpha": [torch.full((4,), -1.0), torch.ones(3)],
        "beta": [torch.zeros(4), torch.ones(5)],
        "mu": torch.zeros(5),
        "sharpness": [torch.full((4,), -1.0), torch.ones(5)],
    },
)
