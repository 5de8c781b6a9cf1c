"""What the compiler makes of a native kernel: which instructions, how many vector registers.

In: a kernel by name. Out: its `KernelReport`. Counts are of the text, once for each place, not of what runs. `assembly`
is the C++ itself, which debuggers and profilers show too.
"""

from __future__ import annotations

import re
from collections import Counter

from attndsl.codegen.plan import Emitted
from attndsl.runtime.native.compiler import compiler
from attndsl.runtime.reports import KernelReport
from attndsl.runtime.tiles import default_tile

_INSTRUCTION = re.compile(r"^\t([a-z][a-z0-9.]*)\b(?!:)", re.MULTILINE)
_VECTOR_REGISTER = re.compile(r"%[xyz]mm(\d+)|\b[vqz](\d+)\b(?=[.,\s])")


def report(name: str, emitted: Emitted) -> KernelReport:
    """One kernel compiled for this machine. It has no shared memory; what is spilled a compiler does not tell."""
    listing = compiler().listing(emitted.text)
    return KernelReport(
        name=name,
        registers=len({x86 or arm for x86, arm in _VECTOR_REGISTER.findall(listing)}),
        spilled_bytes=None,
        shared_bytes=0,
        instructions=dict(Counter(_INSTRUCTION.findall(listing))),
        assembly=emitted.text,
        tile=default_tile("cpu", emitted.plan),
    )
