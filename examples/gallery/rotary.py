"""Rotary positions, which attention takes as they are: q and k turned by angles before the product.

In: `x` (B, H, N, D) and positions of its tokens, whole or not, shape (N,) or (B, N). Out: `x`, pair (i, i + D/2) turned
by position * base^(-2i/D); over several axes, each has as many channels as it is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Turned by one position to a token."""
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = positions.to(x.device, torch.float64)[..., None] * rates
    if angles.dim() == 3:
        angles = angles[:, None]
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def rotate_axes(x: Tensor, positions: Sequence[Tensor], channels: Sequence[int], base: float = 10000.0) -> Tensor:
    """Turned by a position along each axis (time, height, width), in channels of that axis' own."""
    parts = x.split(list(channels), -1)
    return torch.cat([rotate(part, places, base) for part, places in zip(parts, positions, strict=True)], -1)
