"""The parameters of a variant as an exported file takes them.

In: parameters. Out: what they are called, as keyword arguments, as tables of kinds, with values to test with.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from attndsl.codegen.export.text import mapping
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant

_OWN_NAMES = """
    q k v scale q_offset return_lse values call at live score weight rows sums silent found torch functional lse
    b h q_idx kv_idx q_len kv_len row_max row_sum floor_divide remainder bit_length shift divisor empty
"""
RESERVED = frozenset(_OWN_NAMES.split())
"""What a parameter cannot be called in an exported file."""

KINDS = {DType.F32: "float", DType.I64: "int", DType.BOOL: "bool"}


@dataclass(frozen=True, slots=True)
class ParametersText:
    """Tables of `scalars` and `tensors` by kind, `arguments` of a function, their `values`, `samples` of scalars."""

    scalars: str
    tensors: str
    arguments: tuple[str, ...]
    values: str
    samples: str


def parameters_text(source: Variant, symbols: Mapping[str, str]) -> ParametersText:
    """The parameters under the names they have in the file."""
    kinds = {symbols[param.name]: f'("{KINDS[param.dtype]}", {param.rank})' for param in source.tensors}
    return ParametersText(
        mapping({symbols[param.name]: _python_type(param) for param in source.scalars}),
        mapping(kinds),
        tuple(f"{symbols[param.name]}: {_annotation(param)}" for param in source.params),
        mapping({name: name for name in symbols.values()}, 4),
        mapping({symbols[param.name]: _sample(param) for param in source.scalars}, 8),
    )


def identifiers(params: Iterable[Param]) -> dict[str, str]:
    """What each parameter is called in the file."""
    found: dict[str, str] = {}
    for param in params:
        name = f"arg{param.name}" if param.name.startswith(("value_", "row_", "_")) else param.name
        while name in RESERVED or name in found.values() or keyword.iskeyword(name) or keyword.issoftkeyword(name):
            name += "_"
        found[param.name] = name
    return found


def _annotation(param: Param) -> str:
    """The type of an argument, with its default."""
    if isinstance(param, TensorParam):
        return "Tensor"
    default = "" if param.default is None else f" = {_number(param.default)}"
    return f"{_python_type(param)}{default}"


def _python_type(param: Param) -> str:
    return "int" if param.dtype.is_int else "float"


def _number(value: int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _sample(param: ScalarParam) -> str:
    if param.default is not None:
        return _number(param.default)
    return "16" if param.dtype.is_int else "0.5"
