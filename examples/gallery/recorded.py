"""Which attentions an entry calls, and on what: for pages, plans and ahead-of-time compilation.

In: anything that calls attentions inside `with recorded() as calls`. Out: the calls, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from torch import Tensor

import attndsl as ad
from attndsl.routing.given import table_of_call
from attndsl.routing.join import joins_of


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call of an attention; `how` are its keyword arguments."""

    attention: ad.Attention
    q: Tensor
    k: Tensor
    v: Tensor
    how: dict[str, Any]

    @property
    def shape(self) -> dict[str, Any]:
        """The call as arguments of `Attention.plan`."""
        (batch, heads, q_len, _), kv_len = self.q.shape, self.k.shape[2]
        q_offset = self.how.get("q_offset", 0)
        return {"q_len": q_len, "kv_len": kv_len, "batch": batch, "heads": heads, "q_offset": q_offset}


@contextmanager
def recorded(**instead: Any) -> Iterator[list[Recorded]]:
    """The calls made inside, each made with the keyword arguments of `instead` over its own.

    A call with `blocks=` is recorded as that of the attention whose mask is also in the table.
    """
    calls: list[Recorded] = []
    attend = ad.Attention.__call__

    def call(self: ad.Attention, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Any:
        if (blocks := how.pop("blocks", None)) is not None:
            self = _routed(self, blocks, q, k, v, **how)
        calls.append(Recorded(self, q, k, v, how))
        return attend(self, q, k, v, **{**how, **instead})

    with patch.object(ad.Attention, "__call__", call):
        yield calls


def _routed(
    attention: ad.Attention,
    blocks: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: int | Tensor = 0,
    **_: Any,
) -> ad.Attention:
    """The attention whose mask also asks the table of a call."""
    instance = attention._instance(q.device)
    made = instance.checked(q, k, v, scale=scale, enable_gqa=enable_gqa, q_offset=q_offset)
    table = table_of_call(blocks, made, enable_gqa)
    joined = joins_of(attention._compilation).of(table, made.q_offset)
    return ad.Attention(joined.compilation, joined.bindings(instance.values, table, made.q_offset), joined.facts)
