"""transformers' models with attndsl's attention: `register()`, then `attn_implementation="attndsl"`.

In: the masks transformers composes, functions of (batch, head, query, key), and the attention calls of its models. Out:
the outputs of those calls. No mask is ever built: its function travels to the call and is traced there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from attndsl.diagnostics import CallError, Reporter, UnsupportedError, fail
from attndsl.integrations.block_masks import WHOLE, with_blocks
from attndsl.integrations.traces import traced
from attndsl.library.normalizers import softmax

__all__ = ["attend", "make_mask", "register"]

NAME = "attndsl"

Function = Callable[..., Any]


class ModelMask(BlockMask):
    """A mask function on its way through a model, in a shape that models pass on: its lists say nothing."""

    @staticmethod
    def of(mask_mod: Function, batch: int, lengths: tuple[int, int], device: Any) -> ModelMask:
        """The mask of one forward pass."""
        count = torch.ones((batch, 1, 1), dtype=torch.int32, device=device)
        lists = (count, torch.zeros_like(count)[..., None], *(None,) * 6)
        return ModelMask(lengths, *lists, (WHOLE, WHOLE), mask_mod)

    def contiguous(self) -> ModelMask:
        """Itself: generation with static caches asks every mask."""
        return self


def register(name: str = NAME) -> None:
    """Make `attn_implementation="attndsl"` (or another name) known to transformers, its attention and its masks."""
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as error:
        message = "transformers is not installed, or too old to compose masks of functions"
        raise fail(UnsupportedError, "no-transformers", message, help="pip install 'transformers>=4.53'") from error
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, make_mask)


def make_mask(
    batch_size: int,
    q_length: int | Tensor | None = None,
    kv_length: int = 0,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Function | None = None,
    attention_mask: Tensor | None = None,
    cache_position: Tensor | None = None,
    device: Any = "cpu",
    **_: Any,
) -> ModelMask:
    """The mask of one forward pass, from what transformers knows of it.

    `mask_function(batch, head, query, key)` is over absolute positions: the first query stands at `q_offset`, the first
    key at `kv_offset`. `attention_mask` (batch, positions) is true at tokens and false at padding. Versions of
    transformers before 5 pass the positions of the queries, `cache_position`, for `q_length` and `q_offset`.
    """
    positions = q_length if isinstance(q_length, Tensor) else cache_position
    if positions is not None:
        q_length, q_offset, device = len(positions), positions[0], positions.device
    assert isinstance(q_length, int)
    if attention_mask is not None:
        device = attention_mask.device
        padding = _padding(attention_mask.bool(), kv_length + kv_offset)
        mask_function = _both(mask_function, padding)
    mask_function = _moved(_causal if mask_function is None else mask_function, q_offset, kv_offset)
    return ModelMask.of(mask_function, batch_size, (q_length, kv_length), device)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What an attention layer of transformers calls: the output as (batch, query, head, head_dim), and no weights.

    Inside `torch.compile` it breaks the graph: its kernels are compiled already.
    """
    if torch.compiler.is_compiling():
        run: Callable[..., Tensor] = torch.compiler.disable(_attend)
    else:
        run = _attend
    return run(query, key, value, attention_mask, scaling, dropout, softcap, s_aux, position_bias, more), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    s_aux: Tensor | None,
    position_bias: Tensor | None,
    more: dict[str, Any],
) -> Tensor:
    _check(dropout, attention_mask, more)
    mask_mod, bias = _mask_of(attention_mask)
    biases = [one for one in (position_bias, bias) if one is not None]
    normalizer = None if s_aux is None else softmax(sink=s_aux.reshape(-1))
    bound = traced(_score_mod(softcap, biases), mask_mod, normalizer)
    if isinstance(attention_mask, BlockMask) and not isinstance(attention_mask, ModelMask):
        bound = with_blocks(bound, attention_mask, (*query.shape[:3], key.shape[2]))
    out: Tensor = bound.attention(query, key, value, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous()


def _check(dropout: float, attention_mask: Any, more: dict[str, Any]) -> None:
    reporter = Reporter(CallError)
    if dropout > 0.0:
        help_ = "set `attention_dropout` of the config to 0.0, or call `model.eval()`"
        reporter.error("dropout", f"weights are dropped out with probability {dropout}", help=help_)
    if more.get("output_attentions"):
        help_ = 'take `attn_implementation="eager"` for those calls'
        reporter.error(
            "output-attentions", "`output_attentions` asks for the weights, which are never there", help=help_
        )
    if attention_mask is not None and not isinstance(attention_mask, BlockMask | Tensor):
        message = f"`attention_mask` is of type {type(attention_mask).__name__}"
        reporter.error("bad-mask", message, help="pass what `create_causal_mask` makes, or a tensor of four dimensions")
    elif isinstance(attention_mask, Tensor) and attention_mask.dim() != 4:
        message = f"`attention_mask` has shape {tuple(attention_mask.shape)}, expected 4 dimensions"
        help_ = "call `attndsl.integrations.transformers.register()`, which makes masks of padding"
        reporter.error("bad-mask", message, help=help_)
    reporter.check()


def _mask_of(attention_mask: Any) -> tuple[Function | None, Tensor | None]:
    """A mask function, or what is added to scores, of a mask that a user has made or transformers has."""
    if isinstance(attention_mask, BlockMask):
        return attention_mask.mask_mod, None
    if isinstance(attention_mask, Tensor) and attention_mask.dtype is torch.bool:
        return _of_table(attention_mask), None
    return None, attention_mask


def _of_table(table: Tensor) -> Function:
    b, h = (0 if size == 1 else None for size in table.shape[:2])
    return lambda batch, head, q, kv: table[batch if b is None else 0, head if h is None else 0, q, kv]


def _score_mod(softcap: float | None, biases: list[Tensor]) -> Function | None:
    """The soft cap, then what is added."""
    added = [_of_table(bias) for bias in biases]
    if softcap is None and not added:
        return None
    cap = None if softcap is None else float(softcap)

    def score_mod(score: Any, batch: Any, head: Any, q: Any, kv: Any) -> Any:
        score = score if cap is None else cap * torch.tanh(score / cap)
        for bias in added:
            score = score + bias(batch, head, q, kv)
        return score

    return score_mod


def _causal(batch: Any, head: Any, q: Any, kv: Any) -> Any:
    return kv <= q


def _both(mask: Function | None, other: Function | None) -> Function | None:
    if mask is None or other is None:
        return mask or other
    return lambda batch, head, q, kv: mask(batch, head, q, kv) & other(batch, head, q, kv)


def _moved(mask: Function, q_offset: int | Tensor, kv_offset: int) -> Function:
    """A mask of absolute positions as one of queries and keys that count from 0."""
    if isinstance(q_offset, int) and q_offset == kv_offset == 0:
        return mask
    return lambda batch, head, q, kv: mask(batch, head, q + q_offset, kv + kv_offset)


def _padding(tokens: Tensor, length: int) -> Function | None:
    """The mask of padding, over `length` positions: what lies beyond the tensor is padding too.

    Tokens of a row that lie together are an interval of keys, of which kernels need no table.
    """
    size = tokens.shape[1]
    if bool(tokens.all()):
        return None if size >= length else lambda batch, head, q, kv: kv < size
    count, first = tokens.sum(1), tokens.int().argmax(1)
    end = first + count
    last = size - tokens.flip(1).int().argmax(1)
    if bool(((last == end) | (count == 0)).all()):
        return lambda batch, head, q, kv: (kv >= first[batch]) & (kv < end[batch])
    table = torch.nn.functional.pad(tokens, (0, max(0, length - size)))
    return lambda batch, head, q, kv: table[batch, kv]
