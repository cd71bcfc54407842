"""Logical lines of Python: the primitive actions.

A logical line is what the Python tokenizer ends with a NEWLINE token: a multi-line string, an open
bracket or a backslash continues it, `a; b` is one line. Blank lines are dropped. Full-line comments
outside brackets are stripped, kept as lines of their own, or observed (given apart, as the latents
a person wrote). Comments inside a logical line, and at its end, stay in it. The lines, a newline
after each, parse to the syntax tree of the original.
"""

import ast
import dataclasses
import io
import tokenize
import warnings
from collections.abc import Sequence
from typing import Literal

Comments = Literal["strip", "keep", "observe"]

_LAYOUT = frozenset(
    {
        tokenize.ENCODING,
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)


class DataError(ValueError):
    """A document that cannot become a program. Callers skip it and count it by `reason`.

    `row` is the 1-based line of prompt + code, None where no single line is at fault; `reason` is
    one of a few fixed phrases, `detail` says what exactly was found.
    """

    def __init__(self, name: str, row: int | None, reason: str, detail: str = ""):
        place = name if row is None else f"{name}, line {row}"
        super().__init__(f"{place}: {reason}" + (f": {detail}" if detail else ""))
        self.name = name
        self.row = row
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class LogicalLine:
    """One line: indentation included, final newline left out."""

    text: str
    row: int  # 1-based physical line of prompt + code where it starts
    is_comment: bool = False


def universal_newlines(text: str) -> str:
    """Text with `\\n` for each `\\r\\n` and lone `\\r`, which is how Python reads source."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def logical_lines(
    code: str,
    prompt: str = "",
    comments: Literal["strip", "keep"] = "strip",
    name: str = "<code>",
) -> list[LogicalLine]:
    """The logical lines of `code`, read after `prompt` (leading lines that give the code its
    indentation).

    `comments`: full-line comments are dropped ("strip") or lines of their own ("keep"). Empty or
    blank code has no lines. Raises DataError where prompt + code is not Python, or where the prompt
    ends inside a logical line.
    """
    prompt, code = with_final_newline(prompt), with_final_newline(code)
    parse(prompt + code, name)
    rows = (prompt + code).split("\n")
    n_prompt_rows = prompt.count("\n")
    lines = []
    for first, last, is_comment in _spans(prompt + code, name):
        if first <= n_prompt_rows < last:
            raise DataError(name, first, "the prompt ends inside a logical line")
        if first > n_prompt_rows and not (is_comment and comments == "strip"):
            lines.append(LogicalLine("\n".join(rows[first - 1 : last]), first, is_comment))
    return lines


def split_comments(kept: Sequence[LogicalLine]) -> tuple[list[LogicalLine], list[str | None]]:
    """The lines that are code among `kept`, and the comment before each of them.

    The second list is one longer than the first: its last entry is the comment after the last line.
    Neighbouring comment lines are joined into one text that starts with a space and has neither
    mark nor newline ("# sum the\\n# squares" -> " sum the squares"); None where there is no comment
    or an empty one.
    """
    lines: list[LogicalLine] = []
    observed: list[str | None] = []
    words: list[str] = []
    for line in kept:
        if line.is_comment:
            words += line.text.strip().lstrip("#").split()
        else:
            lines.append(line)
            observed.append(_joined(words))
            words = []
    return lines, [*observed, _joined(words)]


def parse(text: str, name: str) -> ast.Module:
    """Syntax tree of `text`. Raises DataError where it is not Python for this interpreter."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(text)
    except SyntaxError as error:
        raise DataError(name, error.lineno, "not Python", error.msg) from error
    except (ValueError, RecursionError, MemoryError) as error:  # NUL, surrogates; nesting too deep
        raise DataError(name, None, "not Python", str(error) or type(error).__name__) from error


def with_final_newline(text: str) -> str:
    """Text with universal newlines and a final one (nothing stays nothing)."""
    text = universal_newlines(text)
    return text if not text or text.endswith("\n") else text + "\n"


def _joined(words: list[str]) -> str | None:
    return " " + " ".join(words) if words else None


def _spans(text: str, name: str) -> list[tuple[int, int, bool]]:
    """(first row, last row, is_comment) of each logical line and full-line comment, 1-based."""
    rows = text.split("\n")
    spans: list[tuple[int, int, bool]] = []
    start: int | None = None
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            row = token.start[0]
            if token.type == tokenize.NEWLINE:
                if start is not None:
                    spans.append((start, row, False))
                start = None
            elif token.type == tokenize.COMMENT and start is None:
                spans.append((row, row, True))
            elif token.type not in _LAYOUT and start is None:
                start = row
                while start > 1 and rows[start - 2].strip(" \t\f") == "\\":
                    start -= 1  # a backslash on a line of its own carries the indentation
    except (tokenize.TokenError, SyntaxError) as error:
        raise DataError(name, None, "not Python", f"its tokenizer stopped: {error}") from error
    return spans
