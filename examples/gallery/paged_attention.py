"""Serving from a pool of pages: keys and values of a sequence lie wherever there was room, and prompts are shared."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="paged_attention")
PAGE = 16


def inputs(size: Size, draw: Draw) -> Inputs:
    """A prompt of whole pages that every sequence begins with, and pages of its own behind it, in any order."""
    shared, own = max(1, size.length // 2 // PAGE), -(-size.length // 2 // PAGE)
    pages = shared + size.batch * own
    order = draw.uniform(0, 1, pages).argsort()
    alone = order[shared:].view(size.batch, own)
    pool = (pages, PAGE, size.heads // 2, size.head_dim)
    return {
        "prompt": draw.normal(1, size.heads, shared * PAGE, size.head_dim),
        "q": draw.normal(size.batch, size.heads, 1, size.head_dim),
        "k_pool": draw.normal(*pool),
        "v_pool": draw.normal(*pool),
        "page_table": torch.cat((order[:shared].expand(size.batch, -1), alone), 1),
        "lengths": shared * PAGE + draw.integers(1, own * PAGE + 1, size.batch),
    }


def run(
    prompt: Tensor, q: Tensor, k_pool: Tensor, v_pool: Tensor, page_table: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The prompt, once for all sequences; then the newest token of each."""
    ad.require((lengths >= 1) & (lengths <= PAGE * page_table.shape[1]), "`lengths` counts keys that pages hold")
    newest = ad.paged(attention, q, ad.PagedCache(k_pool, v_pool, page_table, lengths), enable_gqa=True)
    first = page_table[0, : prompt.shape[2] // PAGE]
    k, v = (pool[first].flatten(0, 1).transpose(0, 1)[None] for pool in (k_pool, v_pool))
    return attention(prompt, k, v, enable_gqa=True), newest


def formula(
    prompt: Tensor, q: Tensor, k_pool: Tensor, v_pool: Tensor, page_table: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """softmax(q k_j / sqrt(d)) v_j over keys j of a sequence, key j at place j mod B of page table[j / B]."""

    def rows(queries: Tensor, table: Tensor, count: int, live: Tensor) -> Tensor:
        j = torch.arange(count, device=q.device)
        k, v = (pool[table[j // PAGE], j % PAGE] for pool in (k_pool, v_pool))
        grouped = queries.unflatten(0, (k.shape[1], -1))
        scores = torch.einsum("cgid,jcd->cgij", grouped, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~live, -torch.inf).softmax(-1)
        return torch.einsum("cgij,jcd->cgid", weights, v).flatten(0, 1)

    length = prompt.shape[2]
    ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
    told = rows(prompt[0], page_table[0], length, ones.tril())[None]
    newest = [rows(*each, ones[0, 0]) for each in zip(q, page_table, lengths.tolist(), strict=True)]
    return told, torch.stack(newest)


ENTRY = Entry(
    systems=("PagedAttention (vLLM)",),
    paper="Efficient Memory Management for Large Language Model Serving with PagedAttention",
    year=2023,
    conventions="Pools are (pages, page size, heads, width). The newest token's key is in its page when it attends. "
    "First result: the prompt's tokens, causal; second: one token of each sequence.",
    pitfall="Masks and positions count the keys of the sequence, not places in the pool. A page that sequences share "
    "must be copied before one of them writes to it.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "page_table": torch.zeros(3, 6, dtype=torch.int64),
        "lengths": torch.zeros(2, dtype=torch.int64),
    },
    trained=False,
    usual=Size(1, 32, 4096, 128),
)
