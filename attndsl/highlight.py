"""Colour for a terminal: text in, the same text with ANSI colours out. Imported only where there is a terminal."""

from __future__ import annotations

from typing import Any, ClassVar

from pygments import highlight
from pygments.formatters import TerminalFormatter
from pygments.lexer import RegexLexer, words
from pygments.lexers import CppLexer, PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, Text, Whitespace

from attndsl.ir.ops import CALLS
from attndsl.ir.types import Coordinate, Flow, Reduction


def _words(*names: str) -> words:
    return words(names, prefix=r"\b", suffix=r"\b")


class AttnLexer(RegexLexer):
    """The `.attn` language, word by word."""

    name = "attn"
    aliases: ClassVar[list[str]] = ["attn"]
    filenames: ClassVar[list[str]] = ["*.attn"]
    tokens: ClassVar[dict[str, list[tuple[Any, Any]]]] = {
        "root": [
            (r"#.*", Comment.Single),
            (r"\s+", Whitespace),
            (_words("attention", "mask", "normalizer", "let", "def"), Keyword.Declaration),
            (_words("if", "else", "and", "or", "not"), Operator.Word),
            (_words("tensor", "int", "float", "bool"), Keyword.Type),
            (_words("true", "false", "inf", "nan"), Keyword.Constant),
            (_words(*(c.value for c in Coordinate), *(f.value for f in Flow)), Name.Builtin),
            (_words(*CALLS, "clamp", "row_solve", "softmax", *(r.value for r in Reduction)), Name.Function),
            (r"0x[0-9a-fA-F]+|\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?", Number),
            (r"[A-Za-z_]\w*", Name),
            (r"\*\*|//|<<|>>|<=|>=|==|!=|[-+*/%&|^~<>=]", Operator),
            (r"[()\[\]{},:;]", Punctuation),
            (r".", Text),
        ]
    }


_LEXERS = {"attn": AttnLexer, "python": PythonLexer, "cpp": CppLexer}


def colour(text: str, language: str) -> str:
    """The text of a variant (`attn`) or of a kernel (`python`, `cpp`), coloured."""
    return str(highlight(text, _LEXERS[language](), TerminalFormatter()))
