"""A pretrained teacher gives its attention alone: the student copies the teacher's maps, or learns to make the same."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(name="attention_transfer")


def inputs(size: Size, draw: Draw) -> Inputs:
    shape = (size.batch, size.heads, size.length, 2 * size.head_dim)
    return {"teacher_q": draw.normal(*shape), "teacher_k": draw.normal(*shape), **draw.qkv(size)}


def run(teacher_q: Tensor, teacher_k: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copied values, the student's own output, and the cross-entropy of every row of the two maps.

    The cross-entropy is lse_S - sum_j P_T[i, j] s_S[i, j]; the sum is a product of the student's query with what the
    teacher's weights make of the student's keys, so no map is ever stored: the keys are further columns of the values.
    """
    shaped("teacher_q", teacher_q, *q.shape[:3], teacher_q.shape[-1])
    shaped("teacher_k", teacher_k, *k.shape[:3], teacher_q.shape[-1])
    packed = attention(teacher_q.detach(), teacher_k.detach(), torch.cat([v, k], -1))
    copied, keys = packed.split([v.shape[-1], k.shape[-1]], -1)
    own, aux = attention(q, k, v, return_aux=["lse"])
    return copied, own, aux.lse - (q * keys).sum(-1) / q.shape[-1] ** 0.5


def formula(teacher_q: Tensor, teacher_k: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P_T V, P_S V and -sum_j P_T log P_S, nothing learnt by the teacher."""
    teacher = (teacher_q @ teacher_k.mT / teacher_q.shape[-1] ** 0.5).softmax(-1).detach()
    student = (q @ k.mT / q.shape[-1] ** 0.5).log_softmax(-1)
    return teacher @ v, student.exp() @ v, -(teacher * student).sum(-1)


ENTRY = Entry(
    systems=("Attention Transfer (copy / distill)",),
    paper="On the Surprising Effectiveness of Attention Transfer for Vision Transformers",
    year=2024,
    conventions="First result: attention copy. Second and third: the student of attention distillation and its loss, "
    "one number to a row, to be averaged. The teacher is frozen, and may be wider "
    "than the student.",
    pitfall="Distilling looks as if it took two maps at once; the cross-entropy needs the student's `lse` and one more "
    "set of value columns, and the gradient of the scores, P_S - P_T, follows from both.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"teacher_q": torch.zeros(2, 4, 96, 64), "teacher_k": torch.zeros(2, 4, 97, 32)},
    usual=Size(1, 12, 4096, 64),
)
