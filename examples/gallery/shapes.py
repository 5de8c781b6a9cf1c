"""Arguments of entries whose shape is part of their meaning: slopes of heads, ids of tokens, tables of a canvas.

In: the name of an argument, the tensor, the shape it should have. Out: nothing, or an error that names it.
"""

from torch import Tensor

import attndsl as ad


def shaped(name: str, tensor: Tensor, *shape: int) -> None:
    """Refuse a tensor of another shape, longer ones too: too many slopes are slopes of another model."""
    ad.require(tuple(tensor.shape) == shape, f"`{name}` has shape {tuple(tensor.shape)}, expected {shape}")
