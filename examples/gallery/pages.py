"""The pages of the gallery, as text: every entry, an index by capability, and what the rest of the catalog waits for.

In: the entries, the catalog, and what `python -m benchmarks.gallery_compile` and `python -m benchmarks.gallery` wrote
down. Out: Markdown and pictures by path. `python -m examples.gallery.pages` writes them; a test fails when they are
stale.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from attndsl.reference import live_pairs
from examples.gallery.entry import Draw, Entry, Size, catalog, entries
from examples.gallery.picture import BLOCK, picture
from examples.gallery.recorded import Recorded, recorded

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
COMPILED = ROOT / "benchmarks" / "results" / "gallery_compile.cpu-x86_64.json"
TIMED = ROOT / "benchmarks" / "results" / "gallery.cpu-x86_64.json"
SHOWN = Size(1, 4, 128, 32)

CAPABILITIES = {
    "M1": "masks over positions",
    "M2": "masks that read tensors",
    "M3": "tokens on grids",
    "M4": "patterns of their own for each head",
    "M5": "lengths, offsets and sizes known at run time",
    "S1": "formulas of the score",
    "S2": "tensors in the score, with gradients",
    "S3": "scores of several dot products, or of none",
    "S4": "queries, keys and values transformed before",
    "N1": "sinks and virtual keys",
    "N2": "normalizers without a softmax",
    "N3": "normalizers that solve for a threshold",
    "N4": "changes of the normalized weight",
    "N5": "normalization over groups, columns or both sides",
    "N6": "heads or neighbouring scores mixed",
    "O1": "outputs transformed after",
    "O2": "several branches merged",
    "A1": "statistics of rows as outputs",
    "A2": "reductions over columns, diagonals or blocks of weights as outputs",
    "R1": "block tables",
    "R2": "routers that choose blocks",
    "R3": "gathers of single tokens",
    "R4": "gradients through a selection",
    "R5": "tiles skipped by what is found on the way",
    "D1": "decoding split over keys",
    "D2": "policies of key caches",
    "K1": "grouped heads, values of another width",
    "K2": "sequences of unlike lengths, packed or in pages",
    "K3": "low precision",
    "L1": "feature maps in linear time",
    "L2": "decayed scans by chunks",
    "L3": "delta rules",
    "L4": "hierarchies of states",
    "X1": "several devices",
    "X2": "random numbers inside",
    "Z": "other families of operators",
}
WAITING = frozenset({"S3", "N5", "N6", "A2", "R3", "R4", "R5", "D2", "K3", "L1", "L2", "L3", "L4", "X1", "X2", "Z"})
"""Capabilities no system can count on yet."""
FAMILIES = {
    "A": "Masks, scores and positions",
    "B": "Normalizers and weights",
    "C": "Routing",
    "D": "Caches",
    "E": "Few latents for many tokens",
    "F": "Composition and heads",
    "G": "Kernels and systems",
}


INTRODUCTION = f"""Each is a few lines of attndsl beside a dense formula of its own in
plain torch, and is held to that formula in float64, forward and backward, by the tests. The programs below are printed
by the compiler from what the entry calls. In pictures, queries run downwards and keys to the right; dark is a live
pair, white a tile that is skipped, light blue one walked with the mask, and darker blue one walked without a trace of
it. Plans and pictures are of {SHOWN.length} tokens or about as many, in tiles of {BLOCK} by {BLOCK}. This page is
written by `python -m examples.gallery.pages`."""


def pages() -> dict[Path, str]:
    """Every file of the gallery, by path."""
    shown = {name: _Shown(name, entry) for name, entry in entries().items()}
    pictures = {path: text for each in shown.values() for path, text in each.pictures().items()}
    return {DOCS / "gallery.md": "\n".join(_gallery(shown)) + "\n", **pictures}


class _Shown:
    """One entry on its page: the programs it calls, each once, on tensors small enough to look at."""

    def __init__(self, name: str, entry: Entry) -> None:
        self.name, self.entry = name, entry
        # What tells programs apart on the page is their text; a call of the same text on other tensors adds nothing,
        # nor does one of the same program whose numbers change no pair.
        with recorded(backend="reference") as calls, torch.no_grad():
            entry.run(**entry.inputs(SHOWN, Draw(0)))
        shown: dict[tuple[str, str], Recorded] = {}
        for call in {call.attention.text: call for call in calls}.values():
            shown.setdefault((call.attention.fingerprint, picture(call)), call)
        self.calls = list(shown.values())

    @property
    def systems(self) -> list[dict]:
        return [system for system in catalog() if system["system"] in self.entry.systems]

    @property
    def family(self) -> str:
        return self.systems[0]["family"]

    @property
    def tags(self) -> list[str]:
        return sorted({tag for system in self.systems for tag in system["tags"]}, key=list(CAPABILITIES).index)

    def pictures(self) -> dict[Path, str]:
        return {DOCS / self._picture_of(at): picture(call) for at, call in enumerate(self.calls) if _is_pictured(call)}

    def _picture_of(self, at: int) -> Path:
        return Path("gallery", f"{self.name}{f'_{at + 1}' if at else ''}.svg")

    def lines(self) -> Iterator[str]:
        entry = self.entry
        yield f"### {', '.join(entry.systems)}"
        yield ""
        tags = "; ".join(CAPABILITIES[tag] for tag in self.tags) or "plain softmax"
        yield f"*{entry.paper}*, {entry.year}. Uses {tags}. [Source](../examples/gallery/{self.name}.py)"
        yield ""
        yield _joined(sys.modules[f"examples.gallery.{self.name}"])
        yield ""
        formula = re.sub(r"([*<~])", r"\\\1", _joined(entry.formula))
        yield f"**Formula.** {formula}"
        yield ""
        yield f"**Conventions.** {entry.conventions}"
        yield ""
        yield f"**Pitfall.** {entry.pitfall}"
        if entry.source:
            yield ""
            yield f"**Checked against.** {entry.source[0].upper()}{entry.source[1:]}."
        if figures := _timed().get(self.name):
            yield ""
            yield f"**Speed.** {_speed(figures)}"
        for at, call in enumerate(self.calls):
            yield from self._program(at, call)
        yield ""

    def _program(self, at: int, call: Recorded) -> Iterator[str]:
        yield ""
        yield "```attn"
        yield call.attention.text.rstrip("\n")
        yield "```"
        yield ""
        if _is_pictured(call):
            yield f"![live pairs and tiles of {call.attention.name}]({self._picture_of(at)})"
            yield ""
        yield _planned(call)
        if report := _compiled().get((self.name, call.attention.name)):
            yield ""
            yield report


def _gallery(shown: dict[str, _Shown]) -> Iterator[str]:
    yield "# Gallery"
    yield ""
    systems = sum(len(each.entry.systems) for each in shown.values())
    yield f"{systems} published attention systems in {len(shown)} entries. {INTRODUCTION}"
    yield ""
    yield "[Systems](#systems) · [By capability](#by-capability) · [The whole catalog](#the-whole-catalog)"
    yield ""
    yield "## Systems"
    for family, title in FAMILIES.items():
        members = [each for each in shown.values() if each.family == family]
        if members:
            yield ""
            yield f"**{title}**: {', '.join(_link(each) for each in members)}"
    yield ""
    yield from _by_capability(shown)
    yield from _whole_catalog(shown)
    for family, title in FAMILIES.items():
        members = [each for each in shown.values() if each.family == family]
        if members:
            yield f"## {title}"
            yield ""
            for each in members:
                yield from each.lines()


def _by_capability(shown: dict[str, _Shown]) -> Iterator[str]:
    yield "## By capability"
    yield ""
    for tag, meaning in CAPABILITIES.items():
        users = [_link(each) for each in shown.values() if tag in each.tags]
        if users:
            yield f"* **{meaning}**: {', '.join(users)}"
    plain = [_link(each) for each in shown.values() if not each.tags]
    yield f"* **plain softmax, in its real setting**: {', '.join(plain)}"
    yield ""


def _whole_catalog(shown: dict[str, _Shown]) -> Iterator[str]:
    at = {system: each for each in shown.values() for system in each.entry.systems}
    yield "## The whole catalog"
    yield ""
    yield f"{len(catalog())} published systems: {len(at)} run, the others wait for what the table says."
    yield ""
    yield "| system | paper | |"
    yield "|---|---|---|"
    for system in catalog():
        name = system["system"]
        yield f"| {_cell(name)} | {_cell(system['title'])} | {_state(system, at.get(name))} |"
    yield ""


def _state(system: dict, entry: _Shown | None) -> str:
    if entry is not None:
        return f"runs: [{entry.name}](#{_anchor(entry)})"
    waits = [CAPABILITIES[tag] for tag in system["tags"] if tag in WAITING]
    return f"waits for {'; '.join(waits)}"


def _link(each: _Shown) -> str:
    return f"[{', '.join(each.entry.systems)}](#{_anchor(each)})"


def _anchor(each: _Shown) -> str:
    """The anchor that Markdown gives the heading of an entry."""
    title = ", ".join(each.entry.systems).lower()
    return "".join("-" if mark == " " else mark for mark in title if mark.isalnum() or mark in " -_")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _joined(documented: object) -> str:
    """The docstring of something as one line."""
    return " ".join((inspect.getdoc(documented) or "").split())


def _is_pictured(call: Recorded) -> bool:
    """Not where every pair is live, nor of a single row."""
    live = live_pairs(call.attention.variant, call.attention._values(), **call.shape)
    return not bool(live.all()) and live.shape[-2] > 1


def _planned(call: Recorded) -> str:
    where = call.shape
    plan = call.attention.plan(**where, block=(BLOCK, BLOCK))
    pairs = float(live_pairs(call.attention.variant, call.attention._values(), **where).double().mean())
    size = f"{where['q_len']} x {where['kv_len']}"
    return f"`{plan.strategy}`; {size}: {pairs:.1%} of the pairs are live, {plan.sparsity:.1%} of the tiles skipped."


@cache
def _compiled() -> dict[tuple[str, str], str]:
    """What kernels take on a GPU, a sentence for each attention of an entry."""
    if not COMPILED.exists():
        return {}
    found: dict[tuple[str, str], list[str]] = {}
    for row in json.loads(COMPILED.read_text(encoding="utf-8"))["rows"]:
        spilled = f", {row['spilled bytes']} bytes spilled" if row["spilled bytes"] else ""
        kernel = f"`{row['kernel']}` {row['registers']} registers, {row['shared bytes'] // 1024} KiB shared{spilled}"
        found.setdefault((row["entry"], row["attention"]), []).append(kernel)
    head = "On cuda:90, bf16, tiles of the launcher's defaults: "
    return {key: head + "; ".join(kernels) + "." for key, kernels in found.items()}


@cache
def _timed() -> dict[str, dict]:
    """What the benchmark measured of each entry on a CPU."""
    if not TIMED.exists():
        return {}
    return {row["entry"]: row for row in json.loads(TIMED.read_text(encoding="utf-8"))["rows"]}


def _speed(row: dict) -> str:
    """What was measured of an entry, and why where another was faster."""
    size = f"{row['length']} tokens, head dim {row['head dim']}: {row['attndsl ms']:.3g} ms"
    formula = f"{row['over the formula']:.3g} times as fast as the formula"
    flex = f"Not in FlexAttention: {row['no flex']}."
    if row["over flex"] is not None:
        flex = f"Its attentions alone are {row['over flex']:.3g} times as fast as FlexAttention's."
    return " ".join(filter(None, (f"{size}, {formula}.", flex, row["why slower"])))


def main() -> None:
    made = pages()
    for old in (DOCS / "gallery").glob("*.svg"):
        if old not in made:
            old.unlink()
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(made)} files under {DOCS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
