"""Triton's interpreter without what it does in vain, which is two fifths of its time.

In: nothing but the module of the interpreter. Out: the same values of the same kernels; a version of Triton that
does these things in another way is left as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def hurry() -> None:
    """For every kernel that is interpreted from now on."""
    from triton import language as tl
    from triton.runtime import interpreter

    _drop_unread_checks(interpreter)
    if hasattr(interpreter, "_LangPatchScope"):
        _patch_language_once(interpreter, tl)
    if hasattr(interpreter, "_get_np_dtype"):
        _remember_dtypes(interpreter)


def _drop_unread_checks(interpreter: Any) -> None:
    """Sums of integers are computed twice to assert that they fit, and the assertion is dropped unless debugging."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)


def _patch_language_once(interpreter: Any, tl: Any) -> None:
    """A launch patches the modules its kernel sees; each call of a helper inside would patch those it sees again."""
    patch, nothing = interpreter._patch_lang, interpreter._LangPatchScope

    def patched(fn: Any) -> Any:
        seen = [module for module in (tl, tl.core) if any(value is module for value in fn.__globals__.values())]
        return patch(fn) if any(tl.core.is_builtin(module.load) for module in seen) else nothing()

    interpreter._patch_lang = patched


def _remember_dtypes(interpreter: Any) -> None:
    """The dtypes of numpy are looked up in a table that is made for each look."""
    look_up, known = interpreter._get_np_dtype, {}

    def remembered(dtype: Any) -> Any:
        if dtype.name not in known:
            known[dtype.name] = look_up(dtype)
        return known[dtype.name]

    interpreter._get_np_dtype = remembered
