"""Attention over sequences of any lengths laid end to end: no padding, no copies.

In: an attention, tokens `(total, heads, head_dim)` and `cu_seqlens`. Out: what the attention gives for each sequence on
its own. Variants count within a sequence: `q_idx` and `kv_idx` from its first token, `b` is its number, `q_len` and
`kv_len` are its lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from attndsl.attention import Attention
from attndsl.compiler import Compilation
from attndsl.diagnostics import CallError, Reporter
from attndsl.frontend.bindings import Bindings, Bound, Leaf, Value
from attndsl.ir.types import DType
from attndsl.ir.variant import Variant
from attndsl.runtime.facts import FactBook
from attndsl.runtime.requirements import check_requirements
from attndsl.runtime.statistics import Aux, Mass
from attndsl.serving.rewrite import Packed, pack, pack_predicate
from attndsl.serving.sequences import Sequences, sequences_of

__all__ = ["packed", "varlen"]


def varlen(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: int | Tensor | str = 0,
    return_aux: bool | Iterable[Any] = False,
    backend: str = "auto",
    check: bool = False,
) -> Any:
    """Attend over packed sequences: q `(total_q, Hq, Dk)`, k `(total_k, Hkv, Dk)`, v `(total_k, Hkv, Dv)`.

    Sequence i has the queries `cu_seqlens_q[i]` to `cu_seqlens_q[i + 1]` and the keys `cu_seqlens_k` says; without
    `cu_seqlens_k` they are the same tokens. Lengths may be 0. Positions are top-left aligned; `q_offset` is an int, an
    int tensor with one for each sequence, or "bottom_right", at which the last query of a sequence stands at its last
    key, as flash-attn has it. The output is `(total_q, Hq, Dv)`, statistics of rows `(total_q, Hq)`. Gradients flow to
    q, k, v and what the attention captures. Other arguments are those of an attention.
    """
    _check_tensors(q, k, v, cu_seqlens_q)
    over = _over(attention, cu_seqlens_q, cu_seqlens_k, q_offset, (len(q), len(k)))
    found = over.attention(
        *(tensor.transpose(0, 1)[None] for tensor in (q, k, v)),
        scale=scale,
        enable_gqa=enable_gqa,
        return_aux=return_aux if isinstance(return_aux, bool) else over.statistics(return_aux),
        backend=backend,
        check=check,
    )
    if isinstance(found, Tensor):
        return _tokens_first(found)
    out, aux = found
    return _tokens_first(out), _aux(aux)


def packed(
    attention: Attention, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None = None, *, q_offset: int | Tensor | str = 0
) -> Attention:
    """The attention over the tokens of all sequences, as `varlen` calls it: for `plan`, `explain` and `source`.

    Its one batch has `total_q` queries and `total_k` keys, and it is of these sequences alone.
    """
    return _over(attention, cu_seqlens_q, cu_seqlens_k, q_offset, (None, None)).attention


@dataclass(frozen=True, slots=True, eq=False)
class _Over:
    """An attention over sequences."""

    attention: Attention
    sequences: Sequences

    def statistics(self, names: Iterable[Any]) -> list[Any]:
        """What is asked of rows; predicates count within sequences too."""
        return [self._mass(one) if isinstance(one, Mass) else one for one in names]

    def _mass(self, mass: Mass) -> Mass:
        found = pack_predicate(mass.variant, self.sequences.is_alike)
        return Mass(found.variant, _bindings(found, mass.bound.resolve(), self.sequences))


@dataclass(frozen=True, slots=True, eq=False)
class _Joined:
    packed: Packed
    compilation: Compilation
    facts: FactBook


_joined: WeakKeyDictionary[Compilation, dict[bool, _Joined]] = WeakKeyDictionary()


def _over(
    attention: Attention,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    q_offset: int | Tensor | str,
    totals: tuple[int | None, int | None],
) -> _Over:
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    sequences = sequences_of(cu_seqlens_q, cu_seqlens_k, q_offset, *totals)
    values = attention._values(cu_seqlens_q.device)
    _check_requirements(attention.variant, values, sequences)
    joined = _joined_with(attention._compilation, sequences.is_alike)
    bindings = _bindings(joined.packed, values, sequences)
    return _Over(Attention(joined.compilation, bindings, joined.facts), sequences)


def _joined_with(compilation: Compilation, is_alike: bool) -> _Joined:
    known = _joined.setdefault(compilation, {})
    if is_alike not in known:
        found = pack(compilation.source, is_alike)
        known[is_alike] = _Joined(found, Compilation(found.variant), FactBook())
    return known[is_alike]


def _bindings(found: Packed, values: Mapping[str, Value], sequences: Sequences) -> Bindings:
    """The values of the variant's parameters, and those that tell sequences."""
    captured = {
        param.name: Bound(values[param.name], param.dtype, Leaf())
        for param in found.variant.params
        if param.name in values
    }
    captured |= {name: Bound(sequences.tensors[role], DType.I64, Leaf()) for role, name in found.names.items()}
    return Bindings(captured, {}, tuple(captured))


def _check_requirements(variant: Variant, values: Mapping[str, Value], sequences: Sequences) -> None:
    """What a variant asks of calls, it asks of every sequence."""
    if variant.demands:
        for q_len, kv_len, offset in sorted(sequences.distinct()):
            check_requirements(variant, values, q_len, kv_len, offset)


def _check_tensors(q: Any, k: Any, v: Any, cu_seqlens_q: Any) -> None:
    reporter = Reporter(CallError)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            reporter.error("not-a-tensor", f"`{name}` is of type {type(tensor).__name__}, expected a torch tensor")
        elif tensor.dim() != 3:
            message = f"`{name}` has shape {tuple(tensor.shape)}, expected 3 dimensions"
            reporter.error("wrong-rank", message, help="shape it (tokens of all sequences, heads, head_dim)")
    if isinstance(q, Tensor) and isinstance(cu_seqlens_q, Tensor) and q.device != cu_seqlens_q.device:
        message = f"`cu_seqlens_q` is on {cu_seqlens_q.device}, `q` on {q.device}"
        reporter.error("mixed-devices", message, help=f"move it: `cu_seqlens_q.to({str(q.device)!r})`")
    reporter.check()


def _tokens_first(tensor: Tensor) -> Tensor:
    return tensor[0].transpose(0, 1).contiguous()


def _aux(aux: Aux) -> Aux:
    """Statistics as `(total_q, Hq)`."""
    mass = tuple(map(_tokens_first, aux.mass)) if isinstance(aux.mass, tuple) else aux.mass
    named = {name: getattr(aux, name) for name in ("lse", "max_score", "entropy")} | {"mass": mass}
    return replace(aux, **{name: _tokens_first(one) if isinstance(one, Tensor) else one for name, one in named.items()})
