"""What a trace captures: scalars, tensors and torch operations on them, each once, and their names in the end.

In: values as traced functions meet them. Out: the parameters of the variant and the `Bindings` of their values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch

from attndsl.diagnostics import ProgramError, fail
from attndsl.frontend.bindings import Bindings, Bound, Leaf, Recipe, Value, kind_of, nested
from attndsl.frontend.declared import Open
from attndsl.frontend.names import distinct, fresh, identifier, part_of_name
from attndsl.ir.nodes import Coord, Expr
from attndsl.ir.types import Coordinate, DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam

KINDS = {DType.BOOL: torch.bool, DType.I64: torch.int64, DType.F32: torch.float32}
LETTERS = {Coordinate.B: "B", Coordinate.H: "H", Coordinate.Q_IDX: "Q", Coordinate.KV_IDX: "K"}


@dataclass(eq=False, slots=True)
class Captured:
    """A value the variant uses. `label` is its name while it is traced, `name` what its user called it."""

    key: Hashable
    name: str
    mod: str | None
    value: Value | Open
    dtype: DType
    label: str
    recipe: Recipe | None = None
    made_inside: bool = False
    leaf: Leaf = field(default_factory=Leaf)
    letters: list[set[str]] = field(default_factory=list)

    @property
    def source(self) -> Leaf | Recipe:
        """What recipes refer to it by."""
        return self.leaf if self.recipe is None else self.recipe

    def param(self, name: str) -> Param:
        """The parameter of the variant it becomes."""
        match self.value:
            case torch.Tensor():
                return TensorParam(name, self.dtype, tuple(self._dim(number) for number in range(self.value.ndim)))
            case Open(dims=None):
                return ScalarParam(name, self.dtype)
            case Open(dims=dims):
                return TensorParam(name, self.dtype, dims or ())
            case number:
                return ScalarParam(name, self.dtype, number)

    def indexed_by(self, indices: Sequence[Expr]) -> None:
        """Learn what its dimensions stand for."""
        for letters, index in zip(self.letters, indices, strict=False):
            coordinate = index.coordinate if isinstance(index, Coord) else None
            letters.add(LETTERS.get(coordinate, "") if coordinate is not None else "")

    def _dim(self, number: int) -> str:
        letters = self.letters[number]
        if letters == {"Q", "K"}:
            return "N"  # a table of tokens, read at the query's and at the key's position
        return next(iter(letters)) or f"D{number}" if len(letters) == 1 else f"D{number}"


@dataclass(frozen=True, slots=True)
class Finished:
    """Final names by label, the parameters, their bindings, and by name where each captured value was met."""

    names: Mapping[str, str]
    params: tuple[Param, ...]
    bindings: Bindings
    keys: Mapping[str, Hashable]


class Captures:
    """Everything one trace captured."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Captured] = {}
        self._by_tensor: dict[int, Captured] = {}
        self._names: dict[int, tuple[str, str | None]] = {}
        self._constants: set[int] = set()
        # Tensors are known by identity, so none may be freed while the trace runs.
        self._kept: list[torch.Tensor] = []

    def scalar(self, key: Hashable, name: str, mod: str | None, value: float | Open) -> Captured:
        """A number that becomes a runtime scalar."""
        dtype = value.dtype if isinstance(value, Open) else DType.F32 if isinstance(value, float) else DType.I64
        return self._by_key.get(key) or self._add(key, name, mod, value, dtype)

    def stand_in(self, tensor: torch.Tensor, name: str, mod: str | None, key: Hashable) -> torch.Tensor:
        """A tensor that shares the captured one's storage and is known by this name: one tensor may have several."""
        captured = self._by_key.get(key) or self._add(key, name, mod, tensor, self.kind(tensor, name))
        with torch._C.DisableTorchFunction():
            alias = tensor.detach()
        self._know(alias, captured)
        return alias

    def stand_in_of_open(self, value: Open, name: str, mod: str | None, key: Hashable) -> torch.Tensor:
        """A tensor without elements for one that has no value yet."""
        captured = self._by_key.get(key) or self._add(key, name, mod, value, value.dtype)
        with torch._C.DisableTorchFunction():
            alias = torch.empty((0,) * value.ndim, dtype=KINDS[value.dtype], device="meta")
        self._know(alias, captured)
        return alias

    def open_among(self, tensors: Iterable[torch.Tensor]) -> Captured | None:
        """What the first tensor without a value is captured as."""
        known = (self._by_tensor.get(id(tensor)) for tensor in tensors)
        return next((one for one in known if one is not None and isinstance(one.value, Open)), None)

    def hint(self, tensor: torch.Tensor, name: str, mod: str | None) -> None:
        """What to call a tensor if the variant uses it."""
        self._kept.append(tensor)
        self._names.setdefault(id(tensor), (name, mod))

    def made_inside(self, tensor: torch.Tensor) -> bool:
        """Whether the variant itself made the tensor, from nothing captured."""
        return id(tensor) in self._constants

    def of(self, tensor: torch.Tensor, find_name: Callable[[torch.Tensor], tuple[str, str | None]]) -> Captured:
        """What a tensor is captured as."""
        known = self._by_tensor.get(id(tensor))
        if known is not None:
            return known
        name, mod = self._names.get(id(tensor)) or find_name(tensor)
        key = (id(tensor), name)
        captured = self._by_key.get(key) or self._add(key, name, mod, tensor, self.kind(tensor, name))
        captured.made_inside = self.made_inside(tensor)
        self._know(tensor, captured)
        return captured

    def made(self, result: Any) -> Any:
        """Remember what the variant makes from nothing captured."""
        for tensor in tensors_in(result):
            self._kept.append(tensor)
            self._constants.add(id(tensor))
        return result

    def derived(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
        find_name: Callable[[torch.Tensor], tuple[str, str | None]],
    ) -> Any:
        """Remember a torch operation on captured tensors, to be replayed at each call."""
        inputs = [self.of(tensor, find_name) for tensor in tensors_in((args, kwargs)) if not self.made_inside(tensor)]
        source = nested((tuple(args), dict(kwargs)), lambda arg: self._source(arg, find_name))
        name = f"{inputs[0].name}_{suffix(function, args)}"
        for item, tensor in _items(result):
            if id(tensor) in self._by_tensor:
                continue
            recipe = Recipe(_replayable(function), source[0], source[1], item)
            key = ("recipe", function, item, _frozen(source))
            known = self._by_key.get(key)
            if known is None:
                known = self._add(key, name, inputs[0].mod, tensor, self.kind(tensor, name))
                known.recipe = recipe
            self._know(tensor, known)
        return result

    def reads_shape(self, captured: Captured) -> None:
        """Python code read the sizes of a captured tensor."""
        for leaf in _leaves(captured.source):
            leaf.reads_shape = True

    def kind(self, tensor: torch.Tensor, name: str) -> DType:
        """The type of a tensor's elements, or an error."""
        dtype = kind_of(tensor)
        if dtype is None:
            message = f"`{name}` is a tensor of {tensor.dtype}"
            raise fail(ProgramError, "tensor-dtype", message, help="capture bools, integers up to 64 bits or floats")
        return dtype

    def labelled(self, label: str) -> Captured:
        """What a parameter of the traced program stands for."""
        return next(captured for captured in self._by_key.values() if captured.label == label)

    def scalar_keys(self) -> frozenset[Hashable]:
        """The keys of all runtime scalars that have a value."""
        found = self._by_key.items()
        return frozenset(key for key, captured in found if not isinstance(captured.value, torch.Tensor | Open))

    def finish(self, used: set[str]) -> Finished:
        """What the variant uses, under its final names."""
        wanted = [captured for captured in self._by_key.values() if captured.label in used]
        leaves = {leaf for captured in wanted for leaf in _leaves(captured.source)}
        everything = [
            captured
            for captured in self._by_key.values()
            if captured in wanted or (captured.recipe is None and captured.leaf in leaves)
        ]
        names = dict(zip(everything, distinct([(one.name, one.mod) for one in everything]), strict=True))
        bindings = Bindings(
            {names[one]: _bound(one) for one in everything if one.recipe is None},
            {names[one]: one.recipe for one in wanted if one.recipe is not None},
            tuple(names[one] for one in wanted),
        )
        return Finished(
            {one.label: names[one] for one in wanted},
            tuple(one.param(names[one]) for one in wanted),
            bindings,
            {names[one]: one.key for one in everything if one.recipe is None},
        )

    def _add(self, key: Hashable, name: str, mod: str | None, value: Value | Open, dtype: DType) -> Captured:
        name, mod = identifier(name), part_of_name(mod) if mod is not None else None
        label = fresh(name, {captured.label for captured in self._by_key.values()})
        captured = Captured(key, name, mod, value, dtype, label)
        if isinstance(value, torch.Tensor | Open):
            captured.letters = [set() for _ in range(value.ndim)]
        self._by_key[key] = captured
        return captured

    def _know(self, tensor: torch.Tensor, captured: Captured) -> None:
        self._kept.append(tensor)
        self._by_tensor[id(tensor)] = captured

    def _source(self, arg: Any, find_name: Callable[[torch.Tensor], tuple[str, str | None]]) -> Any:
        if isinstance(arg, torch.Tensor) and not self.made_inside(arg):
            return self.of(arg, find_name).source
        return arg


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors inside nested arguments."""
    found: list[torch.Tensor] = []
    nested(value, lambda item: found.append(item) if isinstance(item, torch.Tensor) else None)
    return iter(found)


def suffix(function: Callable[..., Any], args: Sequence[Any]) -> str:
    """What a derived tensor is called after its operation: `w[0]` is `w_0`, `torch.sigmoid(p)` is `p_sigmoid`."""
    name = str(getattr(function, "__name__", "value"))
    if name == "__get__":
        return str(getattr(getattr(function, "__self__", None), "__name__", "value"))
    if name == "__getitem__":
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        return "_".join(str(index).replace("-", "m") for index in indices if isinstance(index, int)) or "rows"
    return name.strip("_")


def _replayable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in a form that can be pickled and copied, which an attribute's getter cannot."""
    if getattr(function, "__name__", None) == "__get__":
        return attrgetter(suffix(function, ()))
    return function


