"""Plans of masks over captured floats: sound whatever the floats, and exact where nothing is computed with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import Program, check_walks, inputs
from plans import counted
from torch import Tensor

import attndsl as ad
from attndsl.analysis.bounds import Strategy
from attndsl.attention import Attention
from attndsl.dense import environment, evaluate
from attndsl.diagnostics import CallError
from attndsl.frontend.parse import parse
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.runtime import facts
from attndsl.runtime.planner import plan_blocks

PARAMS = "g: tensor[B, N], t: tensor[N], u: tensor[N], slope: tensor[H], r: float, x: int tensor[N]"
OF_ELEMENTS = (
    "g[b, kv_idx] {} r",
    "g[b, kv_idx] {} slope[h]",
    "not t[q_idx] {} u[kv_idx]",
    "t[kv_idx] {} t[q_idx] and kv_idx <= q_idx",
    "not (g[b, kv_idx] {} r or x[q_idx] == x[kv_idx])",
)
COMPUTED = (
    "t[q_idx] - t[kv_idx] {} r",
    "abs(t[q_idx] - u[kv_idx]) {} slope[h]",
    "float(q_idx - kv_idx) * slope[h] {} r",
    "t[q_idx] * u[kv_idx] - g[b, kv_idx] {} r",
    "(t[q_idx] - t[kv_idx]) * (t[q_idx] - t[kv_idx]) + slope[h] {} r",
    "sqrt(max(t[q_idx], u[kv_idx])) {} floor(r)",
    "where(g[b, kv_idx] > slope[h], t[q_idx], -t[kv_idx]) {} r and kv_idx <= q_idx + 9",
    "min(t[q_idx] / r, ceil(u[kv_idx])) {} r",
    "round(t[kv_idx] + u[q_idx]) {} t[q_idx]",
)
RELATIONS = ("<", "<=", ">", ">=", "==", "!=")
WILD = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -2e-40, 3e38, -3e38)
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Values:
    """Random floats: of runs, in order or not, with no numbers and extreme ones among them or not."""

    generator: torch.Generator

    def pick(self, *options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=self.generator))]

    def of(self, *sizes: int) -> Tensor:
        last = sizes[-1]
        values = torch.randint(-24, 25, sizes, generator=self.generator) / self.pick(8, 3, 1)
        if self.pick(True, False):
            values = values.sort(-1).values
        if self.pick(True, False):
            values = values.repeat_interleave(self.pick(9, 20, 60), -1)[..., :last]
        wild = torch.tensor(WILD)[torch.randint(len(WILD), sizes, generator=self.generator)]
        often = self.pick(0.0, 0.0, 0.02, 0.3)
        values = torch.where(torch.rand(sizes, generator=self.generator) < often, wild, values)
        if self.pick(True, False, False):
            values[..., last - self.pick(1, 30, 70) :] = self.pick(math.nan, math.inf)
        return values.to(self.pick(*DTYPES))

    def arguments(self, batch: int, heads: int, size: int) -> dict[str, float | Tensor]:
        return {
            "g": self.of(batch, size),
            "t": self.of(size),
            "u": self.of(size),
            "slope": self.of(heads),
            "r": self.pick(0.0, 1.0, 2.5, -3.0, math.inf, 2.0**-149, 2.0**127),
            "x": torch.arange(size) // 30,
        }


def program(mask: str) -> Variant:
    (variant,) = parse(f"attention a({PARAMS}) {{ mask {mask} }}")
    return run_passes(variant)


def classes(variant: Variant, values: dict[str, Any], size: dict[str, Any], block: tuple[int, int]) -> list[Tensor]:
    """The true classes, in float32 and in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        live = evaluate(variant.mask, environment(variant, values, **size, dtype=dtype))
        found.append(counted(live | live.new_zeros(1, 1, size["q_len"], size["kv_len"]), block))
    return found


SIZES = st.tuples(*(st.sampled_from((1, 40, 64, 130, 200)) for _ in range(2)))


