"""Attention between a text and a question in both directions, from one score of three terms."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = """
def trilinear(score, row, column) = score + row + column
def is_best(score) = 1.0 if score == row_max(score) else 0.0

attention bidaf(of_context: tensor[B, T], of_question: tensor[B, J], lengths: int tensor[B]) {
    score  trilinear(score, of_context[b, q_idx], of_question[b, kv_idx])
    mask   kv_idx < lengths[b]
}

attention bidaf_best(of_context: tensor[B, T], of_question: tensor[B, J], lengths: int tensor[B]) {
    score       trilinear(score, of_context[b, q_idx], of_question[b, kv_idx])
    mask        kv_idx < lengths[b]
    normalizer  is_best(score) / row_sum(is_best(score))
}
"""
programs = ad.parse(PROGRAM)
every_word, best_word = programs.bidaf, programs.bidaf_best
WORDS = 40
"""Of a question, padding included."""


def inputs(size: Size, draw: Draw) -> Inputs:
    return {
        "context": draw.normal(size.batch, size.length, size.head_dim),
        "question": draw.normal(size.batch, WORDS, size.head_dim),
        "weight": draw.normal(3, size.head_dim) / size.head_dim**0.5,
        "lengths": draw.integers(5, WORDS + 1, size.batch),
    }


def run(context: Tensor, question: Tensor, weight: Tensor, lengths: Tensor) -> Tensor:
    """The score w (h; u; h * u) is a scaled dot product, a bias of the row and a bias of the column.

    A row's maximum with its gradient: the score of the word that the weights of `best_word` pick out.
    """
    shaped("weight", weight, 3, context.shape[-1])
    shaped("lengths", lengths, len(question))
    ad.require(((lengths >= 1) & (lengths <= question.shape[1])).all(), "`lengths` count words, at least 1 of each")
    given = {"of_context": context @ weight[0], "of_question": question @ weight[1], "lengths": lengths}
    q, k = (context * weight[2])[:, None], question[:, None]
    attended = every_word.bind(**given)(q, k, k, scale=1.0)[:, 0]
    columns = torch.cat([k, given["of_question"][:, None, :, None]], -1)
    best = best_word.bind(**given)(q, k, columns, scale=1.0)[:, 0]
    most = (q[:, 0] * best[..., :-1]).sum(-1) + best[..., -1] + given["of_context"]
    summary = most.softmax(-1)[:, None] @ context
    return torch.cat([context, attended, context * attended, context * summary], -1)


def formula(context: Tensor, question: Tensor, weight: Tensor, lengths: Tensor) -> Tensor:
    """S_tj = w (h_t; u_j; h_t * u_j); context to question by rows of S, question to context by its row maxima."""
    pairs = torch.einsum("btd,bjd,d->btj", context, question, weight[2])
    scores = (context @ weight[0])[:, :, None] + (question @ weight[1])[:, None, :] + pairs
    padding = torch.arange(question.shape[1], device=question.device) >= lengths[:, None]
    scores = scores.masked_fill(padding[:, None], -torch.inf)
    attended = scores.softmax(-1) @ question
    summary = (scores.amax(-1).softmax(-1)[:, :, None] * context).sum(1, keepdim=True)
    return torch.cat([context, attended, context * attended, context * summary], -1)


ENTRY = Entry(
    systems=("BiDAF",),
    paper="Bidirectional Attention Flow for Machine Comprehension",
    year=2016,
    conventions="One head of width 2d. Padding of the question is unseen; texts are not padded here. The score is not "
    "divided by the square root of the width.",
    pitfall="The term of the row alone cancels in the softmax over the question but decides the softmax over the text: "
    "the row maximum has to contain it.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "lengths": [torch.zeros(2).int(), torch.full((2,), WORDS + 1), torch.ones(3).int()],
        "weight": torch.zeros(2, 32),
    },
    usual=Size(1, 1, 4096, 200),
)
