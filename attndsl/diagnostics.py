"""Where a mistake is, what it is, why, and what to write instead.

In: sources, spans and messages from every stage. Out: rendered text with carets, and two exception trees that never
mix: `DiagnosticError` for a user's mistake, `VerifyError` for a bug of the compiler.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

WIDTH = 160
"""Of a longer line, only the stretch around the caret is shown."""


@dataclass(frozen=True, slots=True)
class Source:
    """A text a user wrote: a `.attn` file, a string given to `parse`, or a Python file."""

    name: str
    text: str

    @property
    def base_name(self) -> str:
        """The name without folders, on one line whatever it is: what emitted comments carry."""
        return _printable(PurePath(self.name).name)

    def line(self, number: int) -> str:
        """The text of a 1-based line, empty beyond the end."""
        lines = self.text.split("\n")  # `splitlines` would also break at form feeds and the like
        return lines[number - 1] if 0 < number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a source. Lines and columns count from 1, columns in characters; the end column is exclusive."""

    source: Source
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{_printable(self.source.name)}:{self.line}:{self.column}"

    def caret(self) -> list[str]:
        """The first line of the span with carets under it; none where the source text is not at hand."""
        text = self.source.line(self.line)
        if not text.strip():
            return []
        end = self.end_column if self.end_line == self.line else len(text) + 1
        skipped = max(0, self.column - WIDTH // 2) if len(text) > WIDTH else 0
        shown = text[skipped : skipped + WIDTH]
        text = _printable(shown, "\t")
        column, end = self.column - skipped, min(end - skipped, len(text) + 1)
        number = str(self.line)
        margin = " " * len(number)
        # A tab in the indentation must stay a tab below it, or the caret drifts.
        indent = "".join("\t" if char == "\t" else " " for char in text[: column - 1])
        return [f" {number} | {text}", f" {margin} | {indent}{'^' * max(1, end - column)}"]


def _printable(text: str, also: str = "") -> str:
    """A text in which nothing ends a line or moves a cursor."""
    return "".join(char if char.isprintable() or char in also else "\N{REPLACEMENT CHARACTER}" for char in text)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake: a stable code, a message, where it was written, the reasons, and what to write instead."""

    code: str
    message: str
    span: Span | None = None
    notes: tuple[str, ...] = ()
    help: str | None = None

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.message}"]
        if self.span is not None:
            lines.append(f"  --> {self.span}")
            lines.extend(self.span.caret())
        lines.extend(f" note: {note}" for note in self.notes)
        if self.help is not None:
            lines.append(f" help: {self.help}")
        return "\n".join(lines)


class DiagnosticError(ValueError):
    """A user's mistake, with every diagnostic of the stage that found it."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(map(str, self.diagnostics)))

    def __reduce__(self) -> tuple[type[DiagnosticError], tuple[tuple[Diagnostic, ...]]]:
        return type(self), (self.diagnostics,)


class ProgramError(DiagnosticError):
    """The variant itself is wrong: syntax, names, types."""


class CallError(DiagnosticError):
    """A right variant was called with arguments that do not fit it."""


class UnsupportedError(DiagnosticError):
    """A right variant that the chosen target cannot run; every reason is listed."""


class VerifyError(Exception):
    """A bug of the compiler: a pass or a front end produced a program that breaks the rules of the IR."""


class Reporter:
    """Collects the diagnostics of one stage so that all of them are reported together, up to a number one can read."""

    LIMIT = 100

    def __init__(self, kind: type[DiagnosticError] = ProgramError) -> None:
        self._kind = kind
        self._found: list[Diagnostic] = []

    def error(self, code: str, message: str, span: Span | None = None, *notes: str, help: str | None = None) -> None:
        """Remember a mistake; the stage goes on."""
        diagnostic = Diagnostic(code, message, span, notes, help)
        if diagnostic not in self._found:
            self._found.append(diagnostic)
        if len(self._found) >= self.LIMIT:
            self.check()

    def __len__(self) -> int:
        return len(self._found)

    def check(self) -> None:
        """Raise everything found so far."""
        if self._found:
            raise self._kind(self._found)


def fail(
    kind: type[DiagnosticError],
    code: str,
    message: str,
    span: Span | None = None,
    *notes: str,
    help: str | None = None,
) -> DiagnosticError:
    """The error for a single mistake that ends its stage at once; `raise fail(...)`."""
    return kind([Diagnostic(code, message, span, notes, help)])
