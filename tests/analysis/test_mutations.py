"""Faults put into the analysis, one at a time: the battery here finds every one of them.

Each fault is an edit of one expression in one function, of the kind that is made by hand: off by one, union for
intersection, truncating division, swapped ends, a forgotten clip.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from plans import counted
from torch import Tensor

from attndsl.analysis import (
    assumptions,
    bands,
    bits,
    bounds,
    congruences,
    ends,
    forms,
    intervals,
    monotone,
    order,
    pieces,
    quadtree,
    runs,
    sight,
    steady,
    summaries,
    tiling,
    values,
    witnesses,
)
from attndsl.frontend.parse import parse
from attndsl.ir.variant import TensorParam, Variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import live_pairs
from attndsl.runtime import tables
from attndsl.runtime.planner import BlockPlan, plan_blocks


@dataclass(frozen=True, slots=True)
class Trial:
    """A mask on a call; `exact`: analysis tells every tile; `by_pairs`: only by looking at pairs."""

    mask: str
    q_len: int = 130
    kv_len: int = 190
    block: tuple[int, int] = (16, 32)
    q_offset: int | tuple[int, ...] = 0
    exact: bool = True
    by_pairs: bool = False


SIZE = 400
TENSORS = {
    "doc": torch.arange(SIZE) // 37,
    "back": torch.arange(SIZE).flip(0) // 37,
    "mixed": torch.arange(SIZE) // 20 % 3,
    "flags": torch.arange(SIZE) // 50 % 2 == 0,
    "start": torch.tensor([0, 40, 90]),
    "rows": torch.stack([torch.arange(SIZE) // 37, torch.arange(SIZE) // 21]),
    "blip": torch.stack([3 * (torch.arange(SIZE) // 10 == at) for at in (5, 2)]),
    "even": torch.arange(SIZE) // 32,
}
DECLARED = (
    "doc: int tensor[N], back: int tensor[N], mixed: int tensor[N], even: int tensor[N], flags: bool tensor[N], "
    "start: int tensor[H], rows: int tensor[B, N], blip: int tensor[B, N], w: int = 20, d: int = 7"
)
BATTERY = (
    Trial("kv_idx <= q_idx", q_offset=5),
    Trial("kv_idx <= q_idx", q_offset=(0, 70)),
    Trial("kv_idx <= q_idx and q_idx - kv_idx < w", block=(32, 16)),
    Trial("abs(q_idx - kv_idx) <= 40", 190, 130),
    Trial("kv_idx <= q_idx and q_idx - kv_idx < 2 and flags[q_idx]"),
    Trial("3 * kv_idx <= 2 * q_idx + 7 and 2 * kv_idx >= q_idx - 9"),
    Trial("kv_idx >= 200 - 3 * q_idx and kv_idx <= q_idx"),
    Trial("kv_idx == q_idx"),
    Trial("kv_idx == 150 - 2 * q_idx"),
    Trial("kv_idx // 24 == q_idx // 24"),
    Trial("(kv_idx - 70) // 24 <= (q_idx - 90) // 36"),
    Trial("kv_idx >= start[h] and kv_idx <= q_idx"),
    Trial("kv_idx >= max(q_idx - 30, 16) and kv_idx < min(q_idx + 16, 100)"),
    Trial("q_idx >= 40 and q_idx < 90 and kv_idx >= 32"),
    Trial("kv_idx <= q_idx and (kv_idx < 4 or q_idx - kv_idx < 126)", block=(32, 128), kv_len=130),
    Trial("kv_idx < 32 and q_idx < 70 or kv_idx >= 31 and q_idx >= 16"),
    Trial("kv_idx <= 2 or kv_idx >= q_idx + 20 or kv_idx == q_idx"),
    Trial("doc[q_idx] == doc[kv_idx]", q_offset=11),
    Trial("doc[q_idx] == doc[kv_idx] and kv_idx <= q_idx", block=(64, 64)),
    Trial("doc[q_idx] < doc[kv_idx]"),
    Trial("back[q_idx] == back[kv_idx]"),
    Trial("back[kv_idx] >= doc[q_idx] + 3"),
    Trial("back[kv_idx] > 4 and doc[kv_idx] <= 3"),
    Trial("rows[b, q_idx] == rows[b, kv_idx]"),
    Trial("mixed[q_idx] == mixed[kv_idx]", block=(16, 16), exact=False),
    Trial("mixed[q_idx // 2] >= mixed[kv_idx]", block=(16, 16), exact=False),
    Trial("(q_idx - kv_idx) % 100 == 3", block=(16, 16)),
    Trial("(q_idx - kv_idx) % d == 0 and kv_idx <= q_idx and q_idx - kv_idx < w"),
    Trial("(6 * kv_idx) % 4 == 1"),
    Trial("bit_length(q_idx ^ kv_idx) <= 5", 128, 192),
    Trial("(q_idx & 32) == (kv_idx & 32)", 128, 192, (16, 16)),
    Trial("abs(q_idx // 16 - kv_idx // 16) <= 1 and abs(q_idx % 16 - kv_idx % 16) <= 3", 128, 192),
    Trial("abs(q_idx // 33 - kv_idx // 33) <= 1 and abs(q_idx % 33 - kv_idx % 33) <= 2", 190, 190),
    Trial("abs(q_idx // 33 - kv_idx // 33) >= 1 or abs(q_idx % 33 - kv_idx % 33) <= 12", 190, 190, block=(16, 16)),
    Trial("q_idx // 33 == kv_idx // 33 or (q_idx + kv_idx) * (q_idx + kv_idx) % 4 <= 1", by_pairs=True),
    Trial("abs(q_idx // 12 - kv_idx // 12) <= 2 and abs(q_idx % 12 - kv_idx % 12) <= 3", 144, 144),
    Trial("(kv_idx <= q_idx) ^ (kv_idx < 64)"),
    Trial("not (kv_idx <= q_idx and q_idx - kv_idx < w)"),
    Trial("(q_idx - 60) * (kv_idx - 60) >= 0", exact=False),
    Trial("min(q_idx, 50) + min(kv_idx, 70) <= max(q_idx, kv_idx)", exact=False),
    Trial("abs(q_idx - 2 * kv_idx) % 64 < 9", exact=False),
    Trial("where(kv_idx < 50, kv_idx <= q_idx, q_idx % 32 < 16)", exact=False),
    Trial("kv_idx <= q_idx and (q_idx - kv_idx) // 16 % 2 == 0", block=(16, 16), exact=False),
    Trial("(q_idx - kv_idx) // 64 == -1 and kv_idx * kv_idx > 1000", exact=False),
    Trial("kv_idx <= q_idx - 60 or kv_idx >= q_idx - 62"),
    Trial("kv_idx >= 40 * q_idx - 300 and kv_idx <= 40 * q_idx - 290", block=(16, 16)),
    Trial("q_idx >= 37 and q_idx < 43"),
    Trial("q_idx - (q_idx + 10) // 16 * 16 < 5"),
    Trial("kv_idx >= q_idx + 24 and kv_idx % 16 < 1", block=(16, 16), exact=False),
    Trial("(6 * kv_idx) % 4 == 2", exact=False),
    Trial("mixed[q_idx] == mixed[kv_idx]", 128, 192, (16, 48), exact=False),
    Trial("mixed[q_idx] == mixed[kv_idx]", block=(21, 21), exact=False),
    Trial("mixed[q_idx] == doc[kv_idx]", block=(64, 64), q_offset=11),
    Trial("blip[b, q_idx] == doc[kv_idx]", block=(64, 64)),
    Trial("blip[0, q_idx] == doc[kv_idx]", block=(64, 64), q_offset=40),
    Trial("rows[b, q_idx] == rows[b, kv_idx] and kv_idx >= start[h]"),
    Trial("back[kv_idx] <= q_idx // 8 and kv_idx >= q_idx - 30", block=(64, 16)),
    Trial("kv_idx >= 100 - 2 * q_idx and kv_idx >= 2 * q_idx - 60", block=(64, 16)),
    Trial("kv_idx >= 100 - min(2 * q_idx, 90) and kv_idx >= 2 * q_idx - 60", block=(64, 16)),
    Trial("kv_idx >= 100 - 2 * q_idx and kv_idx >= q_idx - 30", block=(64, 16)),
    Trial("even[q_idx] == even[kv_idx]", block=(32, 32)),
    Trial("kv_idx != 2 * q_idx - 60", exact=False),
    Trial("mixed[q_idx] != mixed[kv_idx]", block=(16, 16), exact=False),
    Trial("mixed[q_idx] == mixed[kv_idx] or (q_idx - kv_idx) % 16 == 0", block=(16, 16), exact=False),
    Trial("kv_idx <= q_idx and kv_idx % 16 >= 8", block=(16, 16), exact=False),
    Trial("kv_idx >= q_idx and kv_idx % 16 < 1", block=(16, 16), exact=False),
    Trial("min(q_idx, kv_idx) % 64 >= 60", exact=False),
    Trial("max(q_idx, kv_idx) % 64 >= 60", exact=False),
    Trial("q_idx * kv_idx >= 3000", exact=False),
    Trial("(q_idx - kv_idx) % 64 < where(kv_idx < 50, 10, 40)", block=(8, 8), exact=False),
    Trial("((q_idx ^ kv_idx) & 1) == 0", exact=False),
    Trial("(q_idx ^ kv_idx) < 8"),
    Trial("abs(2 * max(q_idx, 20) + 7 - 2 * (max(q_idx, 20) + kv_idx + 5)) % 64 < 9", block=(8, 8), exact=False),
    Trial("max(4 * q_idx - 4 * kv_idx + 1, 1) % 64 > 60", block=(16, 16), exact=False),
)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short calls take the paths of long ones: several stretches of tile rows, large tiles that are cut."""
    monkeypatch.setattr(quadtree, "AT_FIRST", 8)
    monkeypatch.setattr(bands, "ROWS_AT_ONCE", 5)


