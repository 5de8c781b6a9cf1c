"""Why a tile cannot be had: what Triton and the machine say of a kernel that is too large for it.

In: an error a launch raised. Out: a sentence, or nothing where the error is about something else.
"""

from __future__ import annotations

import sys


def why_unfit(error: Exception) -> str | None:
    """What a launch that failed says of its tile."""
    if isinstance(error, MemoryError):
        return "there is no memory to work in"
    if "triton" not in sys.modules:
        return None
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    match error:
        case OutOfResources(required=required, limit=limit, name=name):
            return f"{required} of {limit} {name}"
        case PTXASError() | CompilationError():
            return f"it does not compile: {str(error).strip().splitlines()[-1]}"
        case RuntimeError() if "PassManager::run failed" in str(error):
            return "Triton's compiler fails"
        case _:
            return None
