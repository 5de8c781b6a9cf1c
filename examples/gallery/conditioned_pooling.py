"""Pools a text into one vector by logits of its words alone, each conditioned on more than the word: on what lexicons
say of it, or on the genre and gender an advertisement is meant for."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

ONE = torch.ones(1, dtype=torch.int64)
attention = ad.attention(mask_mod=ad.masks.padding(lengths=ONE), name="conditioned_pooling")


def inputs(size: Size, draw: Draw) -> Inputs:
    batch, length, dim, features = size.batch, size.length, size.head_dim, 8
    return {
        "words": draw.normal(batch, length, dim),
        "lexicon": draw.normal(batch, length, features),
        "target": draw.normal(batch, features),
        "lengths": draw.integers(1, length + 1, batch),
        "queries": draw.normal(size.heads, dim) / dim**0.5,
        "mix": draw.normal(dim + features, dim) / dim**0.5,
        "gate": draw.normal(features, dim),
        "scale": draw.normal(features, dim),
        "shift": draw.normal(features, dim),
    }


def run(
    words: Tensor, lexicon: Tensor, target: Tensor, lengths: Tensor, queries: Tensor, mix: Tensor, gate: Tensor,
    scale: Tensor, shift: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    ad.require(((lengths >= 1) & (lengths <= words.shape[1])).all(), "`lengths` count words, at least 1 of each text")
    of_target = target[:, None].expand(-1, words.shape[1], -1)
    pooled, asked = attention.bind(lengths=lengths), queries[None, :, None].expand(words.shape[0], -1, -1, -1)
    keys = (
        torch.tanh(torch.cat((words, lexicon), -1) @ mix),
        torch.sigmoid(lexicon @ gate) * words,
        (lexicon @ scale) * words + lexicon @ shift,
        torch.tanh(torch.cat((words, of_target), -1) @ mix),
    )
    return tuple(pooled(asked, each[:, None], words[:, None], scale=1.0, enable_gqa=True) for each in keys)


def formula(
    words: Tensor, lexicon: Tensor, target: Tensor, lengths: Tensor, queries: Tensor, mix: Tensor, gate: Tensor,
    scale: Tensor, shift: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """r = sum_j a_j h_j, a = softmax(w . f(h_j, c_j)), f by concatenation, gating, and an affine map."""
    live = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
    top, bottom = mix[: words.shape[-1]], mix[words.shape[-1] :]
    joint = words @ top
    features = (
        (joint + lexicon @ bottom).tanh(),
        words / (1 + (-lexicon @ gate).exp()),
        torch.einsum("bnf,fd,bnd->bnd", lexicon, scale, words) + lexicon @ shift,
        (joint + (target @ bottom)[:, None]).tanh(),
    )
    pooled = []
    for each in features:
        logits = torch.einsum("hd,bnd->bhn", queries, each).masked_fill(~live[:, None], -torch.inf)
        pooled.append((logits.softmax(-1) @ words)[:, :, None])
    return tuple(pooled)


ENTRY = Entry(
    systems=("Lexicon-conditioned attention", "Conditional attention (ad conversion)"),
    paper="Attention-based Conditioning Methods for External Knowledge Integration",
    year=2019,
    conventions="One call in four: a text is one key head, its pooled vectors are the query heads at one query, the "
    "scale is 1. Three results condition on features of each word; the fourth on one vector of the text, as the "
    "multi-task conditional attention of ad creatives does. Biases are left out.",
    pitfall="No query meets the key: the learned vector of the logits is the query, and the condition belongs in the "
    "key.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"lengths": torch.zeros(2, dtype=torch.int64)},
    usual=Size(8, 4, 4096, 128),
)
