"""Identifiers of an emitted kernel: users' names stay as they are unless the kernel or the language needs them."""

from __future__ import annotations

import keyword
from collections.abc import Iterable

_TEMPLATE_NAMES = """
    tl triton range float INF NAN LOG2E RUNTIME BLOCK_M BLOCK_N forward
    Q K V Out Lse Max Q_offset Table Table_rows q_offset q_len kv_len heads group sm_scale qk_scale
    tiles tile pid b h kv_h row_base offs_m offs_n offs_d offs_dv rows q_tile k_tile v_tile out_tile k_offs v_offs
    q k v q_idx kv_idx keys q_first q_last key_lo key_hi full_lo full_hi start_n table_row record part done late
    s p live seen seen_lo m_i l_i acc m_new shift alpha row_ok out sink_i stride_tb stride_th
"""

KERNEL_NAMES = frozenset(_TEMPLATE_NAMES.split())
"""Every name a forward template writes itself."""

PREFIXES = ("stride_", "size_", "key_", "full_", "_")
"""Beginnings of the names a kernel derives from its tensors and key ranges, and of helpers."""


def kernel_names(users: Iterable[str]) -> dict[str, str]:
    """An identifier of the kernel for each name of a user, in order; a name that clashes grows a `_`."""
    taken = set(KERNEL_NAMES)
    names: dict[str, str] = {}
    for user in users:
        name = f"arg{user}" if user.startswith(PREFIXES) else user
        while name in taken or keyword.iskeyword(name) or keyword.issoftkeyword(name):
            name += "_"
        taken.add(name)
        names[user] = name
    return names
