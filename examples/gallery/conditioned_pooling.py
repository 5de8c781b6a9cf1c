"""Pools a text into one vector by logits of its words alone, each conditioned on more than the word: on what lexicons
say of it, or on the genre and gender an advertisement is meant for."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(mask_mod=ad.masks.padding(lengths=ad.IntTensor["B"]), name="conditioned_pooling")


def inputs(size: Size, draw: Draw) -> Inputs:
    batch, length, dim, features = size.batch, size.length, size.head_dim, 8
    return {
        "words": draw.normal(batch, length, dim),
        "lexicon": draw.normal(batch, length, features),
        "target": draw.normal(batch, features),
        "lengths": draw.integers(1, length + 1, batch),
        "asked": draw.normal(size.heads, dim) / dim**0.5,
        "condition": draw.normal(features, size.heads),
        "mix": draw.normal(dim + features, dim) / dim**0.5,
        "gate": draw.normal(features, dim),
        "scale": draw.normal(features, dim),
        "shift": draw.normal(features, dim),
    }


def run(
    words: Tensor, lexicon: Tensor, target: Tensor, lengths: Tensor, asked: Tensor, condition: Tensor, mix: Tensor,
    gate: Tensor, scale: Tensor, shift: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    shaped("lengths", lengths, len(words))
    shaped("asked", asked, condition.shape[-1], words.shape[-1])
    ad.require(((lengths >= 1) & (lengths <= words.shape[1])).all(), "`lengths` count words, at least 1 of each text")
    pool = attention.bind(lengths=lengths)
    alike = asked[None, :, None].expand(words.shape[0], -1, -1, -1)
    conditioned = (target @ condition)[:, :, None, None] * alike
    pairs = (
        (alike, torch.tanh(torch.cat((words, lexicon), -1) @ mix)),
        (alike, torch.sigmoid(lexicon @ gate) * words),
        (alike, (lexicon @ scale) * words + lexicon @ shift),
        (conditioned, torch.tanh(words)),
    )
    return tuple(pool(q, k[:, None], words[:, None], scale=1.0, enable_gqa=True) for q, k in pairs)


def formula(
    words: Tensor, lexicon: Tensor, target: Tensor, lengths: Tensor, asked: Tensor, condition: Tensor, mix: Tensor,
    gate: Tensor, scale: Tensor, shift: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """r = sum_j a_j h_j, a = softmax of w f(h_j, c_j), f by concatenation, gating, affine map; of (w tanh h_j)(u c)."""
    live = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
    dim = words.shape[-1]
    features = (
        (words @ mix[:dim] + lexicon @ mix[dim:]).tanh(),
        words / (1 + (-lexicon @ gate).exp()),
        torch.einsum("bnf,fd,bnd->bnd", lexicon, scale, words) + lexicon @ shift,
        words.tanh(),
    )
    logits = [torch.einsum("hd,bnd->bhn", asked, each) for each in features]
    logits[3] = logits[3] * torch.einsum("bf,fh->bh", target, condition)[:, :, None]
    weights = (each.masked_fill(~live[:, None], -torch.inf).softmax(-1) for each in logits)
    return tuple(torch.einsum("bhn,bnd->bhd", each, words)[:, :, None] for each in weights)


ENTRY = Entry(
    systems=("Lexicon-conditioned attention", "Conditional attention (ad conversion)"),
    paper="Attention-based Conditioning Methods for External Knowledge Integration",
    year=2019,
    conventions="Four calls of one attention: a text is one key head, its pooled vectors are the query heads at one "
    "query, the scale is 1. Three results condition on features of each word; the fourth is the conditional attention "
    "of ad creatives (2019), whose condition, a vector of the text, makes one factor of all logits. Biases are left "
    "out.",
    pitfall="No query meets the key: the learned vector of the logits is the query, and what a word is conditioned on "
    "belongs in its key.",
    source="the authors' repositories, mourga/affective-attention (whose concatenation leaves out the tanh) and "
    "shunk031/Multi-task-Conditional-Attention-Networks (whose condition multiplies the logits)",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "lengths": [torch.zeros(2).int(), torch.full((2,), 98), torch.ones(3).int()],
        "asked": [torch.zeros(4, 31), torch.zeros(5, 32)],
    },
    usual=Size(8, 4, 4096, 128),
)
