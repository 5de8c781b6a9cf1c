"""Rotary positions, which attention takes as they are: q and k (or v) turned by angles before the product.

In: `x` (B, H, N, D) and positions of its tokens, whole or not, shape (N,) or (B, N). Out: `x`, pair (c, c + D/2) turned
by position * base^(-2c/D), so that a dot product sees only the difference of two positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Turned by one position to a token."""
    by = angles(positions.to(x.device), x.shape[-1], base)
    return turned(x, by[:, None] if by.dim() == 3 else by)


def rotate_axes(x: Tensor, positions: Sequence[Tensor], channels: Sequence[int], base: float = 10000.0) -> Tensor:
    """Turned by a position along each axis (time, height, width), in channels of that axis' own."""
    parts = x.split(list(channels), -1)
    return torch.cat([rotate(part, places, base) for part, places in zip(parts, positions, strict=True)], -1)


def angles(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    """(..., N, dim / 2) for positions (..., N), float64."""
    columns = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device)
    return positions[..., None] * base ** (-columns / dim)


def turned(x: Tensor, by: Tensor) -> Tensor:
    """`x` turned by these angles, in the dtype of `x`."""
    cos, sin = by.cos().to(x.dtype), by.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
