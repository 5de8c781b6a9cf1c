"""Retrieved documents, which do not see one another, are weighed by their importance in what the question reads."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = ad.parse("""
attention bee_rag(document: int tensor[N], beta: tensor[B, D]) {
    let own = document[kv_idx]
    mask   kv_idx <= q_idx and (own == document[q_idx] or document[q_idx] < 0)
    score  score + beta[b, own] if own >= 0 else score
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    """Five documents, then the question, whose tokens are of document -1."""
    document = torch.arange(size.length) * 6 // size.length
    return {
        **draw.qkv(size),
        "document": torch.where(document < 5, document, -1),
        "importance": draw.normal(size.batch, 5),
        "mean": -0.5,
        "deviation": 1.5,
    }


def run(q: Tensor, k: Tensor, v: Tensor, document: Tensor, importance: Tensor, mean: float, deviation: float) -> Tensor:
    """Importances are brought to one mean and deviation, which grows with the length of the context."""
    ad.require(deviation >= 0, "`deviation` of importances is at least 0")
    shaped("document", document, q.shape[2])
    shaped("importance", importance, len(q), importance.shape[-1])
    ad.require((document < importance.shape[-1]).all(), "`document` of a token is one with an importance, or below 0")
    spread, middle = torch.std_mean(importance, -1, correction=0, keepdim=True)
    ad.require((spread > 0).all(), "`importance` of documents differs, or there is nothing to bring to a deviation")
    return PROGRAM.bee_rag(document=document, beta=mean + deviation * (importance - middle) / spread)(q, k, v)


def formula(
    q: Tensor, k: Tensor, v: Tensor, document: Tensor, importance: Tensor, mean: float, deviation: float
) -> Tensor:
    """softmax_j(q_i k_j / sqrt(d) + beta of j's document)."""
    centred = importance - importance.mean(-1, keepdim=True)
    beta = mean + deviation * centred / centred.square().mean(-1, keepdim=True).sqrt()
    of_keys = torch.where(document >= 0, beta[:, document.clamp(min=0)], 0.0)
    asks = document[:, None] < 0
    live = (asks | (document[:, None] == document)).tril()
    scores = q @ k.mT / q.shape[-1] ** 0.5 + of_keys[:, None, None]
    return scores.masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("BEE-RAG",),
    paper="BEE-RAG: Balanced Entropy Engineering for Retrieval-Augmented Generation",
    year=2025,
    conventions="Causal. The factor is added to scores and belongs to the document of the key, 0 for the question's "
    "tokens; documents are scored by the model itself or by a learned vector, outside.",
    pitfall="A factor of the query, as the index of the paper's equation 5 has it, would cancel: it must be the "
    "key's. Its gradient is a sum over the tokens of a document.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the paper's equation 5 and its text, by which all tokens of a document share their value and documents are "
    "masked from one another",
    refuses={
        "deviation": -1.0,
        "document": [torch.full((97,), 5), torch.zeros(98).int()],
        "importance": [torch.ones(2, 5), torch.ones(1, 5)],
    },
    usual=Size(1, 8, 4096, 128),
)
