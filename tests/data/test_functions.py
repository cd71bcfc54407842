"""Functions are cut out of files exactly: same syntax tree, prompt and code on whole lines."""

import ast
import json
import textwrap
import typing

import pytest

from ra3_jax.data.functions import function_nodes, split_function
from ra3_jax.data.lines import DataError, logical_lines, parse


def split_all(text: str) -> dict[str, tuple[str, str] | str]:
    """Qualified name -> (prompt, code), or the reason why there is none."""
    found = {}
    for name, node in function_nodes(parse(text, "t.py")):
        try:
            found[name] = split_function(text.split("\n"), node, name)
        except DataError as error:
            found[name] = error.reason
    return found


def tree_without_layout(node: ast.AST) -> str:
    """Syntax tree as text; the indentation inside docstrings does not count."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant):
            if isinstance(inner.value.value, str):
                rows = inner.value.value.split("\n")
                inner.value.value = "\n".join(row.strip() for row in rows)
    return ast.dump(node)


def test_prompt_is_decorators_signature_and_docstring():
    text = textwrap.dedent('''\
        @first
        # why
        @second(
            1,
        )
        async def f(a,
                    b=(1, 2)):  # the header goes on
            """Adds.

            Twice.
            """
            # then

            return a + b
        x = 1
    ''')
    prompt, code = split_all(text)["f"]
    assert prompt + code == text.removesuffix("x = 1\n")
    assert prompt.startswith("@first\n") and prompt.endswith('    """\n')
    assert code == "    # then\n\n    return a + b\n"


def test_comments_after_a_signature_without_docstring_are_code():
    prompt, code = split_all("def f(\n    a,\n    # last\n):\n\n    # go\n    return a")["f"]
    assert prompt == "def f(\n    a,\n    # last\n):\n"
    assert code == "\n    # go\n    return a\n"


def test_first_statement_may_be_decorated():
    prompt, code = split_all("def f():\n    @g\n    def h():\n        return 1\n    return h\n")["f"]
    assert prompt == "def f():\n"
    assert code.startswith("    @g\n")


def test_methods_are_dedented_and_nested_functions_stay():
    text = textwrap.dedent('''\
        if True:
            class A:
                def f(self):
                    """One
                    two."""
                    def inner():
                        return 1
                    return inner
        try:
            pass
        except ValueError:
            def g():
                return 2
    ''')
    found = split_all(text)
    assert list(found) == ["A.f", "g"]
    assert found["A.f"] == (
        'def f(self):\n    """One\n    two."""\n',
        "    def inner():\n        return 1\n    return inner\n",
    )
    assert found["g"] == ("def g():\n", "    return 2\n")


def test_dedenting_keeps_the_values_of_strings():
    text = textwrap.dedent("""\
        class A:
            def f(self):
                a = '''one
                two'''
                b = f'''{a}
            three'''
                c = ("four"
                     "five")
          # to the left
                d = 'six\\
            seven'
                return a, b, c, d
    """)
    prompt, code = split_all(text)["A.f"]
    namespace: dict[str, typing.Any] = {}
    exec(prompt + code, namespace)
    whole: dict[str, typing.Any] = {}
    exec(text, whole)
    assert namespace["f"](None) == whole["A"]().f()
    assert '    c = ("four"\n         "five")\n# to the left\n' in code


def test_tabs():
    prompt, code = split_all("class A:\n\tdef f(self):\n\t\tif self:\n\t\t\treturn 1\n")["A.f"]
    assert (prompt, code) == ("def f(self):\n", "\tif self:\n\t\treturn 1\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(): return 1\n", "function on one line"),
        ("def f(a,\n      b): return 1\n", "function on one line"),
        ("def f():\n    'doc'; return 1\n", "function on one line"),
        ("def f(): \\\n    return 1\n", "function on one line"),
        ("def f():\n    'doc'\n", "function without a body"),
        ("def f(): ...\n", "function without a body"),
        ("def f():\n    'doc'\n    pass\n", "function without a body"),
    ],
)
def test_functions_that_cannot_be_split(text, reason):
    assert split_all(text) == {"f": reason}


@pytest.mark.parametrize("text", ["def f(:\n", "x = '\0'\n", "(" * 500, "x = '\ud800'\n"])
def test_what_is_not_python_is_a_data_error(text):
    with pytest.raises(DataError) as error:
        parse(text, "t.py")
    assert error.value.reason == "not Python"


@pytest.mark.parametrize("module", [ast, json.decoder, textwrap, typing])
def test_functions_of_real_modules_keep_their_trees(module):
    with open(module.__file__, encoding="utf-8") as file:
        text = file.read()
    n_functions = 0
    for name, node in function_nodes(parse(text, module.__name__)):
        try:
            prompt, code = split_function(text.split("\n"), node, name)
        except DataError:
            continue
        n_functions += 1
        assert prompt.endswith("\n") and code.endswith("\n")
        (again,) = parse(prompt + code, name).body
        assert tree_without_layout(again) == tree_without_layout(node)
        assert logical_lines(code, prompt)  # raises where the prompt ends inside a logical line
    assert n_functions >= 5
