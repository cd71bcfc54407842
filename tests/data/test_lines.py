"""Logical lines: what is one line, and that the lines are the program."""

import ast
import textwrap
from typing import Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ra3_jax.data.lines import (
    DataError,
    logical_lines,
    parse,
    split_comments,
    universal_newlines,
)
from tests.data.small_tokenizers import STDLIB, read_source, stdlib_sources


def tree(text: str) -> str:
    return ast.dump(parse(text, "test"))


def joined(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


def texts(code: str, prompt: str = "", comments: Literal["strip", "keep"] = "strip") -> list[str]:
    return [line.text for line in logical_lines(code, prompt, comments)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", []),
        ("\n \n\t\n\x0c\n", []),
        ("x = 1", ["x = 1"]),
        ("x = 1\n\n\ny = 2\n", ["x = 1", "y = 2"]),
        ("x = 1; y = 2\n", ["x = 1; y = 2"]),
        ("if x: y\nelse: z\n", ["if x: y", "else: z"]),
        ("f(1,\n\n  # inside\n  2)\n", ["f(1,\n\n  # inside\n  2)"]),
        ("x = '''a\n\n# not a comment\n'''\n", ["x = '''a\n\n# not a comment\n'''"]),
        ("x = 1 + \\\n    2\ny\n", ["x = 1 + \\\n    2", "y"]),
        ("x = 1 \\\n\ny = 2\n", ["x = 1 \\\n", "y = 2"]),
        ("x = 'a\\\nb'\n", ["x = 'a\\\nb'"]),
        ("x = 1  # why\n", ["x = 1  # why"]),
        ("# only a comment", []),
        ("# a\nx = 1\n# b\n", ["x = 1"]),
        ("@d\n# c\ndef f():\n  return 1\n", ["@d", "def f():", "  return 1"]),
        ("def f():\n    x\n# dedented\n    y\n", ["def f():", "    x", "    y"]),
        ("if x:\r\n\ty\r\n\r\nz\r\n", ["if x:", "\ty", "z"]),
        ("x = 1\ry = '''a\rb'''\r", ["x = 1", "y = '''a\nb'''"]),
        ("x\n\x0cy\n", ["x", "\x0cy"]),
        ("if x:\n    \\\ny\n", ["if x:", "    \\\ny"]),
        ("\\\n# c\nx\n", ["x"]),
        ("x = f'{y!r:>{w}} {{}}'\n", ["x = f'{y!r:>{w}} {{}}'"]),
        ("x = f'''{\ny\n}'''\n", ["x = f'''{\ny\n}'''"]),
        ("# -*- coding: latin-1 -*-\nx = '\u00e9\u2028'\n", ["x = '\u00e9\u2028'"]),
        ("x = '\x85'  # \x1c \u2029\ny\n", ["x = '\x85'  # \x1c \u2029", "y"]),
    ],
)
def test_lines(code, expected):
    assert texts(code) == expected
    assert tree(joined(expected)) == tree(code)


def test_comments_are_kept_as_lines_of_their_own():
    code = "# a\nif x:  # b\n        # c\n    y = (1,\n  # d\n  2)\n# e"
    assert texts(code, comments="keep") == [
        "# a",
        "if x:  # b",
        "        # c",
        "    y = (1,\n  # d\n  2)",
        "# e",
    ]
    assert [line.is_comment for line in logical_lines(code, "", "keep")] == [1, 0, 1, 0, 1]
    assert [line.row for line in logical_lines(code, "", "keep")] == [1, 2, 3, 4, 7]


def test_observed_comments_are_joined_and_stand_before_their_line():
    code = "#!/bin/x\n# sum  the\n\n## squares\nx = 1\n#\ny = 2\n  # tail\x0c#\n"
    lines, observed = split_comments(logical_lines(code, "", "keep"))
    assert [line.text for line in lines] == ["x = 1", "y = 2"]
    assert observed == [" !/bin/x sum the squares", None, " tail #"]
    assert split_comments([]) == ([], [None])


PROMPT = 'def f(x):\n    """Doc\n\n    string."""\n'


def test_code_is_read_behind_its_prompt():
    lines = logical_lines("    # c\n    if x:\n\n        return 1\n", PROMPT)
    assert [(line.text, line.row) for line in lines] == [
        ("    if x:", 6),
        ("        return 1", 8),
    ]
    assert texts("    return 1", PROMPT.rstrip("\n")) == ["    return 1"]
    assert texts("    return 1", PROMPT.replace("\n", "\r\n")) == ["    return 1"]
    assert texts("", PROMPT) == []


