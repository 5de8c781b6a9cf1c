"""Retrieval of long documents: terms see a chunk around themselves, documents packed one behind the other."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = """
attention chunks(doc: int tensor[N], place: int tensor[N], chunk: int = 40, overlap: int = 5) {
    require chunk >= 1, "`chunk` counts terms, at least 1"
    require overlap >= 0, "`overlap` counts terms on either side of a chunk, at least 0"
    let first = place[q_idx] // chunk * chunk
    let there = place[kv_idx]
    mask  doc[q_idx] == doc[kv_idx] and there >= first - overlap and there < first + chunk + overlap
}
"""
attention = ad.parse(TEXT).chunks


def inputs(size: Size, draw: Draw) -> Inputs:
    lengths = torch.tensor([size.length // 2, size.length // 5, size.length - size.length // 2 - size.length // 5])
    given = draw.qkv(Size(1, size.heads, size.length, size.head_dim))
    return {**given, "lengths": lengths, "chunk": 20, "overlap": 3}


def run(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, chunk: int, overlap: int) -> Tensor:
    ad.require(lengths >= 1, "`lengths` counts terms of each document, at least 1")
    ad.require(int(lengths.sum()) == q.shape[2], "`lengths` of the documents do not add up to the terms")
    doc = torch.repeat_interleave(lengths)
    place = torch.arange(len(doc)) - (lengths.cumsum(0) - lengths)[doc]
    return attention(doc=doc, place=place, chunk=chunk, overlap=overlap)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, chunk: int, overlap: int) -> Tensor:
    """Each document by itself, each chunk of it over the chunk and its overlap."""
    outputs, begin = [], 0
    for length in lengths.tolist():
        for start in range(0, length, chunk):
            near = slice(begin + max(0, start - overlap), begin + min(start + chunk + overlap, length))
            rows = q[:, :, begin + start : begin + min(start + chunk, length)]
            outputs.append((rows @ k[:, :, near].mT / q.shape[-1] ** 0.5).softmax(-1) @ v[:, :, near])
        begin += length
    return torch.cat(outputs, 2)


ENTRY = Entry(
    systems=("TKL local self-attention",),
    paper="Local Self-Attention over Long Text for Efficient Document Retrieval",
    year=2020,
    conventions="Chunks count from the start of each document; the released sizes are 40 terms and 5 on either side.",
    pitfall="Chunks that overlap hold terms twice: as a mask over packed documents each term is there once.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="Chunks and overlap of the authors' matchmaker code, as its later models of chunked documents have them",
    refuses={"chunk": 0, "overlap": -1, "lengths": torch.tensor([3])},
)
