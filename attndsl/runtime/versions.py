"""Whether tensors were written to between a forward and its backward, and which.

In: tensors and what to call them. Out: `Versions`, which hold none of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from torch import Tensor

from attndsl.diagnostics import CallError, DiagnosticError, fail


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of tensors at one time. Those that nobody holds any more, nobody writes to."""

    seen: tuple[tuple[str, weakref.ref[Tensor], int], ...]

    @staticmethod
    def of(names: Iterable[str], tensors: Iterable[Tensor]) -> Versions:
        """The versions now; inference tensors have none."""
        pairs = zip(names, tensors, strict=True)
        return Versions(tuple((name, weakref.ref(t), t._version) for name, t in pairs if not t.is_inference()))

    def check(self) -> None:
        """Refuse to go on where a tensor has another version now."""
        changed = [name for name, held, version in self.seen if _version(held, version) != version]
        if changed:
            raise written_in_place(" and ".join(f"`{name}`" for name in changed))


def version_of(tensor: Tensor) -> Hashable | None:
    """Changes with every write torch sees, and when `.data` is swapped; inference tensors keep none."""
    return None if tensor.is_inference() else (tensor._version, tensor.data_ptr())


def written_in_place(what: str) -> DiagnosticError:
    """The error for a backward that would read other values than the forward did."""
    return fail(
        CallError,
        "written-in-place",
        f"{what} was written to between the forward of an attention and its backward, which reads the old values",
        help="write to it after the backward, or give the forward a copy: `bind(slopes=slopes.clone())`",
    )


def _version(held: weakref.ref[Tensor], known: int) -> int:
    tensor = held()
    return known if tensor is None else tensor._version
