"""The dense meaning of a variant in plain torch, and random captured tensors to try it on.

In: a variant as written, and what its parameters are called. Out: the bodies of the functions of an exported file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attndsl.analysis.exponential import Exponential, divisors, exponential
from attndsl.codegen.export.parameters import KINDS
from attndsl.codegen.export.text import Body, Values, body, call_lines, quoted
from attndsl.ir import build
from attndsl.ir.nodes import Const, Expr, Load, Reduce, postorder
from attndsl.ir.variant import TensorParam, Variant


@dataclass(frozen=True, slots=True)
class ReferenceText:
    """`weights`: from final scores to final weights and lse. `sampling`: captured tensors, one after another."""

    mask: Body
    score: Body
    weights: tuple[str, ...]
    sampling: tuple[str, ...]


def reference_text(source: Variant, symbols: Mapping[str, str]) -> ReferenceText:
    """The functions of the reference."""
    score = body((source.score,), symbols, {build.SCORE: "score"})
    return ReferenceText(_mask(source.mask, symbols), score, _weights(source, symbols), _sampling(source, symbols))


def _mask(mask: Expr, symbols: Mapping[str, str]) -> Body:
    return Body((), (f"at.number({mask.value})",)) if isinstance(mask, Const) else body((mask,), symbols)


def _weights(source: Variant, symbols: Mapping[str, str]) -> tuple[str, ...]:
    values = Values(symbols, {build.SCORE: "score"})
    kin = exponential(source.normalizer)
    if kin is not None and kin.sinks is not None and isinstance(kin.shift, Reduce):
        _shift(values, kin.shift, kin.sinks)
    divided = () if kin is None else (kin.shift, kin.divisor)
    weight, *found = values.texts(source.normalizer, *divided, *divisors(source.normalizer), short=True)
    for total in found[len(divided) :]:
        weight = f"torch.where({total} == 0, 0.0, {weight})"
    values.lines.append(f"weight = {weight}")
    values.lines += ("lse = None",) if kin is None else _lse(kin, *found[:2])
    values.name(build.WEIGHT, "weight")
    final = _number(source.weight, values.texts(source.weight, short=True)[0])
    return (*values.lines, f"return {final}, lse")


def _lse(kin: Exponential, shift: str, divisor: str) -> tuple[str, ...]:
    shift = _number(kin.shift, shift)
    return (
        f"empty = ({divisor} == 0) | ({shift} == -torch.inf)",
        f"lse = torch.where(empty, -torch.inf, {shift} + torch.log(torch.where(empty, 1.0, {divisor})))",
        "lse = lse.expand(*live.shape[:-1], 1).squeeze(-1)",
    )


def _shift(values: Values, shift: Expr, sinks: tuple[Expr, ...]) -> None:
    """A shift under which no term overflows: the row's maximum or the largest sink; 0 in a row with neither."""
    largest, *others = values.texts(shift, *sinks, short=True)
    values.lines.append(f"shift = {largest}.detach()")
    for sink, text in zip(sinks, others, strict=True):
        one = _number(sink, text) if isinstance(sink, Const) else f"{text}.detach()"
        values.lines.append(f"shift = torch.maximum(shift, {one})")
    values.lines.append("shift = torch.where(shift == -torch.inf, 0.0, shift)")
    values.name(shift, "shift")


def _number(value: Expr, text: str) -> str:
    """The text of a value as a tensor."""
    return f"at.number({text})" if isinstance(value, Const) else text


def _sampling(source: Variant, symbols: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(line for param in _by_use(source) for line in _sample(source, param, symbols))


def _by_use(source: Variant) -> list[TensorParam]:
    """Captured tensors, those that others are indexed by before these."""
    met = [node.tensor for node in postorder(*source.roots) if isinstance(node, Load)]
    names = dict.fromkeys((*met, *(param.name for param in source.tensors)))
    known = {param.name: param for param in source.tensors}
    return [known[name] for name in names]


def _sample(source: Variant, param: TensorParam, symbols: Mapping[str, str]) -> Iterator[str]:
    """A random tensor, as large as what indexes it asks for."""
    values, loads = Values(symbols), source.loads_of(param.name)
    indices = [
        f"[{', '.join(values.texts(*(load.indices[axis] for load in loads), short=True))}]"
        for axis in range(param.rank)
    ]
    place = f'at.call.values["{symbols[param.name]}"] = '
    first, *others = call_lines("_tensor", ("at", quoted(KINDS[param.dtype]), *indices), 4 + len(place))
    yield from (*values.lines, place + first, *others)
