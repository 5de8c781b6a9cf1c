"""Tuning: what is tried, what is refused, what is kept on disk, and who finds it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from launches import INTERPRETING, on_kernels
from torch import Tensor

import attndsl as ad
from attndsl import judging
from attndsl.attention import Attention
from attndsl.cli import main
from attndsl.codegen.plan import Specialisation, Target
from attndsl.diagnostics import CallError, VerifyError
from attndsl.engines.kernels import Kernels
from attndsl.judging import Judge
from attndsl.probing import Probe, Unfit
from attndsl.reference import attend
from attndsl.runtime import tuning
from attndsl.runtime.arguments import Call
from attndsl.runtime.cache import Kind, cached_files
from attndsl.runtime.store import CacheWarning
from attndsl.runtime.tile_records import read_tile, tile_record
from attndsl.runtime.tiles import FAMILIES, TileShape, default_tile, is_within, neighbours
from attndsl.runtime.timing import milliseconds
from attndsl.runtime.tuning_report import KernelTuning, Trial, TuningReport
from attndsl.runtime.unfit import why_unfit

ALIBI = "attention alibi(t: tensor[H], w: int = 50) { mask kv_idx <= q_idx and q_idx - kv_idx < w score score + t[h] }"
DEFAULT = TileShape(32, 32, 4, 1) if INTERPRETING else TileShape(64, 64)
OTHER = replace(DEFAULT, block_n=16) if INTERPRETING else replace(DEFAULT, block_n=32)
LENGTH = 36 if INTERPRETING else 150
KERNELS = ("forward", "backward_dq", "backward_dkv") if INTERPRETING else ("forward", "backward")
KEY = "0123456789abcdef" * 4

pytestmark = on_kernels
here_alone = pytest.mark.skipif(INTERPRETING, reason="the same whatever runs the kernels")


@pytest.fixture(autouse=True)
def nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tile of another test; kernels themselves come from the folder all tests share."""
    monkeypatch.setattr(tuning, "cache_dir", lambda: tmp_path)
    tuning.forget_tiles()
    yield
    tuning.forget_tiles()


def timed(monkeypatch: pytest.MonkeyPatch, ms: Callable[[TileShape], float]) -> None:
    """Launches take so many milliseconds by their tile."""

    def time(self: Probe, device: torch.device, launch: Any) -> None:
        self.ms += ms(DEFAULT if self.tile is None else self.tile)

    monkeypatch.setattr(Probe, "time", time)


