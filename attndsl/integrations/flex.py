"""`flex_attention` with FlexAttention's signature and attndsl's kernels; one import changes in user code.

In: what `torch.nn.attention.flex_attention.flex_attention` takes. Out: what it returns. `docs/flex_attention.md` lists
every difference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask

from attndsl.attention import Attention
from attndsl.diagnostics import CallError, Reporter
from attndsl.frontend.decorators import Mod
from attndsl.integrations.block_masks import WHOLE, Sizes, with_blocks
from attndsl.integrations.traces import traced

__all__ = ["AuxOutput", "AuxRequest", "KernelOptionsWarning", "flex_attention"]

BACKENDS = ("AUTO", "TRITON", "FLASH", "TRITON_DECODE")
"""Of kernel options, where torch does not say."""

INTERNAL = ("OUTPUT_LOGSUMEXP", "OUTPUT_MAX")
"""Kernel options that torch keeps for itself."""


OUT_OF_SIGHT = (
    "a `BlockMask`, kernel options, or functions that read what cannot be watched: pass the mask function itself, of "
    "plain functions that close over numbers, tensors and modules"
)
"""Of what `flex_attention` is given, what breaks a graph."""


class KernelOptionsWarning(UserWarning):
    """Options for FlexAttention's kernels, which attndsl's do not have."""


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Any] | None = None,
    block_mask: BlockMask | Callable[..., Any] | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Mapping[str, Any] | None = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Any:
    """torch's `flex_attention`: query (B, Hq, L, E), key (B, Hkv, S, E), value (B, Hkv, S, Ev) to (B, Hq, L, Ev).

    `score_mod(score, b, h, q_idx, kv_idx)` and the `mask_mod(b, h, q_idx, kv_idx)` of `block_mask` are positional,
    whatever their arguments are called. `block_mask` is a torch `BlockMask`, whose lists of blocks hold as well as its
    `mask_mod`, or a mask function itself, which needs no lists. With `return_aux=AuxRequest(lse=True)` the result is
    `(out, AuxOutput)`, with `return_lse` it is `(out, lse)`; `lse` is a natural logarithm. Gradients reach query, key,
    value and captured tensors. `kernel_options` are for FlexAttention's kernels and change nothing here, with a
    `KernelOptionsWarning`. Inside `torch.compile` functions are part of the graph; a `BlockMask`, whose lists are
    compared with its function, breaks it.
    """
    _check(query, key, value, block_mask, enable_gqa, return_lse, return_aux)
    attention: Attention | None = None
    if torch.compiler.is_compiling():
        from attndsl import graphs  # brings torch's compiler
        from attndsl.integrations import compile as in_graph

        if not isinstance(block_mask, BlockMask) and not kernel_options:
            attention = in_graph.attention_in_graph(score_mod, block_mask)
        if attention is None:
            how = (score_mod, block_mask, scale, enable_gqa, return_lse, kernel_options)
            return graphs.outside(OUT_OF_SIGHT, flex_attention, query, key, value, *how, return_aux=return_aux)
    else:
        _check_options(kernel_options)
    if query.shape[0] != key.shape[0]:
        key, value = (tensor.expand(query.shape[0], -1, -1, -1) for tensor in (key, value))
    # torch computes in the query's precision, whatever keys and values are kept in.
    key, value = key.to(query.dtype), value.to(query.dtype)
    if attention is None:
        attention = _attention(score_mod, block_mask, (*query.shape[:3], key.shape[2]))
    wanted = _statistics(return_lse, return_aux)
    result = attention(query, key, value, scale=scale, enable_gqa=enable_gqa, return_aux=wanted or False)
    if not wanted:
        return result if return_aux is None else (result, AuxOutput())
    out, aux = result
    if return_aux is None:
        return out, aux.lse
    return out, AuxOutput(lse=aux.lse, max_scores=aux.max_score)


def _attention(
    score_mod: Callable[..., Any] | None, block_mask: BlockMask | Callable[..., Any] | None, sizes: Sizes
) -> Attention:
    """The attention of functions, and of lists of blocks."""
    if isinstance(block_mask, BlockMask):
        return with_blocks(traced(score_mod, block_mask.mask_mod), block_mask, sizes).attention
    return traced(score_mod, block_mask).attention


def _statistics(return_lse: bool, return_aux: AuxRequest | None) -> list[str]:
    if return_aux is None:
        return ["lse"] if return_lse else []
    named = {"lse": return_aux.lse, "max_score": return_aux.max_scores}
    return [name for name, is_wanted in named.items() if is_wanted]


def _check(
    query: Any, key: Any, value: Any, block_mask: Any, enable_gqa: bool, return_lse: bool, return_aux: Any
) -> None:
    """Everything torch refuses of the arguments; what it leaves to its kernels, the call refuses."""
    reporter = Reporter(CallError)
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            reporter.error("not-a-tensor", f"`{name}` is of type {type(tensor).__name__}, expected a torch tensor")
        elif tensor.is_nested:
            help_ = "pack the sequences in one row and mask by document"
            reporter.error("nested-tensor", f"`{name}` is a nested tensor, expected a dense one", help=help_)
        elif tensor.dim() != 4:
            message = f"`{name}` has shape {tuple(tensor.shape)}, expected 4 dimensions"
            reporter.error("wrong-rank", message, help="shape it (batch, heads, length, head_dim)")
        elif not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
            reporter.error("wrong-dtype", f"`{name}` has dtype {tensor.dtype}, expected floats of 16 to 64 bits")
    reporter.check()
    _check_batch(reporter, query, key, value, block_mask)
    if return_lse and return_aux is not None:
        message = "`return_lse` and `return_aux` are both given"
        reporter.error("bad-aux", message, help="write `return_aux=AuxRequest(lse=True)` alone")
    if return_aux is not None and not isinstance(return_aux, AuxRequest):
        message = f"`return_aux` is of type {type(return_aux).__name__}, expected an `AuxRequest`"
        reporter.error("bad-aux", message, help="write `return_aux=AuxRequest(lse=True)`")
    _check_block_mask(reporter, query, key, block_mask)
    reporter.check()


def _check_batch(reporter: Reporter, query: Tensor, key: Tensor, value: Tensor, block_mask: Any) -> None:
    sizes = (query.shape[0], key.shape[0])
    if sizes[0] == sizes[1] or key.shape[0] != value.shape[0]:
        return
    bound = (f"query {tuple(query.shape)}: batch {sizes[0]}", f"key {tuple(key.shape)}: batch {sizes[1]}")
    if sizes[1] != 1:
        reporter.error("batch-mismatch", "a batch of keys and values serves many of queries if it is 1", None, *bound)
    elif block_mask is None:
        help_ = "pass a block mask, or expand key and value: `key.expand(len(query), -1, -1, -1)`"
        reporter.error(
            "batch-mismatch", "query and key differ in batch without a `block_mask`", None, *bound, help=help_
        )
    elif isinstance(block_mask, BlockMask) and block_mask.kv_num_blocks.shape[0] != sizes[0]:
        found = f"block_mask: batch {block_mask.kv_num_blocks.shape[0]}"
        message = "query and key differ in batch, and `block_mask` is not made for that of the query"
        reporter.error("batch-mismatch", message, None, *bound, found, help=f"make it with `B={sizes[0]}`")


def _check_block_mask(reporter: Reporter, query: Tensor, key: Tensor, block_mask: Any) -> None:
    if not isinstance(block_mask, BlockMask):
        if block_mask is not None and not isinstance(block_mask, Mod) and not callable(block_mask):
            message = f"`block_mask` is of type {type(block_mask).__name__}, expected a torch `BlockMask` or a function"
            help_ = "make one with `create_block_mask`, or pass the mask function itself"
            reporter.error("bad-block-mask", message, help=help_)
        return
    if block_mask.mask_mod is getattr(torch_flex, "_sliced_mask_mod_error", None):
        message = "`block_mask` was sliced, which leaves it without its `mask_mod`"
        help_ = (
            "set it again, shifted to the slice: `sliced.mask_mod = lambda b, h, q, kv: mask_mod(b, h, q + start, kv)`"
        )
        reporter.error("sliced-block-mask", message, help=help_)
    made, called = tuple(block_mask.seq_lengths), (query.shape[2], key.shape[2])
    if tuple(block_mask.BLOCK_SIZE) != (WHOLE, WHOLE) and made != called:
        message = f"`block_mask` was made for lengths {made[0]} x {made[1]}, the call has {called[0]} x {called[1]}"
        help_ = "make a new one for these lengths, or pass the mask function itself, which serves all"
        reporter.error("block-mask-length", message, help=help_)
    if block_mask.kv_num_blocks.device != query.device:
        message = f"`block_mask` is on {block_mask.kv_num_blocks.device}, query on {query.device}"
        reporter.error("mixed-devices", message, help=f"move it: `block_mask.to({str(query.device)!r})`")


_warned: set[str] = set()


def _check_options(options: Mapping[str, Any] | None) -> None:
    """Refuse what torch refuses; say once of each other option that it changes nothing."""
    if not options:
        return
    reporter = Reporter(CallError)
    for name in INTERNAL:
        if name in options:
            reporter.error(
                "kernel-option", f"`{name}` is no option of users", help="write `return_aux=AuxRequest(...)`"
            )
    backends = get_args(getattr(torch_flex, "_Backend", None)) or BACKENDS
    if "BACKEND" in options and options["BACKEND"] not in backends:
        known = ", ".join(f'"{name}"' for name in backends)
        reporter.error("kernel-option", f"`BACKEND` is {options['BACKEND']!r}, expected one of {known}")
    if "BACKEND" in options and options.get("FORCE_USE_FLEX_ATTENTION"):
        reporter.error("kernel-option", "`BACKEND` and `FORCE_USE_FLEX_ATTENTION` are both given", help="give one")
    reporter.check()
    new = sorted(options.keys() - _warned)
    if new:
        _warned.update(new)
        listed = ", ".join(f"`{name}`" for name in new)
        message = f"kernel options of FlexAttention change nothing in attndsl, which picks tiles itself: {listed}"
        warnings.warn(message, KernelOptionsWarning, stacklevel=4)
