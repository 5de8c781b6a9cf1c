"""Identifiers of a C++ kernel: users' names stay as they are unless the kernel or the language needs them.

In: names of users and of values. Out: identifiers. What is taken is read off the headers and the template, so that a
function added there needs no entry here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from attndsl.codegen.cpp_text import GRADIENTS, HEADERS, MODULE, PAGES, PRODUCTS, SOLVE, SUMS, TEMPLATE, template_text
from attndsl.codegen.names import PREFIXES

_KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class co_await
    co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype default delete do
    double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
    requires return short signed sizeof static static_assert static_cast struct switch template this thread_local throw
    true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq
"""
_OTHERS = """
    b h q_idx kv_idx s qk p ds dw q_offset q_len kv_len heads group sm_scale Q K V Out DOut DQ DK DV Lse Max Max_score
    lse max_score Q_offset chunk_lo chunk_hi Table Table_rows
"""


@cache
def taken_names() -> frozenset[str]:
    """Every word of the language, the headers and the template."""
    text = "\n".join(map(template_text, (*HEADERS, SOLVE, *PRODUCTS, SUMS, PAGES, MODULE, TEMPLATE, GRADIENTS)))
    return frozenset((*_KEYWORDS.split(), *_OTHERS.split(), *re.findall(r"[A-Za-z_]\w*", _without_comments(text))))


def cpp_symbols(users: Iterable[str], values: Iterable[str] = ()) -> dict[str, str]:
    """An identifier for each name of a user, in order; one that clashes, with those of `values` too, grows a `_`."""
    taken = {*taken_names(), *values}
    names: dict[str, str] = {}
    for user in users:
        name = f"arg{user}" if user.startswith(PREFIXES) else user
        if not name.isascii():
            name = "".join(letter if letter.isascii() else f"u{ord(letter):x}" for letter in name)
        while name in taken:
            name += "_"
        taken.add(name)
        names[user] = name
    return names


def cpp_name(name: str, symbols: Mapping[str, str]) -> str:
    """The identifier of a value: its own name, with a `_` more while that is taken."""
    while name in taken_names() or name in symbols.values():
        name += "_"
    return name


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|\{#.*?#\}", "", text, flags=re.DOTALL)