@pytest.fixture
def second_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile but the default takes half of the time."""
    timed(monkeypatch, lambda tile: 2.0 if tile == DEFAULT else 1.0)


def alibi(**values: Any) -> Attention:
    (found,) = ad.parse(ALIBI)
    return found.bind(**{"t": torch.tensor([0.5, -0.25]), **values})


def inputs(length: int = LENGTH, heads: int = 2, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(1, heads, length, 16, requires_grad=grad) for _ in range(3))  # type: ignore[return-value]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[TileShape]:
    """The tiles of kernels that run."""
    found: list[TileShape] = []
    planned = Kernels._planned

    def watched(self: Kernels, *arguments: Any) -> Any:
        kernel, tile, table = planned(self, *arguments)
        found.append(tile)
        return kernel, tile, table

    monkeypatch.setattr(Kernels, "_planned", watched)
    return found


def test_the_fastest_is_used_from_now_on(second_wins: None, used: list[TileShape], tmp_path: Path) -> None:
    """By other values and other lengths of the same order, and by a process that asks the disk, once."""
    attention = alibi()
    report = attention.tune(*inputs(), candidates=[OTHER])
    assert report.chosen == {"forward": OTHER}
    assert [trial.ms for trial in report.kernels[0].trials] == [2.0, 1.0]
    assert report.kernels[0].gain == 2.0
    used.clear()
    attention.bind(w=20)(*inputs(), check=True)
    alibi()(*inputs(LENGTH - 9), check=True)
    assert used == [OTHER, OTHER]
    tuning.forget_tiles()
    attention(*inputs(), check=True)
    for path in tmp_path.glob("*/*.tile"):
        path.unlink()
    attention(*inputs())
    assert used[2:] == [OTHER, OTHER]
    tuning.forget_tiles()
    attention(*inputs())
    assert used[4:] == [DEFAULT]


def test_attentions_called_before_use_it_too(second_wins: None, used: list[TileShape]) -> None:
    """Kinds of calls that another attention has prepared are prepared again, once."""
    before = alibi(w=20)
    wanted = before(*inputs())
    alibi().tune(*inputs(), candidates=[OTHER])
    used.clear()
    found = [before(*inputs()), before(*inputs())]
    assert used == [OTHER] * (2 if INTERPRETING else 1)
    torch.testing.assert_close(found, [wanted, wanted], atol=1e-5, rtol=1e-5)


def test_calls_of_another_kind_are_not_meant(second_wins: None, used: list[TileShape]) -> None:
    alibi().tune(*inputs(), candidates=[OTHER])
    used.clear()
    alibi()(*inputs(heads=2, length=15))
    alibi()(*(tensor.half() for tensor in inputs()))
    (other,) = ad.parse("mask kv_idx <= q_idx".join(("attention plain() { ", " }")))
    other(*inputs())
    assert used == [DEFAULT] * 3


def test_gradients_are_tuned_where_they_are_wanted(second_wins: None, used: list[TileShape]) -> None:
    learnt = torch.tensor([0.5, -0.25], requires_grad=True)
    report = alibi(t=learnt).tune(*inputs(), candidates=[OTHER])
    assert report.chosen == dict.fromkeys(KERNELS, OTHER)
    used.clear()
    results = []
    for _ in range(2):
        learnt.grad = None
        q, k, v = inputs(grad=True)
        out = alibi(t=learnt)(q, k, v)
        out.backward(torch.ones_like(out))
        results.append((out, q.grad, k.grad, v.grad, learnt.grad))
    assert used == [OTHER] * len(KERNELS) * 2
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@here_alone
def test_only_the_forward_where_no_gradient_is_wanted(second_wins: None) -> None:
    assert tuple(alibi().tune(*inputs(), candidates=[]).chosen) == ("forward",)
    learns = alibi().tune(*inputs(), candidates=[], backward=True)
    assert tuple(learns.chosen) == KERNELS
    assert set(learns.chosen.values()) == {DEFAULT}


@here_alone
def test_what_tuning_prints(second_wins: None) -> None:
    wide = replace(DEFAULT, block_m=16) if INTERPRETING else replace(DEFAULT, block_m=128)
    found = KernelTuning(
        "forward", (Trial(DEFAULT, 2.0), Trial(OTHER, 1.0), Trial(wide, None, "too large")), OTHER, 2.0
    )
    stays = replace(found, kernel="backward_dq", chosen=DEFAULT, gain=1.0)
    lines = str(TuningReport("mine", "a device", (found, stays), 64, 100, "over")).splitlines()
    assert lines[0] == "mine on a device, 64 of 100 queries checked against the reference"
    assert lines[1] == "  forward: 2.00 times as fast as the default"
    assert [line.split()[4] for line in lines[3:6]] == ["1.0000", "2.0000", "-"]
    assert lines[3].endswith("<- used")
    assert lines[4].endswith("(default)")
    assert lines[5].endswith("too large")
    assert lines[6] == "  backward_dq: the default stays"
    assert lines[-1] == "  over"


@here_alone
def test_noise_replaces_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile that wins by a percent, and one that won once and not in turns with the default."""
    timed(monkeypatch, lambda tile: 1.0 if tile == DEFAULT else 0.99)
    assert alibi().tune(*inputs(), candidates=[OTHER]).chosen == {"forward": DEFAULT}
    times = iter([2.0, 1.0, *[2.0, 2.0] * 3])
    timed(monkeypatch, lambda tile: next(times))
    assert alibi().tune(*inputs(), candidates=[OTHER]).chosen == {"forward": DEFAULT}
    assert next(times, None) is None