def _items(result: Any) -> Iterator[tuple[int | None, torch.Tensor]]:
    if isinstance(result, torch.Tensor):
        yield None, result
    elif isinstance(result, tuple | list):
        yield from ((item, tensor) for item, tensor in enumerate(result) if isinstance(tensor, torch.Tensor))


def _frozen(value: Any) -> Hashable:
    """A key under which equal operations meet."""
    match value:
        case tuple() | list():
            return (type(value).__name__, *map(_frozen, value))
        case dict():
            return tuple((key, _frozen(item)) for key, item in sorted(value.items()))
        case slice():
            return ("slice", value.start, value.stop, value.step)
        case torch.Tensor():
            return ("constant", id(value))
        case _:
            return (type(value).__name__, value)


def _leaves(source: Leaf | Recipe) -> set[Leaf]:
    if isinstance(source, Leaf):
        return {source}
    found: set[Leaf] = set()
    inputs = (source.args, dict(source.kwargs))
    nested(inputs, lambda arg: found.update(_leaves(arg)) if isinstance(arg, Leaf | Recipe) else None)
    return found


def _bound(captured: Captured) -> Bound:
    dotted = f"{captured.mod}.{captured.name}" if captured.mod is not None else None
    return Bound(captured.value, captured.dtype, captured.leaf, dotted, captured.made_inside)
