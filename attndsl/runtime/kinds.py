"""Calls of one kind: they differ in nothing but where tensors lie and what is in them.

In: the arguments of a call, as a user gave them. Out: a key that calls of one kind share. What is checked, decided and
planned for one of them holds for all, as long as the values that facts were learnt from stand (`runtime.facts`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from attndsl.runtime.arguments import Value

Values = dict[str, Value]


class How(NamedTuple):
    """What a call is given beside q, k and v, under the names users know."""

    scale: Any
    enable_gqa: Any
    q_offset: Any
    blocks: Any
    return_aux: Any
    backend: Any
    check: Any

    @property
    def key(self) -> Hashable:
        """What of this is the same in calls of one kind, but for the offset."""
        return number(self.scale), bool(self.enable_gqa), _listed(self.return_aux), self.backend


def _listed(return_aux: Any) -> Hashable:
    if isinstance(return_aux, list | tuple):
        return tuple(return_aux)
    if isinstance(return_aux, bool) or return_aux is None:
        return bool(return_aux)
    raise TypeError("an iterator gives what it has once")


def kind_of(q: Tensor, k: Tensor, v: Tensor, q_offset: Any, captured: tuple[Tensor, ...]) -> Hashable:
    """The kind of a call as far as tensors go.

    It raises, or has no hash, where an argument is nothing a call is made with.
    """
    offset = layout_of(q_offset) if isinstance(q_offset, Tensor) else number(q_offset)
    return layout_of(q), layout_of(k), layout_of(v), offset, tuple(map(layout_of, captured))


def layout_of(tensor: Tensor) -> Hashable:
    """Everything of a tensor but where it lies and what is in it."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg()


def number(value: Any) -> Hashable:
    """A number as part of a key: `True`, 1 and 1.0 are three, 0.0 and -0.0 two."""
    return type(value), value or repr(value)


def taken_apart(values: Mapping[str, Value]) -> tuple[tuple[Tensor, ...], Hashable]:
    """The captured tensors among the values of parameters, and the numbers as part of a key."""
    tensors = tuple(value for value in values.values() if isinstance(value, Tensor))
    return tensors, tuple(number(value) for value in values.values() if not isinstance(value, Tensor))