@cache
def variant(mask: str) -> Variant:
    (found,) = parse(f"attention trial({DECLARED}) {{\n    mask {mask}\n}}")
    return found


@cache
def truth(trial: Trial) -> Tensor:
    sizes = {"batch": 2, "heads": 3, "q_len": trial.q_len, "kv_len": trial.kv_len, "q_offset": offset(trial)}
    return counted(live_pairs(variant(trial.mask), bound(trial), **sizes), trial.block)


def bound(trial: Trial) -> dict[str, Any]:
    params = variant(trial.mask).params
    return {p.name: TENSORS[p.name] if isinstance(p, TensorParam) else p.default for p in params}


def offset(trial: Trial) -> int | Tensor:
    return trial.q_offset if isinstance(trial.q_offset, int) else torch.tensor(trial.q_offset)


def fails(trial: Trial) -> bool:
    """Whether the plan of a trial is wrong, or worse than it should be; with what looks at pairs, and without it."""
    with patch.object(witnesses, "MAX_BOXES", 0):
        if is_wrong(trial, trial.exact and not trial.by_pairs):
            return True
    return is_wrong(trial, trial.exact)


def is_wrong(trial: Trial, exact: bool) -> bool:
    forget()
    plan = plan_blocks(
        run_passes(variant(trial.mask)),
        bound(trial),
        trial.q_len,
        trial.kv_len,
        batch=2,
        heads=3,
        block=trial.block,
        q_offset=offset(trial),
    )
    found, expected = torch.broadcast_tensors(plan.classes(), truth(trial))
    unsound = ((found == 0) & (expected != 0)) | ((found == 2) & (expected != 2))
    worse = (found != expected).any() if exact else unsound.any()
    return bool(worse) or not bool((walked(plan) == plan.classes()).all())


