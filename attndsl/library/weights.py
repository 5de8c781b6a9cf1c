"""Weight mods: changes of the normalized weight w. Masked keys keep weight 0. Parameters are bound by keyword.

In a text they have the same names and are called with the elements they read: `weight decay(log_gamma[h])`.
"""

from __future__ import annotations

from typing import Any

import torch

from attndsl.frontend import math
from attndsl.frontend.decorators import weight_mod
from attndsl.frontend.symbols import Symbol


def _of_head(value: Any, h: Symbol) -> Any:
    return value[h] if isinstance(value, torch.Tensor) and value.ndim > 0 else value


@weight_mod
def decay(weight: Symbol, h: Symbol, q_idx: Symbol, kv_idx: Symbol, *, log_gamma: Any) -> Any:
    """w gamma^(q_idx - kv_idx), gamma = exp(log_gamma): 1 at the query's own position, later keys grow; no mask.

    `log_gamma`, below 0, is a float, or a float tensor of one per query head. Sun et al., "Retentive network", 2023.
    """
    return weight * math.exp(_of_head(log_gamma, h) * (q_idx - kv_idx))


@weight_mod
def affine(weight: Symbol, h: Symbol, *, alpha: Any, beta: Any) -> Any:
    """alpha w + beta: beta adds the sum of the visible values. Floats, or float tensors of one per query head."""
    return _of_head(alpha, h) * weight + _of_head(beta, h)


@weight_mod
def threshold(weight: Symbol, h: Symbol, *, least: Any) -> Any:
    """w where it is at least `least`, else 0; rows are not normalized again. A float, or one per query head."""
    return math.where(weight >= _of_head(least, h), weight, 0.0)