def test_a_wrong_tile_is_never_chosen(second_wins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Judge._step

    def wrong(self: Judge, engine: Any) -> Any:
        found = step(self, engine)
        if engine.probe.tile == OTHER:
            found.out[0, 1, LENGTH // 2 + 1] += 1.0  # also where the reference does not look
        return found

    monkeypatch.setattr(Judge, "_step", wrong)
    monkeypatch.setattr(judging, "ROWS", 3)
    report = alibi().tune(*inputs(), candidates=[OTHER])
    assert report.chosen == {"forward": DEFAULT}
    assert report.kernels[0].trials[1].ms is None
    assert "out differs from the reference by" in report.kernels[0].trials[1].why


@here_alone
@pytest.mark.parametrize("name", ["k", "t"])
def test_a_wrong_gradient_is_noticed(second_wins: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    step = Judge._step

    def wrong(self: Judge, engine: Any) -> Any:
        found = step(self, engine)
        if engine.probe.tile == OTHER:
            found.gradients[name].view(-1)[1] += 1.0
        return found

    monkeypatch.setattr(Judge, "_step", wrong)
    learnt = torch.tensor([0.5, -0.25], requires_grad=True)
    report = alibi(t=learnt).tune(*inputs(), candidates=[OTHER])
    assert set(report.chosen.values()) == {DEFAULT}
    assert f"gradient of {name} differs" in report.kernels[1].trials[1].why


@here_alone
def test_a_default_that_is_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Judge._step
    monkeypatch.setattr(Judge, "_step", lambda self, engine: _doubled(step(self, engine)))
    with pytest.raises(VerifyError, match="out differs from the reference"):
        alibi().tune(*inputs(), candidates=[])


def _doubled(step: Any) -> Any:
    step.out.mul_(2.0)
    return step


def test_what_is_too_large_is_passed_over(second_wins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Probe.run

    def full(self: Probe, *arguments: Any) -> Any:
        if self.tile == OTHER:
            raise MemoryError
        return run(self, *arguments)

    monkeypatch.setattr(Probe, "run", full)
    report = alibi().tune(*inputs(), candidates=[OTHER])
    assert report.kernels[0].trials[1] == Trial(OTHER, None, "there is no memory to work in")
    assert report.chosen == {"forward": DEFAULT}


@here_alone
def test_errors_that_are_not_about_tiles_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tile: TileShape) -> float:
        raise RuntimeError("the device is gone")

    timed(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        alibi().tune(*inputs(), candidates=[OTHER])


@here_alone
def test_why_a_kernel_of_triton_does_not_fit() -> None:
    from triton.runtime.errors import OutOfResources, PTXASError

    assert why_unfit(OutOfResources(300, 200, "shared memory")) == "300 of 200 shared memory"
    assert why_unfit(PTXASError("first\nlast")) == "it does not compile: last"
    assert why_unfit(RuntimeError("PassManager::run failed")) == "Triton's compiler fails"
    assert why_unfit(RuntimeError("illegal memory access")) is None


@here_alone
def test_spilled_registers_make_a_tile_unfit() -> None:
    compiled, device = SimpleNamespace(n_spills=3), torch.device("cpu")
    with pytest.raises(Unfit, match="12 bytes a thread"):
        Probe("forward", None, OTHER).run("forward", device, lambda: compiled)
    default = Probe("forward")
    assert default.run("forward", device, lambda: compiled) is compiled
    assert default.ms >= 0


@here_alone
def test_tuning_that_is_interrupted_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = iter(range(3))

    def interrupted(tile: TileShape) -> float:
        if next(runs) == 2:
            raise KeyboardInterrupt
        return 1.0

    timed(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        alibi().tune(*inputs(), candidates=[OTHER], backward=True)
    assert list(tmp_path.glob("*/*")) == []


@here_alone
def test_the_budget_ends_the_search(second_wins: None) -> None:
    report = alibi().tune(*inputs(), candidates=[OTHER], budget=1e-9)
    assert [trial.tile for trial in report.kernels[0].trials] == [DEFAULT]
    assert str(report).endswith("the 1e-09 seconds are over: what was left is not tried")


@here_alone
def test_the_search_follows_what_gets_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the default over a neighbour to a neighbour of that."""
    goal = replace(DEFAULT, block_m=DEFAULT.block_m // 2, block_n=2 * DEFAULT.block_n)
    middle = replace(DEFAULT, block_m=DEFAULT.block_m // 2)
    around = {DEFAULT: [middle], middle: [goal], goal: [DEFAULT, middle]}
    monkeypatch.setattr("attndsl.tuner.neighbours", lambda family, tile, is_square: around[tile])
    times = {DEFAULT: 3.0, middle: 2.0, goal: 1.0}
    timed(monkeypatch, times.__getitem__)
    report = alibi().tune(*inputs())
    assert [trial.tile for trial in report.kernels[0].trials] == [DEFAULT, middle, goal]
    assert report.chosen == {"forward": goal}


def test_block_tables_have_tiles_of_their_own(second_wins: None, used: list[TileShape]) -> None:
    table = ad.BlockTable(torch.ones(1, 1, 2, 2, dtype=torch.bool), block=(LENGTH // 2, LENGTH // 2))
    alibi().tune(*inputs(), candidates=[OTHER], blocks=table)
    used.clear()
    alibi()(*inputs(), blocks=table, check=True)
    alibi()(*inputs(), check=True)
    assert used == [OTHER, DEFAULT]


@here_alone
@pytest.mark.parametrize(
    "arguments, code",
    [
        ({"candidates": [(64,)]}, "bad-tile"),
        ({"candidates": [(64, 48)]}, "bad-tile"),
        ({"candidates": [(64, 1024)]}, "bad-tile"),
        ({"candidates": ["64x64"]}, "bad-tile"),
        ({"budget": 0}, "bad-budget"),
        ({"backend": "reference"}, "nothing-to-tune"),
    ],
)
def test_refusals(arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(CallError) as caught:
        alibi().tune(*inputs(), **arguments)
    assert [one.code for one in caught.value.diagnostics] == [code]


def test_a_call_without_queries_has_nothing_to_tune() -> None:
    q, k, v = inputs()
    with pytest.raises(CallError, match="no kernel runs"):
        alibi().tune(q[:, :, :0], k, v)


@here_alone
def test_long_calls_are_judged_by_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 32 thousand tokens, with memory that is linear in them."""
    length, seen = 1 << 15, []

    def watched(*arguments: Any, rows: Tensor, **more: Any) -> Any:
        seen.append(len(rows) * length)
        return attend(*arguments, rows=rows, **more)

    monkeypatch.setattr(judging, "attend", watched)
    monkeypatch.setattr(judging, "PLACES", 8 * length)
    report = alibi(t=torch.zeros(1)).tune(*inputs(length, heads=1), candidates=[])
    assert report.rows_checked == sum(seen) // length == judging.ROWS
    assert max(seen) == judging.PLACES
    assert report.rows == length


@here_alone
def test_some_rows_of_the_reference() -> None:
    """With positions, lengths and gradients of the whole call."""
    text = "attention some(t: tensor[N]) { mask kv_idx <= q_idx score score * t[q_idx] + float(q_len) * 0.1 }"
    program = ad.parse(text).some.variant
    q, k, v = (tensor.double().requires_grad_() for tensor in inputs(30))
    values, rows = {"t": torch.rand(40, dtype=torch.float64)}, torch.tensor([0, 7, 29])
    whole = attend(program, values, q, k, v, q_offset=5).out[:, :, rows]
    some = attend(program, values, q, k, v, q_offset=5, rows=rows).out
    torch.testing.assert_close(some, whole, rtol=1e-12, atol=1e-12)
    cotangent = torch.rand_like(whole)
    found, wanted = (torch.autograd.grad(out, (q, k, v), cotangent) for out in (some, whole))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@here_alone
def test_records() -> None:
    data = tile_record(KEY, OTHER, "mine: forward")
    assert read_tile(data, KEY) == (OTHER, "mine: forward")
    assert all(read_tile(data[:end], KEY) is None for end in range(len(data)))
    assert all(read_tile(data[:at] + b"7" + data[at + 1 :], KEY) is None for at in range(len(data)) if data[at] != 55)
    assert read_tile(data, KEY[::-1]) is None
    assert read_tile(data + b"more", KEY) is None


@dataclass
class Kept:
    """A record of the forward's tile, and what a call finds."""

    path: Path
    find: Callable[[], TileShape | None]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    tokens = torch.zeros(1, 2, 64, 16)
    call = Call(tokens, tokens, tokens, 1.0, 0, {})
    spec = Specialisation(target=Target.CPP)

    def find() -> TileShape | None:
        tuning.forget_tiles()
        return tuning.tuned_tile(KEY, "forward", spec, call)

    tuning.keep_tile(KEY, "forward", spec, call, OTHER, "mine: forward, to be\x1b[31m read")
    (file,) = cached_files(tmp_path)
    assert file.kind is Kind.TILE
    assert find() == OTHER
    return Kept(file.path, find)


@here_alone
def test_a_damaged_record_is_not_believed(kept: Kept) -> None:
    written = kept.path.read_bytes()
    other = tile_record(KEY, replace(OTHER, block_n=128), "another's")
    for data in (b"", written[:-3], written.replace(b" 32 ", b" 64 "), other):
        kept.path.write_bytes(data)
        with pytest.warns(CacheWarning, match="is not what tuning wrote"):
            assert kept.find() is None
    kept.path.write_bytes(written)
    assert kept.find() == OTHER
    kept.path.chmod(0o666)
    with pytest.warns(CacheWarning, match="is not what tuning wrote"):
        assert kept.find() is None


@here_alone
def test_a_record_that_is_gone_or_no_file(kept: Kept) -> None:
    kept.path.unlink()
    assert kept.find() is None
    kept.path.mkdir()
    assert kept.find() is None


@here_alone
def test_every_part_of_a_specialisation_counts() -> None:
    tokens = torch.zeros(1, 2, 64, 16)
    call, spec = Call(tokens, tokens, tokens, 1.0, 0, {}), Specialisation(target=Target.CPP)
    others = (replace(spec, split=True), replace(spec, gradients=frozenset("ab")), replace(spec, fast=False))
    keys = {tuning._key(KEY, "forward", one, call) for one in (spec, *others)}
    assert len(keys) == 4
    again = replace(spec, gradients=frozenset("ba"))
    assert tuning._key(KEY, "forward", again, call) in keys


@pytest.mark.skipif(not INTERPRETING, reason="native kernels split keys by themselves")
def test_split_kernels_have_tiles_of_their_own(
    second_wins: None, used: list[TileShape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attndsl.runtime.launch.splits_for", lambda call, tile: 2)
    alibi().tune(*inputs(), candidates=[OTHER])
    used.clear()
    alibi()(*inputs(), check=True)
    assert used == [OTHER]
    monkeypatch.setattr("attndsl.runtime.launch.splits_for", lambda call, tile: 1)
    alibi()(*inputs())
    assert used == [OTHER, DEFAULT]


@here_alone
def test_the_command_line_knows_records(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", str(tmp_path))
    run = CliRunner().invoke
    assert "tile    mine: forward, to be[31m read\n" in run(main, ["cache", "list"]).output
    assert run(main, ["cache", "verify"]).exit_code == 0
    kept.path.write_bytes(kept.path.read_bytes()[:-1])
    assert run(main, ["cache", "verify"]).exit_code == 1
    assert run(main, ["cache", "clear"]).output.startswith("removed 1 file, ")
    assert not kept.path.exists()


@here_alone
def test_reports_of_compiling_are_those_of_defaults(second_wins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    alibi().tune(*inputs(), candidates=[OTHER])
    monkeypatch.setattr("attndsl.runtime.native.report.compiler", lambda: SimpleNamespace(listing=lambda text: ""))
    kernels = alibi().compile_for("cpu", dtype=torch.float32, head_dim=16).kernels
    assert {kernel.name: kernel.tile for kernel in kernels} == {kernel.name: DEFAULT for kernel in kernels}


@here_alone
def test_what_is_tried_can_be_had() -> None:
    for family in (*FAMILIES, "cpu", "interpreter"):
        for tile in (TileShape(64, 64, 4, 1), TileShape(16, 16, 4, 1), TileShape(128, 32, 8, 3)):
            found = list(neighbours(family, tile, is_square=False))
            assert all(is_within(family, one) for one in found)
            assert tile not in found
            assert len(found) == len(set(found))
    assert TileShape(128, 32, 8, 2) in neighbours("hopper", TileShape(128, 64, 8, 2), is_square=False)
    assert all(one.block_m == one.block_n for one in neighbours("hopper", TileShape(64, 64, 4, 1), is_square=True))


@here_alone
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_has_a_default(family: str, dtype: str) -> None:
    (attention,) = ad.parse("attention hidden(t: tensor[N]) { mask kv_idx <= q_idx score score + log(t[kv_idx]) }")
    compilation = attention._compilation
    for head_dim in (1, 64, 65, 128, 192, 256):
        for name in compilation.derivation.kernels:
            spec = Specialisation(dtype, head_dim, head_dim, gradients=frozenset({"t"}))
            tile = default_tile(family, compilation.kernel(name, spec).plan)
            assert is_within(family, tile)


@here_alone
def test_pairs_with_numbers_of_their_own_have_smaller_tiles() -> None:
    """On Hopper: where the accumulator is wide, or there are two of them; a long computation in a gradient."""
    texts = {
        "one": "attention one(t: bool tensor[N, M]) { mask t[q_idx, kv_idx] }",
        "two": "attention two(t: bool tensor[N, M]) { mask t[q_idx, kv_idx] and t[q_idx, kv_idx + 1] }",
        "steps": "attention steps(t: bool tensor[N, M]) { mask t[q_idx, kv_idx // 16] }",
        "long": f"attention long {{ mask cos(float(q_idx * kv_idx)) < 0.5 score {'sin(' * 25}score{')' * 25} }}",
    }
    kernels = {name: getattr(ad.parse(text), name)._compilation for name, text in texts.items()}

    def tile(name: str, kernel: str, head_dim: int) -> str:
        spec = Specialisation("bf16", head_dim, head_dim)
        return str(default_tile("hopper", kernels[name].kernel(kernel, spec).plan))

    usual, small = "128 x 64, 8 warps, 2 stages", "128 x 32, 8 warps, 3 stages"
    assert [tile(name, "forward", 64) for name in ("one", "two", "steps")] == [usual, small, usual]
    assert [tile(name, "forward", 128) for name in ("one", "two", "steps")] == [small, small, usual]
    assert tile("one", "backward_dq", 64) == tile("long", "forward", 64) == usual
    assert tile("long", "backward_dq", 64) == "128 x 32, 8 warps, 1 stages"


@here_alone
def test_times_are_of_the_least_disturbed_run() -> None:
    runs: list[int] = []
    assert 0 <= milliseconds(lambda: runs.append(1), torch.device("cpu")) < 10
    assert len(runs) > 1


@pytest.mark.skipif(not INTERPRETING, reason="takes many kernels, which are slow to build")
def test_every_kind_of_kernel_is_tuned() -> None:
    """Gradients by distance and pair by pair too, whose tiles are square and stretches of keys."""
    text = (
        "attention all(t: tensor[H, N], bias: tensor[N, N]) { mask kv_idx <= q_idx "
        "score score + t[h, q_idx - kv_idx] + bias[q_idx, kv_idx] }"
    )
    (attention,) = ad.parse(text)
    length = 20
    learnt = {"t": torch.zeros(2, length, requires_grad=True), "bias": torch.zeros(length, length, requires_grad=True)}
    report = attention.bind(**learnt).tune(*inputs(length), candidates=[(16, 32)])
    assert set(report.chosen) == {*KERNELS, "backward_diagonal", "backward_pairs"}
    assert all(trial.ms is not None for kernel in report.kernels for trial in kernel.trials)
