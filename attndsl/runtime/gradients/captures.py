"""The gradients of captured tensors, from sums over pairs of the derivatives by the elements they were read at.

In: a call, what a backend's backward pass left, and derivatives by row. Out: a gradient for each tensor asked for, of
its shape and dtype. Elements are added in a fixed order, whatever the strides of the tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from attndsl.analysis.axes import axes_of
from attndsl.analysis.structure import Structure, structure_of
from attndsl.ir import build
from attndsl.ir.nodes import Load
from attndsl.ir.types import Axis
from attndsl.runtime.arguments import Call
from attndsl.runtime.engine import Pieces
from attndsl.runtime.gradients.grid import Grid, grid_of
from attndsl.runtime.gradients.scatter import add_elements

CHUNK_PLACES = 2**23
"""Pairs of a chunk, over all its elements: 32 MiB of derivatives."""


def keys_of_chunk(call: Call, loads: Sequence[Load], block: int) -> int:
    """How many keys a chunk has: whole blocks of keys, one at least, within the memory chunks may take."""
    row = max(call.batch * call.heads * call.q_len * len(loads), 1)
    return max(CHUNK_PLACES // row // block, 1) * block


def capture_gradients(
    call: Call, names: Iterable[str], loads: Sequence[Load], pieces: Pieces, drows: Sequence[tuple[Load, Tensor]]
) -> dict[str, Tensor]:
    """The gradients of captured tensors by name. `loads` are all elements there may be pieces of, `drows` derivatives
    `[B, Hq, Nq]` that are known row by row.
    """
    sources: dict[str, list[Load]] = {}
    for load in (*loads, *(load for load, _ in drows)):
        sources.setdefault(load.tensor, []).append(load)
    tensors = {name: value for name in names if isinstance(value := call.values[name], Tensor)}
    totals = {name: _zeros(tensor, sources.get(name, [])) for name, tensor in tensors.items()}
    for load, derivatives, grid in _contributions(call, pieces, drows):
        add_elements(totals[load.tensor], load, derivatives, grid)
    return {name: total.to(tensors[name].dtype) for name, total in totals.items()}


def _zeros(tensor: Tensor, sources: Sequence[Load]) -> Tensor:
    """What is added to. Where nothing is added twice, it is the gradient itself: it may be as large as all pairs."""
    is_stored = len(sources) == 1 and _is_stored(sources[0])
    dtype = tensor.dtype if is_stored else torch.float64
    return torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)


def _is_stored(load: Load) -> bool:
    """Whether chunks of keys are read from different elements."""
    along_keys = [index for index in load.indices if Axis.K in axes_of(index)]
    return structure_of(load) is Structure.PAIRS and along_keys == [build.K]


def _contributions(
    call: Call, pieces: Pieces, drows: Sequence[tuple[Load, Tensor]]
) -> Iterator[tuple[Load, Tensor, Grid]]:
    one = range(1)
    queries, keys = range(call.q_len), range(call.kv_len)
    for load, sums in (*pieces.rows.items(), *drows):
        yield load, sums[..., None], grid_of(call, queries, one)
    for load, sums in pieces.columns.items():
        yield load, sums[..., None, :], grid_of(call, one, keys)
    for load, sums in pieces.diagonals.items():
        # An index that knows the distance alone is what it is at key 0.
        yield load, sums[..., None], grid_of(call, range(1 - call.kv_len, call.q_len), one)
    for chunk in pieces.chunks:
        grid = grid_of(call, queries, chunk.keys)
        for load, derivatives in chunk.derivatives.items():
            yield load, derivatives, grid
