"""A frozen encoder is read out by a few learned queries on its bare features, each with a slice of the values."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(name="efficient_probing")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = size.heads * size.head_dim
    return {
        "features": draw.normal(size.batch, size.length, width),
        "queries": draw.normal(size.heads, width),
        "weight": draw.normal(width, width) / width**0.5,
    }


def run(features: Tensor, queries: Tensor, weight: Tensor) -> Tensor:
    """Queries are heads of one row each; all of them read the same keys, the features themselves."""
    batch, count = features.shape[0], queries.shape[0]
    message = "`queries` must divide the width of the values: each has a slice of its own"
    ad.require(weight.shape[1] % count == 0, message)
    shaped("queries", queries, count, features.shape[-1])
    values = (features @ weight).unflatten(-1, (count, -1)).transpose(1, 2)
    keys = features[:, None].expand(-1, count, -1, -1)
    return attention(queries[:, None].expand(batch, -1, -1, -1), keys, values)[:, :, 0].flatten(1)


def formula(features: Tensor, queries: Tensor, weight: Tensor) -> Tensor:
    """y = concat_m sum_j a_mj (x_j W_V)_m, a_m = softmax_j(u_m x_j / sqrt(d))."""
    weights = torch.einsum("md,bnd->bmn", queries, features).div(features.shape[-1] ** 0.5).softmax(-1)
    slices = (features @ weight).unflatten(-1, (queries.shape[0], -1))
    return torch.einsum("bmn,bnmc->bmc", weights, slices).flatten(1)


ENTRY = Entry(
    systems=("EP (efficient probing)",),
    paper="Attention, Please! Revisiting Attentive Probing for Masked Image Modeling",
    year=2025,
    conventions="No projection of queries or keys; one row of output for each image, the slices side by side.",
    pitfall="Keys are shared by all queries and values are not, which is neither one key head nor one for each: the "
    "keys are a view that repeats.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="`EfficientProbing` of the authors' billpsomas/efficient-probing, as several repositories carry it",
    refuses={"queries": [torch.zeros(3, 128), torch.zeros(4, 127)]},
    usual=Size(1, 4, 4096, 64),
)
