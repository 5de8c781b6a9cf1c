"""The gradients an exported file has, as torch computes what kernels leave open.

In: a derivation, and what the parameters are called. Out: which captured tensors have a gradient, and the lines that
put their gradients together from what kernels have summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attndsl.analysis.backward import DELTA, Backward
from attndsl.analysis.streaming import Refusal
from attndsl.analysis.structure import Structure, is_indexed_by_scores, structure_of
from attndsl.codegen.derivation import Derivation
from attndsl.codegen.export.text import Values, call_lines
from attndsl.codegen.plan import Specialisation
from attndsl.ir.nodes import Expr, Load, postorder

PLACES = {Structure.ROW: "[..., None]", Structure.COLUMN: "[:, :, None, :]"}
"""How sums of rows, and of columns, lie beside pairs."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """The captured floats a file has gradients of, and those it has none of, with why."""

    names: tuple[str, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BackwardText:
    reads_delta: bool
    has_sums: bool
    rows: tuple[str, ...]
    by_row: tuple[str, ...]
    by_column: tuple[str, ...]


def learnt_of(derivation: Derivation) -> Learnt:
    """What a file has gradients of."""
    if isinstance(derivation.derivative, Refusal):
        return Learnt((), {})
    refused = {}
    for load in derivation.cotangents:
        if isinstance(load, Load) and is_indexed_by_scores(load):
            refused[load.tensor] = "which is indexed by scores"
        elif isinstance(load, Load) and structure_of(load) in (Structure.DIAGONAL, Structure.PAIRS):
            refused[load.tensor] = "which is indexed by queries and keys together"
    floats = (param.name for param in derivation.program.tensors if param.dtype.is_float)
    return Learnt(tuple(name for name in floats if name not in refused), refused)


def backward_text(derivation: Derivation, spec: Specialisation, symbols: Mapping[str, str]) -> BackwardText | None:
    """What hosts compute of the gradients; `spec` names the tensors that have some. Nothing where there are none."""
    form = derivation.derivative
    if isinstance(form, Refusal):
        return None
    formulas = (*(row.value for row in (*form.sums, *form.rows)), form.dscore)
    all_values = (*formulas, *(value for _, value in (*form.dloads, *form.drows)))
    by_row, by_column = (_gathered(derivation, spec, symbols, structure) for structure in PLACES)
    _add_of_rows(by_row, form, spec, symbols)
    rows = _row_values(form, symbols)
    has_delta = DELTA in postorder(*all_values)
    return BackwardText(has_delta, bool(form.sums), rows, tuple(by_row.lines), tuple(by_column.lines))


def _row_values(form: Backward, symbols: Mapping[str, str]) -> tuple[str, ...]:
    values = Values(symbols)
    for row in form.rows:
        text = _where_heard(values, row.value)
        values.lines.append(f'rows["{row.name}"] = {text}[..., 0].contiguous()')
    return tuple(values.lines)


def _gathered(derivation: Derivation, spec: Specialisation, symbols: Mapping[str, str], structure: Structure) -> Values:
    """What kernels have summed for captured elements of a row, or of a column."""
    values = Values(symbols)
    for name, load in derivation.captured(spec, structure).items():
        _add(values, symbols, load, f'sums["{name}"]{PLACES[structure]}')
    return values


def _add_of_rows(values: Values, form: Backward, spec: Specialisation, symbols: Mapping[str, str]) -> None:
    """The derivatives that are values of a row, and need no kernel."""
    for load, value in form.drows:
        if load.tensor in spec.gradients:
            _add(values, symbols, load, _where_heard(values, value))


def _where_heard(values: Values, value: Expr) -> str:
    """A value of a row, 0 in rows that see no key."""
    return f"torch.where(silent[..., None], 0.0, {values.texts(value, short=True)[0]})"


def _add(values: Values, symbols: Mapping[str, str], load: Load, derivatives: str) -> None:
    indices = f"[{', '.join(values.texts(*load.indices, short=True))}]"
    values.lines += call_lines("_add", (f'found["{symbols[load.tensor]}"]', indices, derivatives))
