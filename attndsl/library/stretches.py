"""Masks over stretches of a sequence: equal chunks, packed documents, images beside a text, frames after a prompt.

In: sizes and tensors of ids. Out: masks, written in the DSL. `chunks_of` and `documents_of` apply another mask inside
each stretch, where positions count from 0 again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attndsl.diagnostics import ProgramError, fail
from attndsl.frontend.decorators import MaskMod, mask_mod
from attndsl.frontend.grids import require
from attndsl.frontend.symbols import Symbol


def chunks_of(mask: Callable[..., Any], size: int) -> MaskMod:
    """`mask` inside chunks of `size` positions, as if each were a sequence of its own; nothing between chunks.

    `chunks_of(causal, 128)` treats one long sequence as a batch of short ones. Runtime scalar: `size`.
    """
    inner = mask_mod(mask)

    @mask_mod
    def chunks(b: Symbol, h: Symbol, q_idx: Symbol, kv_idx: Symbol, *, size: int = size) -> Any:
        require(size >= 1, "`size` counts positions, at least 1")
        there = {"b": b, "h": h, "q_idx": q_idx % size, "kv_idx": kv_idx % size}
        return (q_idx // size == kv_idx // size) & _of(inner, there)

    return chunks


def documents_of(mask: Callable[..., Any], offsets: torch.Tensor) -> MaskMod:
    """`mask` inside packed documents, positions counting from the start of each; nothing between documents.

    `offsets`: an integer tensor of shape (documents + 1,), 0 first, then where each document ends; the last is the
    number of tokens packed. Queries and keys are the same tokens.
    """
    inner, ends = mask_mod(mask), _offsets(offsets)
    lengths = ends[1:] - ends[:-1]
    ids = torch.repeat_interleave(torch.arange(len(lengths), device=ends.device), lengths)
    starts = torch.repeat_interleave(ends[:-1], lengths)

    @mask_mod
    def documents(b: Symbol, h: Symbol, q_idx: Symbol, kv_idx: Symbol) -> Any:
        there = {"b": b, "h": h, "q_idx": q_idx - starts[q_idx], "kv_idx": kv_idx - starts[kv_idx]}
        return (ids[q_idx] == ids[kv_idx]) & _of(inner, there)

    return documents


def vision_cross_attention(intervals: torch.Tensor, image_tokens: int) -> MaskMod:
    """A text that looks at images: queries from `intervals[i, 0]` up to, not including, `intervals[i, 1]` see image i.

    Keys are the images' tokens, `image_tokens` each, one image after the other; `intervals` is an integer tensor of
    shape (images, 2). Alayrac et al., "Flamingo", 2022.
    """
    if intervals.ndim != 2 or intervals.shape[1] != 2 or intervals.is_floating_point():
        message = (
            f"`intervals` is of shape {tuple(intervals.shape)} and {intervals.dtype}, expected integers (images, 2)"
        )
        raise fail(ProgramError, "intervals", message)

    @mask_mod
    def images(q_idx: Symbol, kv_idx: Symbol, *, image_tokens: int = image_tokens) -> Any:
        require(image_tokens >= 1, "`image_tokens` counts the tokens of an image, at least 1")
        image = kv_idx // image_tokens
        return (intervals[image, 0] <= q_idx) & (q_idx < intervals[image, 1])

    return images


@mask_mod
def spatial_head(q_idx: Symbol, kv_idx: Symbol, *, prompt: int, reach: int, sink: int = 0) -> Any:
    """A video's tokens near in the sequence: the prompt sees and is seen by all, others see less than `reach` away.

    The first `prompt` positions are the prompt. `reach` counts tokens, a whole number of frames rounded to the tile in
    the paper; `sink` more tokens after the prompt are seen by all. Xi et al., "Sparse VideoGen", 2025.
    """
    distance = q_idx - kv_idx
    return (q_idx < prompt) | (kv_idx < prompt + sink) | ((distance < reach) & (distance > -reach))


@mask_mod
def temporal_head(q_idx: Symbol, kv_idx: Symbol, *, prompt: int, frame: int, reach: int) -> Any:
    """A video's tokens at nearly the same place of any frame: less than `reach` apart within frames of `frame` tokens.

    The first `prompt` positions are the prompt, which sees and is seen by all. Xi et al., "Sparse VideoGen", 2025.
    """
    require(frame >= 1, "`frame` counts the tokens of a frame, at least 1")
    distance = (q_idx - prompt) % frame - (kv_idx - prompt) % frame
    return (q_idx < prompt) | (kv_idx < prompt) | ((distance < reach) & (distance > -reach))


def _of(mask: MaskMod, values: dict[str, Any]) -> Any:
    """The mask at other coordinates; one that reads none is called for parameters, so it is evaluated instead."""
    return mask(**{name: values[name] for name in mask.order}) if mask.order else mask.evaluate({})


def _offsets(offsets: torch.Tensor) -> torch.Tensor:
    if offsets.ndim != 1 or offsets.is_floating_point() or len(offsets) < 2:
        message = (
            f"`offsets` is of shape {tuple(offsets.shape)} and {offsets.dtype}, expected integers (documents + 1,)"
        )
        raise fail(ProgramError, "offsets", message)
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        message = "`offsets` must start with 0 and never fall"
        raise fail(ProgramError, "offsets", message, help="write `torch.cumsum` of the lengths after a 0")
    return offsets.to(torch.int64)
