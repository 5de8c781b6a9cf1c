"""Hostile texts, made from honest ones: mutations of the grammar's own pieces, kept where they reach new lines.

In: a corpus and a source of chance. Out: `Fuzzer.step`, which makes one text, runs it through the front end and, where
it is a program, through printing and emission, and returns what no text may cause: an error that is no diagnostic, a
program that does not print and parse back, kernels that are no Python, code that runs, or too much time.
"""

from __future__ import annotations

import ast
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from attndsl.codegen.plan import Specialisation
from attndsl.compiler import Compilation
from attndsl.diagnostics import DiagnosticError, VerifyError
from attndsl.frontend.parse import parse
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.printer import print_variant
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes

ROOT = Path(__file__).parent.parent
PACKAGE = str(ROOT / "attndsl")

PARSE_SECONDS = 10.0
"""Far above what the largest text that is let in takes, tracing included."""

EMIT_SECONDS = 60.0

TOKEN = re.compile(r"\s+|\w+|//|\*\*|<<|>>|[<>=!]=|.", re.DOTALL)

ATOMS = (
    *("q_idx", "kv_idx", "b", "h", "q_len", "kv_len", "score", "weight", "true", "false", "inf", "window", "sink[h]"),
    *("0", "1", "2", "7", "64", "0.5", "1e-3", "9223372036854775807", "-9223372036854775808", "1e400", "ids[b, q_idx]"),
)
INFIX = ("+", "-", "*", "/", "//", "%", "**", "<", "<=", "==", "!=", ">", "and", "or", "^", "&", "|", "<<", ">>")
CALLS = (
    *("exp", "log", "tanh", "sqrt", "abs", "sin", "erf", "floor", "float", "int", "bool", "row_max", "row_sum"),
    *("where", "min", "max", "clamp", "bit_length", "softmax", "sparsemax", "topk", "causal", "sliding_window"),
)
ITEMS = ("mask", "score", "normalizer", "weight", "let x =", "def f(x) =", "require", "grid g(y = 4, x = 8)")
ODD = (
    "\0",
    "\t",
    "\r",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ud800",
    "é",
    "𝕩",
    '"',
    "'",
    "#",
    "\\",
    "`",
    "$",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
)
SEEDS = (
    "attention a { mask kv_idx <= q_idx }",
    "attention a(window: int = 8) { mask q_idx - kv_idx < window and q_idx // 4 == kv_idx // 4 }",
    "attention a(ids: int tensor[B, N]) { mask ids[b, q_idx] == ids[b, kv_idx] }",
    "attention a(sink: tensor[H]) { normalizer softmax(sink = sink[h]) }",
    "attention a(bias: tensor[H, N]) { score score + bias[h, q_idx - kv_idx] if q_idx >= kv_idx else score }",
    "attention a { normalizer exp(score - row_max(score)) / (1.0 + row_sum(exp(score - row_max(score)))) }",
    "attention a { normalizer sparsemax }",
    "def near(w) = abs(q_idx - kv_idx) < w\nattention a { let d = 3 mask near(d) or near(2 * d) }",
    "attention a { score 30.0 * tanh(score / 30.0) weight weight * 0.5 }",
    'attention a { require q_len == kv_len, "square" mask kv_idx % 3 == 0 }',
    "attention a { grid g(y = 4, x = 8) mask g(q_idx).y == g(kv_idx).y }",
)


class Slow(Exception):
    """A text took longer than any text may."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A text and what it caused."""

    text: str
    what: str


