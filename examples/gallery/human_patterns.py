"""Heads with patterns that people found by looking at trained ones: the same word elsewhere, the same sentence, the
token before, the token after; with scores of their own or, inside the pattern, equal weights."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

FREE, WORD, SENTENCE, BEFORE, AFTER = range(5)

attention = ad.parse("""
attention human_patterns(kind: int tensor[H], words: int tensor[B, N], sentences: int tensor[B, N],
                         strength: float = 1.0) {
    let k = kind[h]
    let neighbours = kv_idx == (q_idx - 1 if k == 3 else q_idx + 1)
    let sentence = sentences[b, q_idx] == sentences[b, kv_idx]
    let word = words[b, q_idx] == words[b, kv_idx]
    mask   k == 0 or (word if k == 1 else sentence if k == 2 else neighbours)
    score  score if k == 0 else strength * score
}
""").human_patterns


def inputs(size: Size, draw: Draw) -> Inputs:
    words = draw.integers(0, 40, size.batch, size.length)
    sentences = draw.integers(0, 15, size.batch, size.length).eq(0).cumsum(1)
    kind = torch.tensor([WORD, SENTENCE, BEFORE, AFTER, FREE, FREE, FREE, FREE])[: size.heads]
    return {**draw.qkv(size), "kind": kind, "words": words, "sentences": sentences}


def run(q: Tensor, k: Tensor, v: Tensor, kind: Tensor, words: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
    shaped("kind", kind, q.shape[1])
    shaped("words", words, len(q), q.shape[2])
    shaped("sentences", sentences, len(q), q.shape[2])
    ad.require(((kind >= FREE) & (kind <= AFTER)).all(), "`kind` is 0 for a free head and 1 to 4 for the patterns")
    patterns = attention(kind=kind, words=words, sentences=sentences)
    return patterns(q, k, v), patterns.bind(strength=0.0)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, kind: Tensor, words: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax within the pattern of each head; the mean of the values within it. A row without a match is 0."""
    places = torch.arange(q.shape[2], device=q.device)
    word, sentence = (ids[:, :, None] == ids[:, None] for ids in (words, sentences))
    before, after = (places == places[:, None] + step for step in (-1, 1))
    everything = torch.ones_like(word)
    patterns = torch.stack([everything, word, sentence, before & everything, after & everything], 1)
    live = patterns[:, kind]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    even = torch.where(kind[:, None, None] == FREE, scores, 0.0)
    own, equal = (each.masked_fill(~live, -1e30).softmax(-1) * live @ v for each in (scores, even))
    return own, equal


ENTRY = Entry(
    systems=("Human-guided attention patterns",),
    paper="Human Guided Exploitation of Interpretable Attention Patterns in Summarization and Topic Segmentation",
    year=2021,
    conventions="Not causal. `kind` of a head: 0 free, 1 same word, 2 same sentence, 3 the token before, 4 the token "
    "after. Equal weights are those of a `strength` of 0.",
    pitfall="A token that no key matches (the first has none before it) has an empty row, which is 0 and not NaN.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "kind": [torch.tensor([0, 1, 2, 5]), torch.zeros(5).int()],
        "words": torch.zeros(2, 96).int(),
        "sentences": torch.zeros(2, 98).int(),
    },
)
