"""What an operator is given, run by kernels: flat lists of tensors and numbers, and a program by its text.

In: the arguments of `attndsl.operators`. Out: flat lists of tensors: the rows of a call, or its gradients; or fake ones
of the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from attndsl.analysis.streaming import LSE
from attndsl.codegen.derivation import Derivation
from attndsl.diagnostics import UnsupportedError, fail
from attndsl.engines import ENGINES
from attndsl.engines.kernels import Kernels
from attndsl.ir.order import GridOrder
from attndsl.ir.variant import Param, TensorParam
from attndsl.programs import Program, program_of, variants_of
from attndsl.runtime import order
from attndsl.runtime.arguments import Call, Value, check_call
from attndsl.runtime.autograd import INPUTS, check_differentiable, without_autocast
from attndsl.runtime.backends import TARGETS, USE_REFERENCE, Backend, chosen
from attndsl.runtime.facts import Facts
from attndsl.runtime.gradients.whole import Cotangents, Needed, gradients
from attndsl.runtime.launch import Rows
from attndsl.runtime.statistics import Mass, Wanted

MAX_SCORE = "max_score"


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One call of an operator, which is checked when it runs. `scale` is `None` for the default."""

    program: Program
    call: Call
    scale: float | None
    enable_gqa: bool
    wanted: Wanted
    backend: Backend

    @staticmethod
    def of(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        captured: Sequence[Tensor],
        integers: Sequence[int],
        floats: Sequence[float],
        q_offsets: Tensor | None,
        q_offset: int,
        scale: float | None,
        enable_gqa: bool,
        program: str,
        masses: str,
        entropy: bool,
        backend: str,
    ) -> Operation:
        """From the operator's arguments. `captured`, `integers` and `floats` are the values of the program's parameters
        by kind, in order, and after them those of the predicates of `masses`."""
        found, given = program_of(program), Flat(iter(captured), iter(integers), iter(floats))
        values = given.values(found.source.params)
        predicates = tuple(Mass(one, Given(given.values(one.params))) for one in variants_of(masses))
        wanted = Wanted(frozenset(["entropy"] if entropy else []), everything=False, masses=predicates)
        call = Call(q, k, v, 1.0, q_offset if q_offsets is None else q_offsets, values)
        return Operation(found, call, scale, enable_gqa, wanted, Backend(backend))

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows it leaves after its output, by name: those it returns, and those only its backward reads."""
        return (*self.returned, *self._kept)

    @property
    def returned(self) -> tuple[str, ...]:
        """The rows it returns."""
        return _returned(self.program, "entropy" in self.wanted.names, len(self.wanted.masses))

    @property
    def differentiable(self) -> list[bool]:
        """Which of the tensors it leaves have gradients: the output, and the rows it returns but the largest scores."""
        return [True, *(name in self.returned and name != MAX_SCORE for name in self.rows)]

    def empty_rows(self) -> list[Tensor]:
        """Tensors of the shapes of what it leaves."""
        q, v = self.call.q, self.call.v
        dtype = torch.promote_types(q.dtype, torch.float32)
        out = q.new_empty((*q.shape[:3], v.shape[3]))
        return [out, *(q.new_empty(q.shape[:3], dtype=dtype) for _ in self.rows)]

    def forward(self) -> list[Tensor]:
        """The output, and its `rows`."""
        call, engine = self._ready()
        tokens = self.program.source.order
        with torch.no_grad(), without_autocast(call.q):
            rows = engine.forward(call if tokens is None else order.stored(call, tokens))
            # What only the backward reads stays in the order kernels keep tokens in.
            kept = [rows.kept[name] for name in self._kept]
            rows = rows if tokens is None else order.restored(rows, tokens)
        found = {MAX_SCORE: rows.max_score, LSE.name: rows.lse, **rows.sums}
        left = (rows.out, *(found[name] for name in self.returned), *kept)
        return [row.contiguous() for row in left if row is not None]

    def empty_gradients(self, needed: Sequence[bool]) -> list[Tensor]:
        """Tensors of the shapes of the gradients."""
        tensors = (self.call.q, self.call.k, self.call.v, *_tensors(self.call.values).values())
        masses = (tensor for mass in self.wanted.masses for tensor in _tensors(mass.bound.resolve()).values())
        return [
            tensor.new_empty(tensor.shape) for tensor, need in zip((*tensors, *masses), needed, strict=True) if need
        ]

    def backward(
        self, left: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor]:
        """The gradients of q, k, v and captured tensors, where they are needed, from those of what `forward` left."""
        call, engine = self._ready()
        learning = [name for name, need in zip(_tensors(call.values), needed[len(INPUTS) :], strict=True) if need]
        check_differentiable(engine, learning)
        names, tokens = ("out", *self.rows), self.program.source.order
        rows, given = dict(zip(names, left, strict=True)), dict(zip(names, cotangents, strict=True))
        if tokens is not None:
            call = order.stored(call, tokens)
            in_order = {name: order.to_storage(rows[name], tokens) for name in ("out", *self.returned)}
            rows, given = {**rows, **in_order}, {name: _stored(one, tokens) for name, one in given.items()}
        with torch.no_grad(), without_autocast(call.q):
            needs = Needed(needed[0], needed[1], needed[2], tuple(learning))
            found = gradients(engine, call, self._known(rows), self._given(given), needs)
        inputs = [one for one in (found.q, found.k, found.v) if one is not None]
        if tokens is not None:
            inputs = [order.from_storage(one, tokens) for one in inputs]
        return [one.contiguous() for one in (*inputs, *(found.captured[name] for name in learning))]

    def check_differentiable(self, needed: Sequence[bool]) -> None:
        """Refuse what has no gradients, with every reason, whatever values the tensors have."""
        names = _tensors(self.call.values)
        learning = [name for name, need in zip(names, needed, strict=False) if need]
        sums = replace(self.wanted, masses=()).sums(self.call)
        check_differentiable(Kernels(self.program.compilation, self.program.facts, Facts(False), sums.sums), learning)

    @property
    def _derivation(self) -> Derivation:
        return self.program.compilation.derivation

    @property
    def _kept(self) -> tuple[str, ...]:
        """The rows its backward reads beside those it returns."""
        return tuple(name for name in self._derivation.streaming.kept if self._named(name) not in (MAX_SCORE, LSE.name))

    def _named(self, kept: str) -> str:
        """Under which name a row that is kept is left."""
        return MAX_SCORE if kept == self._derivation.maximum else kept

    def _ready(self) -> tuple[Call, Kernels]:
        """The call once it is checked, sums and all, and what runs it."""
        source, facts = self.program.source, self.program.facts
        given, enable_gqa = self.call, self.enable_gqa
        how = partial(check_call, scale=self.scale, enable_gqa=enable_gqa, q_offset=given.q_offset)
        call = how(source, given.values, given.q, given.k, given.v)
        target = TARGETS.get(chosen(self.backend, call))
        if target is None:
            message = f"graphs have no kernels for tensors on {call.q.device}"
            raise fail(UnsupportedError, "kernel-device", message, help=USE_REFERENCE)
        sums = self.wanted.sums(call)
        compilation = self.program.compilation
        engine = ENGINES[target](compilation, facts, facts.of(source, compilation.program, call), sums.sums)
        return replace(call, values={**call.values, **sums.values}), engine

    def _known(self, rows: Mapping[str, Tensor]) -> Rows:
        """What `forward` left, as a backward reads it."""
        kept = {name: rows[self._named(name)] for name in self._derivation.streaming.kept}
        sums = {name: rows[name] for name in self.returned if name not in (MAX_SCORE, LSE.name)}
        return Rows(rows["out"], rows.get(LSE.name), rows[MAX_SCORE], sums, kept)

    def _given(self, given: Mapping[str, Tensor | None]) -> Cotangents:
        sums = {name: given[name] for name in self.returned if name not in (MAX_SCORE, LSE.name)}
        return Cotangents(given["out"], given.get(LSE.name), sums)


@dataclass(frozen=True, slots=True)
class Given:
    """Values of parameters that were resolved before."""

    found: Mapping[str, Value]

    def resolve(self, device: torch.device | None = None) -> dict[str, Value]:
        """As they are."""
        return dict(self.found)


@dataclass(frozen=True, slots=True)
class Flat:
    """Values of parameters by kind, in order."""

    tensors: Iterator[Tensor]
    integers: Iterator[int]
    floats: Iterator[float]

    def values(self, params: Iterable[Param]) -> dict[str, Value]:
        """The next value for each parameter."""
        return {param.name: self._next(param) for param in params}

    def _next(self, param: Param) -> Value:
        if isinstance(param, TensorParam):
            return next(self.tensors)
        return next(self.integers) if param.dtype.is_int else next(self.floats)


def returned_rows(program: str, masses: str, entropy: bool) -> tuple[str, ...]:
    """The rows an operator returns after its output, by name."""
    return _returned(program_of(program), entropy, len(variants_of(masses)))


def _returned(program: Program, entropy: bool, masses: int) -> tuple[str, ...]:
    lse = () if program.compilation.derivation.streaming.lse is None else (LSE.name,)
    sums = (*(["entropy"] if entropy else []), *(f"mass_{position}" for position in range(masses)))
    return (MAX_SCORE, *lse, *sums)


def _tensors(values: Mapping[str, Value]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _stored(tensor: Tensor | None, tokens: GridOrder) -> Tensor | None:
    return None if tensor is None else order.to_storage(tensor, tokens)