@dataclass(slots=True)
class Fuzzer:
    """Makes texts and looks at what becomes of them. `corpus` grows by those that reach lines nothing else reached."""

    draw: random.Random
    corpus: list[str]
    lines: set[tuple[str, int]] = field(default_factory=set)
    tried: int = 0
    programs: int = 0

    def step(self) -> Finding | None:
        text = self.mutated()
        self.tried += 1
        before = len(self.lines)
        found = self._look(text)
        if len(self.lines) > before and len(text) < 4000:
            self.corpus.append(text)
        return found

    def mutated(self) -> str:
        """A text of the corpus after a few changes."""
        tokens = TOKEN.findall(self.draw.choice(self.corpus))
        for _ in range(self.draw.choice((1, 1, 1, 2, 3, 6))):
            change = self.draw.choice(CHANGES)
            place = self.draw.randrange(len(tokens) + 1)
            tokens = change(self, tokens, place) or tokens
        return "".join(tokens)

    def expression(self, depth: int = 3) -> str:
        """Something like an expression."""
        if depth == 0 or self.draw.random() < 0.2:
            return self.draw.choice(ATOMS)
        parts = [self.expression(depth - 1) for _ in range(3)]
        return self.draw.choice(
            (
                f"{parts[0]} {self.draw.choice(INFIX)} {parts[1]}",
                f"({parts[0]} {self.draw.choice(INFIX)} {parts[1]})",
                f"{self.draw.choice(CALLS)}({', '.join(parts[: self.draw.randrange(4)])})",
                f"{parts[0]} if {parts[1]} else {parts[2]}",
                f"{self.draw.choice(('-', 'not ', '~'))}{parts[0]}",
            )
        )

    def _look(self, text: str) -> Finding | None:
        try:
            with watched(self.lines), limited(PARSE_SECONDS):
                variants = parse(text)
        except DiagnosticError as error:
            # Messages quote the text, which may be anything.
            return None if str(error) else Finding(text, "an error without a word")
        except BaseException as error:
            return _finding(text, "parsing", error)
        for variant in variants[:3]:
            self.programs += 1
            found = self._follow(text, variant)
            if found is not None:
                return found
        return None

    def _follow(self, text: str, variant: Variant) -> Finding | None:
        stage = "printing"
        try:
            with limited(EMIT_SECONDS):
                (again,) = parse(print_variant(variant))
                if fingerprint(run_passes(again)) != fingerprint(run_passes(variant)):
                    return Finding(text, "it does not parse back to the same program")
                stage = "emission"
                self._emit(variant)
        except (DiagnosticError, VerifyError) as error:
            is_refusal = isinstance(error, DiagnosticError) and stage == "emission"
            return None if is_refusal else _finding(text, stage, error)
        except BaseException as error:
            return _finding(text, stage, error)
        return None

    def _emit(self, variant: Variant) -> None:
        compilation = Compilation(variant)
        spec = Specialisation(head_dim=64, v_head_dim=64, fast=self.draw.random() < 0.5)
        with watched(self.lines, audited=False):
            names = compilation.derivation.kernels
        for name in self.draw.sample(names, min(len(names), 2)):
            with watched(self.lines, audited=False):
                emitted = compilation.kernel(name, spec)
            ast.parse(emitted.text)


def _finding(text: str, stage: str, error: BaseException) -> Finding:
    if isinstance(error, KeyboardInterrupt):
        raise error
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Finding(
        text, f"{stage}: {type(error).__name__}: {str(error)[:300]} ({Path(last.filename).name}:{last.lineno})"
    )


