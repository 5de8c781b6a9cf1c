"""Global context for text recognition: every aspect pools the image by one learned filter, added to all places."""

import torch
from torch import Tensor
from torch.nn import functional

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(name="master")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = size.heads * size.head_dim
    return {
        "x": draw.normal(size.batch, size.length, width),
        "filter": draw.normal(size.head_dim),
        "narrow": draw.normal(width, width // 16) / width**0.5,
        "widen": draw.normal(width // 16, width) / (width // 16) ** 0.5,
        "heads": size.heads,
    }


def run(x: Tensor, filter: Tensor, narrow: Tensor, widen: Tensor, heads: int) -> Tensor:
    """One query for a head, whatever the place: a softmax over a linear function of the key."""
    ad.require(heads >= 1 and x.shape[-1] == heads * len(filter), "`heads` slices as wide as the filter make up `x`")
    places = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    query = filter.expand(*places.shape[:2], 1, -1)
    context = attention(query, places, places, scale=1.0).transpose(1, 2).flatten(2)
    return x + functional.layer_norm(context @ narrow, narrow.shape[1:]).relu() @ widen


def formula(x: Tensor, filter: Tensor, narrow: Tensor, widen: Tensor, heads: int) -> Tensor:
    """x_i + delta(concat_h sum_j softmax_j(w x_hj) x_hj), delta a bottleneck of two layers."""
    contexts = []
    for part in x.chunk(heads, -1):
        weights = (part @ filter).softmax(-1)
        contexts.append((weights[:, :, None] * part).sum(1, keepdim=True))
    hidden = torch.cat(contexts, -1) @ narrow
    spread = hidden.var(-1, unbiased=False, keepdim=True) + 1e-5
    return x + ((hidden - hidden.mean(-1, keepdim=True)) / spread.sqrt()).relu() @ widen


ENTRY = Entry(
    systems=("MASTER (multi-aspect global context)",),
    paper="MASTER: Multi-Aspect Non-local Network for Scene Text Recognition",
    year=2019,
    conventions="Scores are not divided by the root of the width, the released default. The decoder is plain.",
    pitfall="The weights do not depend on the query: one row is computed and added everywhere. In released code the "
    "heads share one filter, each on its slice of the channels; it is not one filter for each head.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="`MAGC` of mindee/doctr and `GCAModule` of open-mmlab/mmocr; both agree with the authors' "
    "`MultiAspectGCAttention`",
    refuses={"heads": 3},
)
