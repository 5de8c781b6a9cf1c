"""Speech from text: how far the speech has come is matched to how far the text has, by rotations of both."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate

TEXT = """
attention progress(text: int tensor[B], cap: float = 50.0) {
    require cap > 0.0, "`cap` bounds the scores, above 0"
    score  cap * tanh(score / cap)
    mask   kv_idx < text[b]
}
"""
attention = ad.parse(TEXT).progress


def inputs(size: Size, draw: Draw) -> Inputs:
    words = max(9, size.length // 5)
    return {
        **draw.qkv(size, kv_length=words),
        "speech": draw.integers(size.length // 2, size.length + 1, size.batch),
        "text": draw.integers(words // 2, words + 1, size.batch),
        "cap": 5.0,
        "progress": 2000.0,
    }


def placed(x: Tensor, lengths: Tensor, progress: float) -> Tensor:
    """Turned by 0 at the first real token and by `progress` at the last, not at all behind it."""
    place = torch.arange(x.shape[2]).expand(len(lengths), -1).double()
    spread = place / (lengths[:, None] - 1).clamp(min=1) * progress
    return rotate(x, spread.masked_fill(place >= lengths[:, None], 0.0))


def run(q: Tensor, k: Tensor, v: Tensor, speech: Tensor, text: Tensor, cap: float, progress: float) -> Tensor:
    ad.require(text.shape == speech.shape == q.shape[:1], "`text` and `speech` have a length for each utterance")
    ad.require(0 <= progress < float("inf"), "`progress` is the position of the last token, at least 0")
    ad.require((text >= 1) & (text <= k.shape[2]), "`text` counts tokens of each text, 1 to all")
    ad.require((speech >= 1) & (speech <= q.shape[2]), "`speech` counts frames of each utterance, 1 to all")
    return attention(text=text, cap=cap)(placed(q, speech, progress), placed(k, text, progress), v)


def formula(q: Tensor, k: Tensor, v: Tensor, speech: Tensor, text: Tensor, cap: float, progress: float) -> Tensor:
    """softmax(cap tanh(<R(a) q, R(b) k> / (cap sqrt(d)))) v, a and b the progress of speech and text."""
    d, outputs = q.shape[-1], []
    rates = 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64, device=q.device) / d)
    for one, other, values, frames, words in zip(q, k, v, speech.tolist(), text.tolist(), strict=True):
        turned = []
        for x, real in ((one, frames), (other, words)):
            at = torch.arange(x.shape[1], device=q.device).double() * progress / max(real - 1, 1)
            angle = torch.where(torch.arange(x.shape[1], device=q.device) < real, at, 0.0)[:, None] * rates
            turned.append(torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle))
        scores = (turned[0] @ turned[1][:, :words].mH).real / d**0.5
        outputs.append((cap * (scores / cap).tanh()).softmax(-1).to(v.dtype) @ values[:, :words])
    return torch.stack(outputs)


ENTRY = Entry(
    systems=("T5Gemma-TTS (PM-RoPE)",),
    paper="T5Gemma-TTS Technical Report",
    year=2026,
    conventions="Positions are fractions of the real lengths times `progress`; padding is no key, and not turned.",
    pitfall="Positions are large and not whole: angles of thousands lose their digits in float32.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The cross-attention and position ids of the released model's code",
    refuses={
        "cap": 0.0,
        "progress": -1.0,
        "text": torch.zeros(2, dtype=torch.int64),
        "speech": torch.zeros(2, dtype=torch.int64),
    },
    usual=Size(1, 8, 4096, 256),
)
