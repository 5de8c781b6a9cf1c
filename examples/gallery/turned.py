"""Rotary positions as papers write them: a pair of columns is a complex number, a position a turn of it.

In: `x` (..., N, D) and positions of its tokens, shape (N,). Out: complex (..., N, D/2); the real part of the product of
turned queries with the conjugates of turned keys is the score, which depends on the difference of positions alone.
"""

import torch
from torch import Tensor


def turned(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Column pair (c, c + D/2) times exp(i position theta_c), theta_c = base^(-2c / D)."""
    pairs = torch.complex(*x.chunk(2, -1))
    theta = base ** (-torch.arange(pairs.shape[-1], dtype=torch.float64, device=x.device) / pairs.shape[-1])
    return pairs * torch.exp(1j * positions.to(x.device, torch.float64)[:, None] * theta).to(pairs.dtype)