def _replaced(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    """One token for another of the corpus."""
    others = TOKEN.findall(fuzzer.draw.choice(fuzzer.corpus))
    return [*tokens[:place], fuzzer.draw.choice(others), *tokens[place + 1 :]]


def _spliced(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    """A stretch of another text in the place of one here."""
    others = TOKEN.findall(fuzzer.draw.choice(fuzzer.corpus))
    start = fuzzer.draw.randrange(len(others))
    stretch = others[start : start + fuzzer.draw.randrange(1, 12)]
    return [*tokens[:place], *stretch, *tokens[place + fuzzer.draw.randrange(12) :]]


def _grown(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    """A name or number becomes an expression."""
    places = [number for number, token in enumerate(tokens) if token.isalnum() or token.isidentifier()]
    if not places:
        return tokens
    at = fuzzer.draw.choice(places)
    return [*tokens[:at], f"({fuzzer.expression()})", *tokens[at + 1 :]]


def _itemised(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    """One more item before the last brace."""
    ends = [number for number, token in enumerate(tokens) if token == "}"]
    item = fuzzer.draw.choice(ITEMS)
    text = f" {item} " if item.startswith("grid") else f" {item} {fuzzer.expression()} "
    return [*tokens[: ends[-1]], text, *tokens[ends[-1] :]] if ends else tokens


def _deleted(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    return [*tokens[:place], *tokens[place + fuzzer.draw.choice((1, 1, 2, 8)) :]]


def _repeated(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    """A stretch many times over."""
    stretch = tokens[place : place + fuzzer.draw.randrange(1, 9)]
    return [*tokens[:place], *stretch * fuzzer.draw.choice((2, 2, 3, 17, 120)), *tokens[place:]]


def _nested(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    opening, closing = fuzzer.draw.choice(
        (("(", ")"), ("exp(", ")"), ("not ", ""), ("-", ""), ("[", "]"), ("sink[", "]"))
    )
    depth = fuzzer.draw.choice((1, 2, 30, 150, 400))
    end = place + fuzzer.draw.randrange(1, 6)
    return [*tokens[:place], opening * depth, *tokens[place:end], closing * depth, *tokens[end:]]


def _odd(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    return [*tokens[:place], fuzzer.draw.choice(ODD), *tokens[place:]]


def _numbered(fuzzer: Fuzzer, tokens: list[str], place: int) -> list[str]:
    """Another number in the place of one."""
    places = [number for number, token in enumerate(tokens) if token.isdigit()]
    values = (
        "0",
        "1",
        "2",
        "3",
        "31",
        "32",
        "63",
        "64",
        "127",
        "2147483647",
        "2147483648",
        "9223372036854775807",
        "0.0",
        "1e30",
    )
    return [fuzzer.draw.choice(values) if number in places[:1] else token for number, token in enumerate(tokens)]


CHANGES: tuple[Callable[[Fuzzer, list[str], int], list[str]], ...] = (
    *(_replaced, _spliced, _spliced, _grown, _grown, _grown, _itemised, _itemised, _deleted, _repeated, _nested, _odd),
    _numbered,
)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """A context that no text may stay in for longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Slow(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


_forbidden: list[str] = []
_is_auditing = False
HARMLESS = (
    "object.",
    "sys._getframe",
    "gc.",
    "builtins.id",
    "code.__new__",
    "sys.unraisablehook",
    "time.sleep",
    "signal.",
)


def _audit(event: str, arguments: Any) -> None:
    if _is_auditing and not event.startswith(HARMLESS):
        _forbidden.append(f"{event} {arguments!r}"[:200])


class CodeRan(Exception):
    """A text made the front end do something: open, compile, execute, import."""


@contextmanager
def watched(lines: set[tuple[str, int]], audited: bool = True) -> Iterator[None]:
    """Collect the lines of the package that run, and refuse what parsing has no business doing."""
    global _is_auditing

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    previous = sys.gettrace()
    _forbidden.clear()
    sys.settrace(trace)
    _is_auditing = audited
    try:
        yield
    finally:
        _is_auditing = False
        sys.settrace(previous)
    if _forbidden:
        raise CodeRan("; ".join(_forbidden[:3]))


def corpus() -> list[str]:
    """The texts to begin with, each parsed once: what is imported late is there before anybody watches."""
    texts = [*SEEDS, *(path.read_text("utf-8") for path in sorted((ROOT / "examples").glob("*.attn")))]
    for text in texts:
        for variant in parse(text):
            compilation = Compilation(variant)
            for name in compilation.derivation.kernels:
                compilation.kernel(name, Specialisation(head_dim=64, v_head_dim=64))
    for broken in ("attention a { mask x }", "attention a { mask ( }", "$", 'attention a { require q_len == 1, "x }'):
        try:
            parse(broken)
        except DiagnosticError as error:
            str(error)
    return texts


def fuzz(seconds: float, seed: int, report: Callable[[Fuzzer, Finding | None], None]) -> Fuzzer:
    """Make texts for so long; `report` is told of every step."""
    fuzzer = Fuzzer(random.Random(seed), corpus())
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        report(fuzzer, fuzzer.step())
    return fuzzer


sys.addaudithook(_audit)
