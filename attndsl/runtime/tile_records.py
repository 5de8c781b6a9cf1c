"""A tile on disk: what `attn.tune` found best for a kernel, as bytes that say of what they are.

In: the key of what a tile is for, the tile, a line for people. Out: a record, and back. A record begins with its key
and the hash of what follows, so that one that is cut off, changed or in another's place is noticed.
"""

from __future__ import annotations

import hashlib
import re

from attndsl.runtime.tiles import TileShape

_RECORD = re.compile(rb"(?P<key>[0-9a-f]{64}) (?P<digest>[0-9a-f]{64})\n(?P<rest>.*)", re.DOTALL)
_REST = re.compile(rb"(?P<tile>\d{1,3} \d{1,3} \d{1,2} \d{1,2})\n(?P<title>[^\n]*)\n")


def tile_record(key: str, tile: TileShape, title: str) -> bytes:
    """The bytes of a record."""
    rest = f"{tile.block_m} {tile.block_n} {tile.num_warps} {tile.num_stages}\n{title}\n".encode()
    return f"{key} {hashlib.sha256(rest).hexdigest()}\n".encode() + rest


def read_tile(data: bytes, key: str) -> tuple[TileShape, str] | None:
    """The tile and the title of a record; `None` where this is not what was written for the key, which may be only the
    beginning of one."""
    record = _RECORD.fullmatch(data)
    if record is None or not record["key"].startswith(key.encode()):
        return None
    rest = _REST.fullmatch(record["rest"])
    if rest is None or hashlib.sha256(record["rest"]).hexdigest().encode() != record["digest"]:
        return None
    return TileShape(*map(int, rest["tile"].split())), rest["title"].decode("utf-8", "replace")