@given(
    mask=st.sampled_from((*OF_ELEMENTS, *COMPUTED)),
    relation=st.sampled_from(RELATIONS),
    lengths=SIZES,
    seed=st.integers(0, 2**20),
)
@settings(max_examples=400, deadline=None)
def test_no_tile_is_skipped_or_unmasked_wrongly(mask: str, relation: str, lengths: tuple[int, int], seed: int) -> None:
    values, block = Values(torch.Generator().manual_seed(seed)), (16, 32)
    variant = program(mask.format(relation))
    arguments = values.arguments(2, 2, 200)
    size = {"batch": 2, "heads": 2, "q_len": lengths[0], "kv_len": lengths[1]}
    plan = plan_blocks(variant, arguments, lengths[0], lengths[1], batch=2, heads=2, block=block)
    found = plan.classes()
    narrow, wide = classes(variant, arguments, size, block)
    for truth in (narrow, wide):
        assert (truth[found == 0] == 0).all()
        assert (truth[found == 2] == 2).all()
    are_narrow = all(value.dtype is not torch.float64 for value in arguments.values() if isinstance(value, Tensor))
    if mask in OF_ELEMENTS and are_narrow:
        assert plan.tiles.exact
        assert torch.equal(found, narrow)
    looked = plan_blocks(variant, arguments, lengths[0], lengths[1], batch=2, heads=2, block=block, exact=True)
    assert torch.equal(looked.classes(), narrow)


NEAR = "t[q_idx] - t[kv_idx] < r and not g[b, kv_idx] > slope[h]"


@pytest.mark.parametrize("seed", range(12))
def test_results_have_the_bits_of_the_walk_over_all_tiles(seed: int) -> None:
    values = Values(torch.Generator().manual_seed(seed)).arguments(2, 2, 200)
    (variant,) = parse(f"attention a({PARAMS}) {{ mask {NEAR} }}")
    q, k, v = inputs(batch=2, heads=2, q_len=150, kv_len=200, seed=seed)
    subject = Program(variant, values)
    assert subject.walks() == [Strategy.DENSE]
    check_walks(subject, subject.call(q, k, v), tile=None)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the float tensors whose values were read, in order."""
    found: list[int] = []
    original = facts.summarize_floats

    def counted_read(tensor: Tensor) -> Any:
        found.append(tensor.numel())
        return original(tensor)

    monkeypatch.setattr(facts, "summarize_floats", counted_read)
    return found


def gated(text: str, **values: Tensor) -> Attention:
    return ad.parse(f"attention a(g: tensor[N], bias: tensor[N], x: int tensor[N]) {{ {text} }}").a(
        **{"bias": torch.zeros(200), "x": torch.arange(200) // 30, **values}
    )


def check_call(attend: Attention, seed: int = 0) -> None:
    q, k, v = inputs(q_len=200, seed=seed)
    expected = attend.reference(q.double(), k.double(), v.double())
    assert_rows_close(attend(q, k, v), expected, 2e-4, "output")


def test_floats_of_a_mask_are_read_once_for_each_version(reads: list[int]) -> None:
    """As integers are: again when they were written to, by an optimizer too, and of each new tensor."""
    gate = (torch.arange(200) / 200).requires_grad_()
    attend = gated("mask g[kv_idx] > 0.5 score score + bias[kv_idx]", g=gate)
    for seed in range(2):
        check_call(attend, seed)
    assert reads == [200]
    with torch.no_grad():
        gate.neg_().add_(1)
    check_call(attend)
    assert reads == [200, 200]
    for _ in range(2):
        check_call(attend.bind(g=torch.rand(200, generator=torch.Generator().manual_seed(3))))
    assert reads == [200] * 4
    check_call(attend.bind(bias=torch.ones(200)))
    assert reads == [200] * 4


@pytest.mark.parametrize(
    "mask", ["kv_idx <= q_idx and g[q_idx] > 0.5", "exp(g[kv_idx]) > 1.5 and x[q_idx] == x[kv_idx]"]
)
def test_floats_by_which_no_tile_is_found_stay_unread(mask: str, reads: list[int]) -> None:
    """Bounds are computed in the kernel, and of an exponential nothing is known."""
    check_call(gated(f"mask {mask}", g=torch.arange(200) / 200))
    assert reads == []


def test_a_plan_knows_the_floats_of_bounds(reads: list[int]) -> None:
    plan = gated("mask kv_idx <= q_idx and g[q_idx] > 0.5", g=torch.arange(200) / 200).plan(200, block=(16, 16))
    assert plan.strategy == "closed_form"
    assert plan.tiles.exact
    assert plan.classes()[0, 0, :6].sum() == 0
    assert reads == [200]


class OnGpu(torch.Tensor):
    is_cuda = True


def test_floats_of_a_mask_cannot_be_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = gated("mask g[kv_idx] > 0.5", g=(torch.arange(200) / 200).as_subclass(OnGpu))
    q, k, v = inputs(q_len=200)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(CallError, match="CUDA graph"):
        attend(q, k, v, backend="cpu")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    expected = attend(q, k, v, backend="cpu")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert torch.equal(attend(q, k, v, backend="cpu"), expected)
