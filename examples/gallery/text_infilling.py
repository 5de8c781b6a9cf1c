"""Filling blanks of a text: words of a blank see those before them and the whole template, placed by segment."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

blank = ad.attention(mask_mod=ad.masks.causal, name="blank")
template = ad.parse("attention template(lengths: int tensor[B]) { mask kv_idx < lengths[b] }").template
SPACING = 256


def inputs(size: Size, draw: Draw) -> Inputs:
    """Words of one blank, segment 2 of 5, and a template of the segments around it."""
    width, words = size.head_dim, size.length // 2
    weights = {name: draw.normal(size.heads, width, width) / width**0.5 for name in ("to_q", "to_k", "to_v")}
    return {
        "words": draw.normal(size.batch, words, width),
        "template_words": draw.normal(size.batch, size.length, width),
        **weights,
        "segment": torch.arange(size.length) * 5 // size.length * 2,
        "lengths": draw.integers(size.length // 2, size.length + 1, size.batch),
    }


def placed(words: Tensor, segment: Tensor) -> Tensor:
    """Plus sinusoids of a position that counts within the segment, from a start of the segment's own."""
    starts = torch.searchsorted(segment, segment)
    position = (SPACING * segment + torch.arange(len(segment)) - starts).double()
    half = words.shape[-1] // 2
    angles = position[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
    return words + torch.cat((angles.sin(), angles.cos()), -1).to(words)


def run(
    words: Tensor, template_words: Tensor, to_q: Tensor, to_k: Tensor, to_v: Tensor, segment: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder's two attentions; weights are shared between them here, and are not in the model."""
    ad.require(segment.shape == template_words.shape[1:2], "`segment` has a number for each token of the template")
    ad.require((lengths >= 1) & (lengths <= len(segment)), "`lengths` counts tokens of each template, 1 to all")
    ad.require(segment[1:] >= segment[:-1], "`segment` has the segment of each token of the template, in order")
    heads = [
        torch.einsum("bnc,hcd->bhnd", placed(words, torch.full((words.shape[1],), 3)), w) for w in (to_q, to_k, to_v)
    ]
    around = [torch.einsum("bnc,hcd->bhnd", placed(template_words, segment), w) for w in (to_k, to_v)]
    return blank(*heads), template(lengths=lengths)(heads[0], *around)


def formula(
    words: Tensor, template_words: Tensor, to_q: Tensor, to_k: Tensor, to_v: Tensor, segment: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Causal softmax over the blank's words; softmax over all of the template."""
    d, ids = words.shape[-1], segment.tolist()
    offsets = [n - ids.index(number) for n, number in enumerate(ids)]

    def encoded(places: list[int]) -> Tensor:
        rows = []
        for place in places:
            angles = [place / 10000.0 ** (n / (d // 2 - 1)) for n in range(d // 2)]
            rows.append(torch.tensor(angles, dtype=torch.float64))
        table = torch.stack(rows)
        return torch.cat((table.sin(), table.cos()), -1).to(words)

    own = words + encoded([3 * SPACING + n for n in range(words.shape[1])])
    around = template_words + encoded([SPACING * number + offset for number, offset in zip(ids, offsets, strict=True)])
    q = own[:, None] @ to_q
    scores = q @ (own[:, None] @ to_k).mT / d**0.5
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=words.device).tril()
    first = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ (own[:, None] @ to_v)
    padding = torch.arange(len(ids), device=words.device) >= lengths[:, None]
    scores = (q @ (around[:, None] @ to_k).mT / d**0.5).masked_fill(padding[:, None, None], -torch.inf)
    return first, scores.softmax(-1) @ (around[:, None] @ to_v)


ENTRY = Entry(
    systems=("Text Infilling (segment-aware)",),
    paper="Text Infilling",
    year=2019,
    conventions="A position is 256 times the segment plus the offset in it. Blanks are filled one after the other.",
    pitfall="Words of a blank and of the template are two softmaxes, not one; a filled blank joins the template.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The template decoder and segmental sinusoids of the authors' repository",
    refuses={"segment": torch.arange(97).flip(0), "lengths": torch.zeros(2, dtype=torch.int64)},
)