@pytest.mark.parametrize(
    ("code", "prompt", "row", "reason"),
    [
        ("x = (1,\n", "", 1, "not Python"),
        ("x = 1\n y = 2\n", "", 2, "not Python"),
        ("x = 1 \\", "", 1, "not Python"),
        ("return = 1\n", PROMPT, 5, "not Python"),
        ("x = '\0'\n", "", None, "not Python"),
        ("x = '\ud800'\n", "", None, "not Python"),
        ("\ufeffx = 1\n", "", 1, "not Python"),
        ("if 1:\n\tx\n        y\n", "", 3, "not Python"),
        ("(" * 300 + ")" * 300, "", 1, "not Python"),
        ("-" * 100_000 + "1", "", None, "not Python"),
        ("  1)\n", "x = (\n", 1, "the prompt ends inside a logical line"),
        ("y\n", "x = 1 + \\\n", 1, "the prompt ends inside a logical line"),
        ('""" + "a"\n', 'x = """\n', 1, "the prompt ends inside a logical line"),
    ],
)
def test_what_is_no_program_is_refused_by_name_row_and_reason(code, prompt, row, reason):
    with pytest.raises(DataError) as caught:
        logical_lines(code, prompt, name="some/file.py")
    error = caught.value
    assert (error.name, error.row, error.reason) == ("some/file.py", row, reason)
    assert str(error).startswith("some/file.py" + (f", line {row}: " if row else ": ") + reason)


def test_no_warnings_for_the_escapes_of_other_people(recwarn):
    assert texts(r"x = '\d'") == [r"x = '\d'"]
    assert not recwarn.list


HARD = [STDLIB / "test" / name for name in ("test_grammar.py", "test_fstring.py", "test_string_literals.py")]


@pytest.mark.parametrize("comments", ["strip", "keep"])
def test_lines_of_the_standard_library_parse_to_its_trees(comments):
    sources = [*stdlib_sources(0, 60), *((p.name, read_source(p)) for p in HARD if p.exists())]
    assert len(sources) >= 60
    for name, text in sources:
        lines = logical_lines(text, "", comments, name)
        assert tree(joined([line.text for line in lines])) == tree(text), name
        for line in lines:
            assert line.text.strip() and "\r" not in line.text
            assert line.is_comment == line.text.lstrip().startswith("#")
            assert text.split("\n")[line.row - 1] == line.text.split("\n")[0]


def test_bodies_of_functions_behind_their_signatures():
    count = 0
    for name, text in stdlib_sources(0, 60):
        rows = text.split("\n")
        for node in parse(text, name).body:
            if isinstance(node, ast.FunctionDef) and node.body[0].lineno > node.lineno:
                start, cut, end = node.lineno - 1, node.body[0].lineno - 1, node.end_lineno
                prompt, code = "\n".join(rows[start:cut]), "\n".join(rows[cut:end])
                body = "\n".join(line.text for line in logical_lines(code, prompt, name=name))
                expected = tree("\n".join(rows[start:end]))
                assert tree(f"{prompt}\n{body}") == expected, (name, node.name)
                count += 1
    assert count > 100


FRAGMENTS = st.sampled_from(
    [
        "x = 1", "y = (1,\n\n  # c\n2)", "z = '''a\n # s\n\n'''", "a; b", "w = 1 + \\\n 2",
        "@d\n# c\ndef f(): pass", "if a:\n    b\n# c\n    d\n  # e\nelse:\n\n    e",
        "def g():\n\treturn {\n'k': [\n]}", "x = 1 \\\n", "\x0cv = 1",
        "for i in j:\n    if k:\n        break\n    # c", "s = 'a\\\n#b'",
        "class C:\n  \\\nx = 1\n  y = 2", "\\\n# c", "f'{x}' '''\n'''", "t = 1  # trailing",
        "try: x\nexcept E: y\nfinally:\n  # c\n  z", "lambda: (\n0)",
    ]
)  # fmt: skip
GAPS = st.sampled_from(["\n", "\n\n", "\n# c\n", "\r\n", "\r", "\n   \n", "\n\x0c\n", "\n\t# c\n"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(FRAGMENTS, GAPS), max_size=8), st.booleans())
def test_any_mixture_of_fragments(parts, final_newline):
    code = "".join(fragment + gap for fragment, gap in parts)
    code = code if final_newline else code.rstrip("\r\n")
    try:
        expected = tree(code)
    except DataError:
        assume(False)
    stripped, kept = texts(code), texts(code, comments="keep")
    assert tree(joined(stripped)) == tree(joined(kept)) == expected
    assert [line for line in kept if not line.lstrip().startswith("#")] == stripped
    indented = textwrap.indent(universal_newlines(code), "    ", lambda row: True)
    if "'''" not in code and "\\" not in code and "\x0c" not in code and "\t" not in code:
        behind = texts(indented, "def f():\n    pass\n")
        assert behind == [textwrap.indent(line, "    ", lambda row: True) for line in stripped]


def test_a_long_line_is_one_line():
    code = "x = [" + "1, " * 50_000 + "]\n"
    assert texts(code) == [code[:-1]]
