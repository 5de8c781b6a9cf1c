"""Tiles measured on this machine: kept on disk, and found again once for each kernel of a process.

In: a kernel of a variant and a call. Out: the tile that `attn.tune` chose for calls like this one, if it did.

A tile is kept for a kernel of a variant (by fingerprint), its specialisation (elements, head dims, what is proven), the
sizes of the call, the device and the versions of everything that compiles it. Mask and score have a part in it because
they decide what a step holds in registers and how many tiles there are. Values of captured tensors and scalars have
none: a kernel serves all of them, and what was tuned with one window is the better guess for the next. Sizes count by
the number of their hexadecimal digits: whether tiles are filled, walks are long and programs many is what matters. The
number of threads has no part in it, so that results do not depend on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import fields
from functools import cache
from pathlib import Path

import torch

from attndsl.codegen.plan import Specialisation, Target
from attndsl.runtime.arguments import Call
from attndsl.runtime.cache import DIGITS, cache_dir, is_private, mark_used, read_entry
from attndsl.runtime.native.compiler import compiler
from attndsl.runtime.store import stored, warn
from attndsl.runtime.tile_records import read_tile, tile_record
from attndsl.runtime.tiles import TileShape
from attndsl.version import __version__

REMEMBERED = 4096

_known: dict[Hashable, TileShape | None] = {}
"""What this process has looked for, found or not."""

_choices = 0


def choices() -> int:
    """How many times tiles have been chosen: what was planned at another count may have other tiles."""
    return _choices


def tuned_tile(fingerprint: str, kernel: str, spec: Specialisation, call: Call) -> TileShape | None:
    """The tile chosen for calls like this one; the disk is asked once."""
    place = (fingerprint, kernel, spec, call.q.device, _sizes(call))
    try:
        return _known[place]
    except KeyError:
        if len(_known) >= REMEMBERED:
            _known.clear()
        found = _known[place] = _read(kernel, _key(fingerprint, kernel, spec, call))
        return found


def keep_tile(fingerprint: str, kernel: str, spec: Specialisation, call: Call, tile: TileShape, title: str) -> None:
    """Use a tile for calls like this one from now on, in this process and in later ones."""
    key = _key(fingerprint, kernel, spec, call)
    stored(_path(kernel, key), tile_record(key, tile, title))
    _known[fingerprint, kernel, spec, call.q.device, _sizes(call)] = tile
    _choose()


def forget_tiles() -> None:
    """Ask the disk again."""
    _known.clear()
    _choose()


def _choose() -> None:
    global _choices
    _choices += 1


def device_name(call: Call, target: Target) -> str:
    """The device kernels of a call run on, as records name it."""
    if call.q.is_cuda:
        return torch.cuda.get_device_name(call.q.device)
    return "interpreter" if target is Target.TRITON else f"CPU {compiler().identity[:16]}"


def _sizes(call: Call) -> tuple[int, int, int]:
    """Batch and heads, queries and keys, by their hexadecimal digits."""
    batch, heads, queries, _ = call.q.shape
    return (batch * heads).bit_length() + 3 >> 2, queries.bit_length() + 3 >> 2, call.kv_len.bit_length() + 3 >> 2


def _key(fingerprint: str, kernel: str, spec: Specialisation, call: Call) -> str:
    values = {part.name: getattr(spec, part.name) for part in fields(spec)}
    described = [(name, sorted(value) if isinstance(value, frozenset) else value) for name, value in values.items()]
    origin = (_versions(spec.target), device_name(call, spec.target), fingerprint, kernel, described, _sizes(call))
    return hashlib.sha256("\n".join(map(repr, origin)).encode()).hexdigest()


@cache
def _versions(target: Target) -> str:
    """Of what makes kernels of a target: the compiler of native ones is part of their device's name."""
    own = f"attndsl {__version__}, torch {torch.__version__}"
    if target is Target.CPP:
        return own
    import triton

    return f"{own}, triton {triton.__version__}"


def _path(kernel: str, key: str) -> Path:
    return cache_dir() / key[:2] / f"{kernel}_{key[:DIGITS]}.tile"


def _read(kernel: str, key: str) -> TileShape | None:
    """The tile of a record that this user wrote for this key."""
    path = _path(kernel, key)
    try:
        found = read_tile(read_entry(path), key)
        if found is None or not (is_private(path) and is_private(path.parent)):
            warn(f"the cache entry {path.name} is not what tuning wrote; the default tile is used")
            return None
    except OSError:
        return None
    mark_used(path)
    return found[0]
