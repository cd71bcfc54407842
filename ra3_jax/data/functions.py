"""Functions as examples: signature and docstring are the prompt, the body is the code."""

import ast
from collections.abc import Iterator, Sequence

from ra3_jax.data.lines import DataError

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def function_nodes(tree: ast.Module) -> Iterator[tuple[str, FunctionNode]]:
    """(qualified name, node) of every function and method in source order.

    Functions inside functions are not given apart.
    """
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        scope, node = stack.pop()
        if isinstance(node, FunctionNode):
            yield scope + node.name, node
            continue
        if isinstance(node, ast.ClassDef):
            scope += f"{node.name}."
        inside = [
            (scope, child)
            for child in ast.iter_child_nodes(node)
            if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case))
        ]
        stack += reversed(inside)


def split_function(rows: Sequence[str], node: FunctionNode, name: str) -> tuple[str, str]:
    """(prompt, code) of a function, dedented.

    `rows`: the physical lines of the file, without their newlines. The prompt is decorators,
    signature and docstring and ends with a newline; comments after it belong to the code. Raises
    DataError where code stands on the line of the signature or docstring, and where there is
    nothing but a docstring, `...` or `pass`.
    """
    docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    statements = node.body if docstring is None else node.body[1:]
    if all(_is_stub(statement) for statement in statements):
        raise DataError(name, node.lineno, "function without a body")
    top, bottom = _first_row(node), node.end_lineno or node.lineno
    start = _first_row(statements[0])
    if docstring is not None and docstring.end_lineno is not None:
        cut = docstring.end_lineno
    else:
        cut = start - 1
        while cut > node.lineno and _is_blank_or_comment(rows[cut - 1]):
            cut -= 1
    shares_row = rows[start - 1][: statements[0].col_offset].strip()
    if shares_row or rows[cut - 1].endswith("\\"):
        raise DataError(name, start, "function on one line")
    text = _dedented(rows, node, top, bottom)
    n_prompt = cut - top + 1
    return "".join(text[:n_prompt]), "".join(text[n_prompt:])


def _first_row(node: ast.stmt) -> int:
    """1-based row where a statement starts, decorators included."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _is_stub(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return node.value.value is ...
    return isinstance(node, ast.Pass)


def _is_blank_or_comment(row: str) -> bool:
    return not row.strip() or row.lstrip().startswith("#")


def _dedented(rows: Sequence[str], node: FunctionNode, top: int, bottom: int) -> list[str]:
    """Rows top..bottom with newlines, moved to the left margin; values of strings are kept."""
    first = rows[top - 1]
    margin = first[: len(first) - len(first.lstrip())]
    if not margin:
        return [row + "\n" for row in rows[top - 1 : bottom]]
    fixed = _rows_inside_strings(rows, node)
    text = []
    for number, row in enumerate(rows[top - 1 : bottom], start=top):
        if number not in fixed:
            # a comment, docstring or bracketed row may be indented less than the function
            row = row[len(margin) :] if row.startswith(margin) else row.lstrip(" \t")
        text.append(row + "\n")
    return text


def _rows_inside_strings(rows: Sequence[str], node: FunctionNode) -> set[int]:
    """Rows that begin inside a multi-line string with a use (not a docstring or bare string)."""
    bare = {id(n.value) for n in ast.walk(node) if isinstance(n, ast.Expr)}
    inside: set[int] = set()
    for n in ast.walk(node):
        is_text = isinstance(n, ast.Constant) and isinstance(n.value, (str, bytes))
        is_format = type(n).__name__ in ("JoinedStr", "TemplateStr")  # f"", and t"" from 3.14 on
        if not (is_text or is_format) or not isinstance(n, ast.expr) or id(n) in bare:
            continue
        last = n.end_lineno or n.lineno
        span = rows[n.lineno - 1 : last]
        # strings that are only joined across rows ("a" newline "b") have no row inside
        if any('"""' in row or "'''" in row or row.endswith("\\") for row in span):
            inside.update(range(n.lineno + 1, last + 1))
    return inside
