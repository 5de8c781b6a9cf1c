"""Identifiers of an emitted kernel: users' names stay as they are unless the kernel or the language needs them."""

from __future__ import annotations

import keyword
from collections.abc import Iterable

_TEMPLATE_NAMES = """
    tl triton range float INF NAN LOG2E RUNTIME BLOCK_M BLOCK_N
    forward statistics row_outputs backward_rows backward_dq backward_dkv backward_diagonal backward_pairs
    Q K V Out Lse Max Q_offset Table Table_rows q_offset q_len kv_len heads kv_heads group sm_scale qk_scale
    tiles tile pid b h kv_h row_base offs_m offs_n offs_d offs_dv rows q_tile k_tile v_tile out_tile k_offs v_offs
    q k v q_idx kv_idx keys q_first q_last key_lo key_hi full_lo full_hi start_n table_row record part done late turn
    s qk p dw ds do live seen seen_lo k_first k_last do_tile do_offs q_offs start_m member key_ok row_lo row_hi places
    column_base key_stop row_stop
    dq dk dv dq_tile dk_tile dv_tile DOut DQ DK DV q_head do_head lse net delta dlse
    scale_i lo hi mid t_i sum_i total_i lower_i upper_i fits diagonal diagonals chunk_lo chunk_hi place inside
    Pages Kv_lens page_size stored page slot splits split share split_lo split_hi
    m_i l_i acc m_new shift alpha row_ok out divisor sink_i stride_tb stride_th
"""

_PIECED = """
    q k v do out dq dk dv q_tile k_tile v_tile do_tile out_tile dq_tile dk_tile dv_tile
    q_offs k_offs v_offs do_offs offs_d offs_dv
"""

KERNEL_NAMES = frozenset(_TEMPLATE_NAMES.split()) | {f"{name}_{piece}" for name in _PIECED.split() for piece in (0, 1)}
"""Every name a forward template writes itself; some for each piece of a head dim."""

PREFIXES = (
    "stride_",
    "size_",
    "key_",
    "row_",
    "full_",
    "m_",
    "l_",
    "d_",
    "acc_",
    "scale_",
    "tau_",
    "alpha_",
    "shift_",
    "p_",
    "Row_",
    "Column_",
    "_",
)
"""Beginnings of the names a kernel derives from its tensors and key ranges, and of helpers."""


def row_pointer(name: str) -> str:
    """The argument that points to the values of a row of that name."""
    return {"lse": "Lse", "m_i": "Max"}.get(name, f"Row_{name}")


def kernel_names(users: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """An identifier of the kernel for each name of a user, in order; a name that clashes grows a `_`."""
    taken = {*KERNEL_NAMES, *taken}
    names: dict[str, str] = {}
    for user in users:
        name = f"arg{user}" if user.startswith(PREFIXES) else user
        while name in taken or keyword.iskeyword(name) or keyword.issoftkeyword(name):
            name += "_"
        taken.add(name)
        names[user] = name
    return names
