"""Functions that come back: traced once, compiled once, never stale, and not kept without bound."""

from __future__ import annotations

import functools
import gc
import itertools
import types
import weakref
from collections.abc import Callable
from typing import Any

import flexing
import pytest
import torch
from torch.nn.attention.flex_attention import and_masks, create_block_mask, or_masks

import attndsl as ad
from attndsl.codegen.plan import Specialisation, Target
from attndsl.integrations import block_masks, traces

pytestmark = pytest.mark.usefixtures("densely")

GLOBAL_WINDOW = 4
SETTINGS = types.ModuleType("settings")
SETTINGS.width = 4  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    traces.forget()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is traced and compiled, as it happens."""
    log: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(traces, name)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            log.append(name)
            return function(*args, **kwargs)

        return call

    for name in ("trace", "Compilation"):
        monkeypatch.setattr(traces, name, counted(name))
    return log


def window(size: int) -> Callable[..., Any]:
    return lambda b, h, q, kv: (kv <= q) & (q - kv < size)


def with_default(b: Any, h: Any, q: Any, kv: Any, size: int = 3) -> Any:
    return (kv <= q) & (q - kv < size)


def with_keyword(size: int, b: Any, h: Any, q: Any, kv: Any, *, first: int = 2) -> Any:
    return (kv <= q) & ((q - kv < size) | (kv < first))


def of_global(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return (kv <= q) & (q - kv < GLOBAL_WINDOW)


def of_module(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return (kv <= q) & (q - kv < SETTINGS.width)


def attended(mask: Any, length: int = 20, score_mod: Any = None) -> torch.Tensor:
    """The output, which is what the formula says."""
    q, k, v = (x.detach() for x in flexing.inputs((1, 2, length, length)))
    found = ad.flex_attention(q, k, v, score_mod, mask)
    torch.testing.assert_close(found, flexing.dense(q, k, v, score_mod, mask)[0])
    return found


@pytest.mark.parametrize(
    "mask",
    [
        window,
        lambda size: and_masks(window(size), or_masks(window(size + 1), window(9))),
        lambda size: functools.partial(with_default, size=size),
        lambda size: functools.partial(with_keyword, size, first=size),
        lambda size: functools.partial(with_keyword, size),
        lambda size: ad.masks.sliding_window(window=size),
        lambda size: ad.mask_mod(window(size)) & ad.masks.causal,
    ],
    ids=["closure", "combined", "partial default", "partial keyword", "keyword default", "library", "combined mods"],
)
def test_other_numbers_are_no_new_program(mask: Callable[[int], Any], made: list[str]) -> None:
    lengths = range(17, 21)
    q, k, v = (x.detach() for x in flexing.inputs((1, 2, 20, 20)))
    outs = [
        ad.flex_attention(q[:, :, :length], k[:, :, :length], v[:, :, :length], None, mask(size))
        for length in lengths
        for size in range(2, 7)
    ]
    assert made == ["trace", "Compilation"]
    assert not torch.equal(outs[0], outs[1])
    wanted = ad.attention(mask_mod=mask(4))
    torch.testing.assert_close(outs[-3], wanted(q, k, v))


def test_fifty_lengths_and_twenty_windows_compile_once(made: list[str]) -> None:
    for length in range(1, 51):
        x = flexing.normal(1, 1, length, 4, seed=length)
        for size in range(1, 21):
            ad.flex_attention(x, x, x, None, window(size))
    assert made == ["trace", "Compilation"]


def test_block_masks_made_anew_compile_once(made: list[str]) -> None:
    for length in (20, 33, 47):
        for size in (3, 8):
            attended(create_block_mask(window(size), None, None, length, length, device="cpu", BLOCK_SIZE=16), length)
    assert made == ["trace", "Compilation"]


def test_other_tensors_are_no_new_program(made: list[str]) -> None:
    def documents(ids: torch.Tensor) -> Callable[..., Any]:
        return lambda b, h, q, kv: ids[q] == ids[kv]

    def bias(table: torch.Tensor) -> Callable[..., Any]:
        return lambda score, b, h, q, kv: score + table[h] * (q - kv)

    for length in (20, 30):
        ids = torch.arange(length) // 7
        attended(documents(ids), length, bias(flexing.normal(2, seed=length).double()))
    assert made == ["trace", "Compilation"]


def test_one_tensor_in_two_places_is_told_from_two() -> None:
    def both(left: torch.Tensor, right: torch.Tensor) -> Callable[..., Any]:
        return lambda b, h, q, kv: (left[q] + right[kv]) % 2 == 0

    one, other = torch.arange(20), torch.arange(20) // 3
    attended(both(one, one))
    attended(both(one, other))
    attended(both(other, other))


def test_numbers_that_python_needs_are_told_apart(made: list[str]) -> None:
    def strided(count: int, size: int) -> Callable[..., Any]:
        def mask(b: Any, h: Any, q: Any, kv: Any) -> Any:
            live = q == kv
            for step in range(count):
                live = live | (q - kv == step * size)
            return live

        return mask

    for count, size in ((2, 3), (3, 3), (3, 5), (2, 4)):
        attended(strided(count, size))
    assert made.count("Compilation") == 2


def test_values_that_are_no_quantities_are_told_apart() -> None:
    def mask(kind: str, is_causal: bool) -> Callable[..., Any]:
        return lambda b, h, q, kv: (kv <= q if is_causal else kv >= q) & (q - kv < (3 if kind == "near" else 9))

    for kind in ("near", "far"):
        for is_causal in (True, False):
            attended(mask(kind, is_causal))


def test_what_changes_between_calls_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3

    def mask(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return (kv <= q) & (q - kv < size)

    first = attended(mask), attended(of_global), attended(of_module), attended(with_default)
    size = 5
    monkeypatch.setitem(globals(), "GLOBAL_WINDOW", 6)
    monkeypatch.setattr(SETTINGS, "width", 7)
    monkeypatch.setattr(with_default, "__defaults__", (8,))
    second = attended(mask), attended(of_global), attended(of_module), attended(with_default)
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))


class Sliding:
    """A mask with a state, read in every way there is."""

    first = 1

    def __init__(self, size: int) -> None:
        self.size = size
        self.inner = Slotted(2)

    def __call__(self, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return (kv <= q) & ((q - kv < self.width) | (kv < self.first) | (q - kv == getattr(self.inner, "size")))  # noqa: B009

    @property
    def width(self) -> int:
        return self.size + 1

    def method(self, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return self(b, h, q, kv) & (kv >= 0)


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class Module(torch.nn.Module):
    """A layer whose mask is a closure over the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 3
        self.slopes = torch.nn.Parameter(flexing.normal(2).double())
        self.register_buffer("ids", torch.arange(20) // 7)

    def mask(self) -> Any:
        return lambda b, h, q, kv: (q - kv < self.size) & (self.ids[q] == self.ids[kv])

    def score(self, score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return score + self.slopes[h] * (q - kv)


def test_the_state_of_objects_is_looked_at(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Sliding(3)
    kinds = (mask, mask.method, lambda b, h, q, kv: mask(b, h, q, kv) & (kv != 5))

    def outs() -> list[torch.Tensor]:
        return [attended(kind) for kind in kinds for _ in range(3)]

    found = [outs()]
    assert made.count("trace") == 3
    mask.size = 5
    found.append(outs())
    mask.inner.size = 9
    found.append(outs())
    mask.inner = Slotted(11)
    found.append(outs())
    monkeypatch.setattr(Sliding, "first", 4)
    found.append(outs())
    monkeypatch.setattr(Sliding, "width", property(lambda self: 2 * self.size))
    found.append(outs())
    assert made.count("trace") == 18
    for before, after in itertools.pairwise(found):
        assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_modules_are_traced_once(made: list[str]) -> None:
    module = Module()
    for _ in range(3):
        attended(module.mask(), 20, module.score)
    assert made == ["trace", "Compilation"]
    with torch.no_grad():
        module.slopes.mul_(2.0)
    module.ids = torch.arange(20) // 5
    attended(module.mask(), 20, module.score)
    assert made == ["trace", "Compilation"]
    module.size = 6
    attended(module.mask(), 20, module.score)
    assert made.count("trace") == 2


class Anything:
    """An object that makes its attributes up."""

    size = 2

    def __getattr__(self, name: str) -> int:
        return len(name) + Anything.size


def test_objects_that_make_attributes_up_are_traced_at_every_call(made: list[str]) -> None:
    anything = Anything()
    for _ in range(2):
        attended(lambda b, h, q, kv: (kv <= q) & (q - kv < anything.width))
    assert made == ["trace", "Compilation", "trace"]


def test_tensors_are_not_kept_alive() -> None:

    def mask_of(ids: torch.Tensor) -> Callable[..., Any]:
        return lambda b, h, q, kv: ids[q] == ids[kv]

    def run() -> list[Any]:
        ids = torch.arange(20) // 7
        block_mask = create_block_mask(mask_of(ids), None, None, 20, 20, device="cpu")
        attended(block_mask)
        attended(mask_of(ids))
        return [weakref.ref(ids), weakref.ref(block_mask), weakref.ref(block_mask.kv_indices)]

    held = run()
    gc.collect()
    assert [ref() for ref in held] == [None, None, None]


def test_a_thousand_variants_are_compiled_and_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a kernel of its own, none falls back, and what has not been used for longest is gone."""
    for name in ("_traces", "_compiled"):
        monkeypatch.setattr(traces, name, traces.Recent(50))
    spec = Specialisation("fp32", 4, 4, target=Target.CPP)
    x = flexing.normal(1, 1, 5, 4).double().requires_grad_()
    kernels, compilations = set(), []
    for number in range(1000):
        mask = eval(f"lambda b, h, q, kv: (kv <= q) & (q + {number} > 2 * kv)")
        compilation = traces.traced(None, mask).program.compilation
        kernels.add(compilation.kernel("forward", spec).source.digest)
        compilations.append(weakref.ref(compilation))
        if number % 100 == 0:
            torch.testing.assert_close(ad.flex_attention(x, x, x, None, mask), flexing.dense(x, x, x, None, mask)[0])
    assert len(kernels) == 1000
    assert len(traces._traces) == len(traces._compiled) == 50
    del compilation
    gc.collect()
    assert sum(ref() is not None for ref in compilations) == 50


def test_what_lists_do_to_masks_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    compared = block_masks._compared
    monkeypatch.setattr(block_masks, "_compared", lambda *args: calls.append(args) or compared(*args))
    block_mask = create_block_mask(window(3), None, None, 20, 20, device="cpu", BLOCK_SIZE=16)
    for _ in range(3):
        attended(block_mask)
    assert len(calls) == 1
    for size in (5, 6, 7):
        block_mask.mask_mod = window(size)
        attended(block_mask)
    assert len(calls) == 4


def test_lists_that_a_mask_implies_leave_closed_forms() -> None:
    block_mask = create_block_mask(window(9), None, None, 70, 70, device="cpu", BLOCK_SIZE=16)
    bound = traces.traced(None, block_mask.mask_mod)
    assert block_masks.with_blocks(bound, block_mask, (1, 1, 70, 70)) is bound
    block_mask.kv_num_blocks[..., 3] -= 1
    joined = block_masks.with_blocks(bound, block_mask, (1, 1, 70, 70)).attention
    plans = [one.plan(70, block=(16, 16)) for one in (bound.attention, joined)]
    assert [plan.strategy for plan in plans] == ["closed_form", "table"]
    assert plans[1].counts["empty"] == plans[0].counts["empty"] + 1