def walked(plan: BlockPlan) -> Tensor:
    """The classes a kernel would walk by the table of a plan."""
    table = tables.build_table(plan.tiles, plan.tiling, torch.device("cpu"))
    found = torch.zeros(plan.tiles.shape, dtype=torch.int8).flatten(0, 2)
    size = plan.tiling.block[1]
    for row, (start, stop) in enumerate(zip(table.rows[:-1].tolist(), table.rows[1:].tolist(), strict=True)):
        for partial, full, end in table.records[start:stop].tolist():
            found[row, partial // size : -(-full // size)] = 1
            found[row, -(-full // size) : -(-end // size)] = 2
    if plan.tiling.kv_len % size:
        # A full tile that overhangs the keys is walked as a partial one.
        assert not (found[:, -1] == 2).any()
        found[:, -1] = torch.where(found[:, -1] == 1, plan.classes().flatten(0, 2)[:, -1], found[:, -1])
    return found.view(plan.tiles.shape)


def forget() -> None:
    """Results remembered from before a fault was put in, or taken out."""
    for function in (
        intervals._learnt,
        bounds.key_ranges,
        bounds.choose_strategy,
        monotone.trend_in_query,
        values.constant,
        values.verdict,
    ):
        function.cache_clear()


@pytest.mark.parametrize("trial", BATTERY, ids=lambda trial: trial.mask)
def test_without_faults_the_battery_passes(trial: Trial) -> None:
    assert not fails(trial)


@dataclass(frozen=True, slots=True)
class Fault:
    where: Any
    right: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.where.__qualname__}: {self.right} -> {self.wrong}"


def fault(where: Any, right: str, wrong: str) -> Fault:
    return Fault(where.fget if isinstance(where, property) else where, right, wrong)


FAULTS = (
    fault(bands._needed, "lo // keys", "(lo + 1) // keys"),
    fault(bands._needed, "hi // keys", "(hi - 1) // keys"),
    fault(bands._needed, "hi // keys, -1", "(hi + 1) // keys, -1"),
    fault(bands._covered, "-(-lo // keys)", "lo // keys"),
    fault(bands._covered, "(hi + 1) // keys) - 1", "(hi + 2) // keys) - 1"),
    fault(bands._covered, "(hi + 1) // keys) - 1", "hi // keys) - 1"),
    fault(bands._covered, "hi == tiling.kv_len - 1", "hi == tiling.kv_len"),
    fault(bands._covered, "hi == tiling.kv_len - 1", "hi >= tiling.kv_len - 2"),
    fault(bands._cut, "* tiling.block[0]", "* tiling.block[1]"),
    fault(bands._of_bands, "len(sources) == 1", "True"),
    fault(ends.Ends.seen_by_all, "self.limits[1].max(axis=0)", "self.limits[1].min(axis=0)"),
    fault(ends.Ends.seen_by_all, "self.limits[3].min(axis=0)", "self.limits[3].max(axis=0)"),
    fault(ends.Ends.seen_by_some, "self.limits[0].min(axis=0)", "self.limits[0].max(axis=0)"),
    fault(ends.Ends.seen_by_some, "self.limits[2].max(axis=0)", "self.limits[2].min(axis=0)"),
    fault(ends.Ends.leave_no_gap, "shared | none", "shared | ~none"),
    fault(ends.Ends.leave_no_gap, "& self.steady", "& True"),
    fault(ends.Source._limits, "self.tiling.kv_len - 1", "self.tiling.kv_len"),
    fault(ends.Source._limits, "(hi, lo)", "(lo + 1, hi)"),
    fault(ends.Source._limits, "truth.can_be_false", "truth.can_be_true"),
    fault(ends.Source._limits, "np.maximum", "np.minimum"),
    fault(ends.Source._changes, "- start", "- 0"),
    fault(ends.Source._changes, "+ pair * tiling.q_len", "+ 0 * pair"),
    fault(ends._at, "query % tiling.q_len + offset", "query % tiling.q_len"),
    fault(ends._at, "pair // tiling.heads", "pair % tiling.batch"),
    fault(ends._row, "row * count + place", "row + 0 * place"),
    fault(steady._turns_once, "is not Trend.UNKNOWN", "is not None"),
    fault(steady.move_one_way, "trend.reversed if against else trend", "trend"),
    fault(steady.move_one_way, "not {Trend.RISING, Trend.FALLING} <= moves", "True"),
    fault(monotone._trend, "_join(operands[0], operands[1].reversed)", "_join(operands[0], operands[1])"),
    fault(monotone._scaled, "factor.value > 0", "factor.value < 0"),
    fault(bounds._key_range, "            case Apply(op=Op.EQ", "            case Apply(op=Op.NE"),
    fault(bounds._key_range, "case Apply(op=Op.LE", "case Apply(op=Op.LT"),
    fault(bounds.key_ranges, "choices if split", "choices[1:] if split"),
    fault(order._bounds, "relation is Op.GT, is_lower", "relation is Op.GE, is_lower"),
    fault(order._bounds, "relation is not Op.LT", "relation is Op.LT"),
    fault(order._bounds, "relation = MIRRORED[relation]", "pass"),
    fault(order.Sought.ends, "goals = ~goals", "goals = -goals"),
    fault(order.Sought.ends, "places - 1", "places"),
    fault(runs.overlaps, "some.last + 1", "some.last"),
    fault(runs.overlaps, "depth >=", "depth >"),
    fault(runs.union, "start[1:] > reach[:-1]", "start[1:] >= reach[:-1]"),
    fault(runs.union, "np.maximum.accumulate(end)", "end"),
    fault(runs.union, "(start[1:] < start[:-1]).any()", "(start[1:] < start[:-1]).all()"),
    fault(runs._runs, "(end - start) - 1", "(end - start)"),
    fault(runs.intersection, "2, columns", "1, columns"),
    fault(runs.difference, "np.sort(", "np.asarray("),
    fault(tiling.Tiling.sides, "np.minimum(at * size + size, length)", "(at * size + size)"),
    fault(quadtree._hull, "np.minimum.reduceat", "np.maximum.reduceat"),
    fault(quadtree._meet, "squares.column <= last", "squares.column < last"),
    fault(quadtree.explore, "can_be_true & ~can_be_false", "can_be_true"),
    fault(quadtree._Squares.cut, "step // FACTOR", "step % FACTOR"),
    fault(values.sub, "x.lo - y.hi", "x.lo - y.lo"),
    fault(values.scale, "(x.hi, x.lo)", "(x.lo, x.hi)"),
    fault(values.absolute, "np.maximum(np.maximum(x.lo, -x.hi), 0)", "np.abs(x.lo)"),
    fault(values.minimum, "np.minimum(x.hi, y.hi)", "np.maximum(x.lo, y.lo)"),
    fault(values.maximum, "np.maximum(x.hi, y.hi)", "np.minimum(x.hi, y.hi)"),
    fault(values._floordiv_positive, "x.lo // y.lo\n", "np.trunc(x.lo / y.lo).astype(x.lo.dtype)\n"),
    fault(values._mod_positive, "_bool(period == x.hi // y.lo)", "_bool(period <= x.hi // y.lo)"),
    fault(values.mul, "x.hi * y.hi", "x.lo * y.lo"),
    fault(values.logical_and, "x.can_be_false | y.can_be_false", "x.can_be_false & y.can_be_false"),
    fault(values.logical_or, "x.can_be_true | y.can_be_true", "x.can_be_true & y.can_be_true"),
    fault(values.logical_not, "x.can_be_false, x.can_be_true", "x.can_be_true, x.can_be_false"),
    fault(values.compare, "_bool(lo <= 0), _bool(hi > 0)", "_bool(lo < 0), _bool(hi > 0)"),
    fault(values.compare, "_bool(lo != 0) | _bool(hi != 0)", "_bool(lo > 0) | _bool(hi < 0)"),
    fault(values.meet, "np.maximum(lo, value.lo)", "lo"),
    fault(values.join, "np.minimum(left.lo, right.lo)", "np.maximum(left.lo, right.lo)"),
    fault(bits._bits, "- 1", "- 2"),
    fault(bits._length, "x != 0", "x != 1"),
    fault(bits.bit_xor, "& ~unknown", ""),
    fault(forms.Form.plus, "factor * coefficient", "coefficient"),
    fault(forms.Form.times, "factor * self.constant", "self.constant"),
    fault(assumptions._bounded, "- (relation is Op.LT)\n    yield", "- (relation is not Op.LT)\n    yield"),
    fault(intervals._Interpreter._narrowed, "-(-least // size)", "least // size + 2"),
    fault(intervals._Interpreter._by_facts, "(fact.lo, fact.hi)", "(fact.hi, fact.lo)"),
    fault(intervals._Interpreter._span, "coefficient))", "abs(coefficient)))"),
    fault(intervals._Interpreter._contains, "first <= value.hi", "first < value.hi"),
    fault(congruences.Congruence.within, "- (value.hi - self.residue)", "- (value.hi + self.residue)"),
    fault(congruences.Congruence.and_also, "gap % divisor if divisor else gap", "gap"),
    fault(summaries.ArraySummary._by_stretches, "hi // stretch)", "lo // stretch)"),
    fault(summaries.ArraySummary._at, "hi + 1 - (1 << level)", "hi - (1 << level)"),
    fault(summaries._slide, "slice(0, size - step), slice(step, size)", "slice(0, size - step), slice(0, size - step)"),
    fault(pieces._looked_at, "can[kind, tile[is_this]]", "can[kind, tile[is_other]]"),
    fault(pieces._looked_at, "has[kind, tile[~is_other]]", "has[:, tile[~is_other]]"),
    fault(witnesses._note, "has[0, tile[live]]", "has[0, tile[dead]]"),
    fault(witnesses._samples, "length - 1", "length - 2"),
    fault(witnesses._parts, "ends[:, 1:] - 1", "ends[:, 1:] - 2"),
    fault(witnesses.settle, "boxes.where(~are_small)", "boxes.where(are_small)"),
    fault(sight.Sight.is_open, "~self.has.all(axis=0)", "~self.has.any(axis=0)"),
    fault(tables._records, "tiling.kv_tiles - 2", "tiling.kv_tiles - 1"),
    fault(tables._records, "rest[owner] = full_end", "rest[owner] = full_start"),
    fault(tables._records, "owner[1:] == owner[:-1]", "owner[1:] != owner[:-1]"),
    fault(tables._records, "rest < end", "rest > end"),
)


def put_in(found: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recompile a function with the fault; whoever refers to the function runs it from then on."""
    function = inspect.unwrap(found.where)
    source = textwrap.dedent(inspect.getsource(function))
    assert found.right in source, f"{found} is not in the source"
    edited = source[source.index("def ") :].replace(found.right, found.wrong, 1)
    scope = dict(vars(sys.modules[function.__module__]))
    exec(compile(f"from __future__ import annotations\n{edited}", str(found), "exec"), scope)
    monkeypatch.setattr(function, "__code__", scope[function.__name__].__code__)


def is_found_out(trial: Trial) -> bool:
    """Whether a trial fails, or stops on an error."""
    try:
        return fails(trial)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return True


@pytest.mark.parametrize("found", FAULTS, ids=str)
def test_every_fault_is_found_out(found: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in BATTERY:
        truth(trial)
    put_in(found, monkeypatch)
    try:
        assert any(map(is_found_out, BATTERY))
    finally:
        monkeypatch.undo()
        forget()
