"""A variant of one sequence as a variant over many that lie end to end.

In: a variant. Out: the variant whose queries and keys count tokens of all sequences: what it was of a sequence's own
positions, it is of tokens and of captured tensors that say where their sequence begins. From there on analyses, plans
and kernels see a program like any other: the live keys of a query are an interval whose ends it loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from attndsl.analysis.axes import axes_below
from attndsl.ir import build
from attndsl.ir.names import free_names
from attndsl.ir.nodes import Expr, Load, children, with_children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis, DType
from attndsl.ir.variant import TensorParam, Variant

OF_QUERIES = ("sequence", "q_start", "kv_start", "kv_end", "q_lens", "kv_lens")
OF_KEYS = ("key_sequence", "key_start", "key_q_lens", "key_kv_lens")
ROLES = (*OF_QUERIES, *OF_KEYS)
"""What tensors say of each query's and each key's sequence: its number, where it begins and ends, its lengths."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A variant over packed tokens; `names` are those of the parameters it adds, by role."""

    variant: Variant
    names: Mapping[str, str]


def pack(variant: Variant, is_alike: bool) -> Packed:
    """The variant over packed tokens. `is_alike`: position 0 of a query and of a key are one token of the batch.

    before: `mask kv_idx <= q_idx` and `score score - slopes[b, h] * (q_idx - kv_idx)`
    after:  `mask kv_idx >= kv_start[q_idx] and kv_idx < kv_end[q_idx] and kv_idx <= q_idx` and
            `score score - slopes[sequence[q_idx], h] * (q_idx - kv_idx)`, where lengths are alike
    """
    moved, roles = _moved(variant, is_alike)
    begins = build.apply(Op.GE, build.K, _of(roles["kv_start"], build.Q))
    ends = build.apply(Op.LT, build.K, _of(roles["kv_end"], build.Q))
    mask = build.conjunction([begins, ends, *(() if moved.mask is build.TRUE else (moved.mask,))])
    return _with_used(replace(moved, mask=mask, requirements=(), order=None, moved_to_mask=()), roles)


def pack_predicate(variant: Variant, is_alike: bool) -> Packed:
    """The mask of a variant over packed tokens, which sees no further than the attention it is asked of."""
    return _with_used(*_moved(variant, is_alike))


def _moved(variant: Variant, is_alike: bool) -> tuple[Variant, dict[str, str]]:
    """The stages over packed tokens, and the names of what they read by role."""
    roles = dict(zip(ROLES, free_names(variant, *ROLES), strict=True))
    if is_alike:
        roles["q_start"] = roles["kv_start"]
    moves = _moves(variant, _of_queries(roles), _of_keys(roles))
    return replace(variant.map(moves.__getitem__), origins=variant.origins.moved(moves)), roles


def _with_used(variant: Variant, roles: Mapping[str, str]) -> Packed:
    """The variant with a parameter for every role it reads."""
    read = {node.tensor for node in postorder(*variant.roots) if isinstance(node, Load)}
    used = {role: name for role, name in roles.items() if name in read}
    named = {name: TensorParam(name, DType.I64, ("Nk" if role in OF_KEYS else "Nq",)) for role, name in used.items()}
    return Packed(replace(variant, params=(*variant.params, *named.values())), used)


def _of(name: str, token: Expr) -> Expr:
    return build.load(name, (token,), DType.I64)


def _of_queries(roles: Mapping[str, str]) -> dict[Expr, Expr]:
    """What coordinates are, told by the query: its sequence is that of every key it sees."""
    return {
        build.B: _of(roles["sequence"], build.Q),
        build.Q: build.apply(Op.SUB, build.Q, _of(roles["q_start"], build.Q)),
        build.K: build.apply(Op.SUB, build.K, _of(roles["kv_start"], build.Q)),
        build.Q_LEN: _of(roles["q_lens"], build.Q),
        build.KV_LEN: _of(roles["kv_lens"], build.Q),
    }


def _of_keys(roles: Mapping[str, str]) -> dict[Expr, Expr]:
    """What coordinates are, told by the key."""
    return {
        build.B: _of(roles["key_sequence"], build.K),
        build.K: build.apply(Op.SUB, build.K, _of(roles["key_start"], build.K)),
        build.Q_LEN: _of(roles["key_q_lens"], build.K),
        build.KV_LEN: _of(roles["key_kv_lens"], build.K),
    }


def _moves(variant: Variant, of_queries: Mapping[Expr, Expr], of_keys: Mapping[Expr, Expr]) -> dict[Expr, Expr]:
    """What becomes of every node. What is loaded for a key alone stays so: its gradient then is a sum for each key."""
    moves: dict[Expr, Expr] = {}
    by_key: dict[Expr, Expr] = {}
    axes = axes_below(*variant.roots)
    for node in postorder(*variant.roots):
        by_key[node] = of_keys.get(node) or with_children(node, tuple(by_key[child] for child in children(node)))
        if isinstance(node, Load) and Axis.K in axes[node] and Axis.Q not in axes[node]:
            moves[node] = by_key[node]
        else:
            moves[node] = of_queries.get(node) or with_children(node, tuple(moves[child] for child in children(node)))
    return moves
