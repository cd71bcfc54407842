"""Which documents hold problems of an evaluation benchmark, so that they are not trained on.

A document is contaminated when, for some benchmark item,
- it shares 13 consecutive words with the item's statement or reference solution (words are runs of
  letters, digits and underscores that do not begin with a digit; case and all else are ignored);
- it has a function of the item's name, and the two docstrings (for MBPP: the statement) share at
  least half of the words of the shorter, common words aside; or
- it has a function of the item's name with the same syntax tree, docstring aside (a fifth of MBPP's
  solutions have fewer than 13 words).
"""

import ast
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator

from etils import epath

from ra3_jax.core.paths import open_unpacked
from ra3_jax.data.lines import DataError, parse, universal_newlines
from ra3_jax.data.sources import Document, SkipReport

N_WORDS = 13
MIN_SHARE = 0.5
# stem of the file -> (benchmark, fields of the statement, fields of the solution)
BENCHMARK_FILES = {
    "HumanEval": ("HumanEval", ("prompt",), ("prompt", "canonical_solution")),
    "HumanEvalPlus": ("HumanEval+", ("prompt",), ("prompt", "canonical_solution")),
    "mbpp": ("MBPP", ("text",), ("code",)),
    "MbppPlus": ("MBPP+", ("prompt",), ("canonical_solution",)),
}
_WORD = re.compile(r"[a-z_][a-z0-9_]*")
_COMMON = frozenset(
    "a all an and any are as at be by each for from function given has if in into is it its of on"
    " or python return returns that the then this to using when where which with write you".split()
)


@dataclasses.dataclass(frozen=True)
class BenchmarkItem:
    """One problem: its text and a whole program that solves it."""

    benchmark: str
    task_id: str
    statement: str
    solution: str


@dataclasses.dataclass(frozen=True)
class _Function:
    item: BenchmarkItem
    words: frozenset[str]  # of docstring or statement
    tree: str


class BenchmarkIndex:
    """Look-up of benchmark items by word n-grams and by function names."""

    def __init__(self, items: Iterable[BenchmarkItem]):
        self.counts: dict[str, int] = {}  # items by benchmark
        self._grams: dict[str, BenchmarkItem] = {}
        self._functions: dict[str, list[_Function]] = {}
        for item in items:
            self.counts[item.benchmark] = self.counts.get(item.benchmark, 0) + 1
            for gram in (*_grams(item.statement), *_grams(item.solution)):
                self._grams.setdefault(gram, item)
            self._add_functions(item)

    def overlap(self, document: Document) -> tuple[BenchmarkItem, str] | None:
        """An item that the document overlaps with, and how; None where it is clean."""
        text = document.prompt + document.code
        for gram in _grams(text):
            if gram in self._grams:
                return self._grams[gram], f"{N_WORDS} words"
        # names are looked for in the text first: parsing is the slow part
        if self._functions.keys().isdisjoint(_words(text)):
            return None
        for node in _functions(parse(text, document.name)):
            for function in self._functions.get(node.name.lower(), ()):
                if _tree(node) == function.tree:
                    return function.item, "same function"
                words = _docstring_words(node, "")
                shared = len(words & function.words)
                if shared and shared >= MIN_SHARE * min(len(words), len(function.words)):
                    return function.item, "name and docstring"
        return None

    def _add_functions(self, item: BenchmarkItem) -> None:
        try:
            tree = parse(universal_newlines(item.solution), item.task_id)
        except DataError:  # a solution in Python 2 or in prose still has its n-grams
            return
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                function = _Function(item, _docstring_words(node, item.statement), _tree(node))
                self._functions.setdefault(node.name.lower(), []).append(function)


def decontaminate(documents: Iterable[Document], index: BenchmarkIndex, report: SkipReport) -> Iterator[Document]:
    """Drops what overlaps with a benchmark; counted by benchmark and kind of overlap."""
    for document in documents:
        try:
            found = index.overlap(document)
            if found is not None:
                item, how = found
                reason = f"in {item.benchmark} ({how})"
                raise DataError(document.name, None, reason, item.task_id)
        except DataError as error:
            report.skip(error)
            continue
        yield document


def read_benchmarks(folder: epath.PathLike) -> list[BenchmarkItem]:
    """The items of the `BENCHMARK_FILES` (.jsonl or .jsonl.gz) in `folder`, which may be gs://.

    Raises FileNotFoundError where there is none of them, ValueError for a file of another format.
    """
    items: list[BenchmarkItem] = []
    for stem in BENCHMARK_FILES:
        for path in (epath.Path(folder) / f"{stem}.jsonl", epath.Path(folder) / f"{stem}.jsonl.gz"):
            if path.exists():
                items += _read_items(path, *BENCHMARK_FILES[stem])
    if not items:
        names = ", ".join(f"{stem}.jsonl[.gz]" for stem in BENCHMARK_FILES)
        raise FileNotFoundError(f"{folder}: no benchmark file; expected any of {names}")
    return items


def _read_items(
    path: epath.Path, benchmark: str, statement: tuple[str, ...], solution: tuple[str, ...]
) -> Iterator[BenchmarkItem]:
    with open_unpacked(path) as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            missing = {"task_id", *statement, *solution} - row.keys()
            if missing:
                raise ValueError(f"{path}:{number}: no {sorted(missing)}; found {sorted(row)}")
            texts = ["".join(row[field] for field in fields) for fields in (statement, solution)]
            yield BenchmarkItem(benchmark, str(row["task_id"]), *texts)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(text: str) -> Iterator[str]:
    words = _words(text)
    for i in range(len(words) - N_WORDS + 1):
        yield " ".join(words[i : i + N_WORDS])


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _docstring_words(node: ast.FunctionDef | ast.AsyncFunctionDef, instead: str) -> frozenset[str]:
    """Words of the docstring, or else of `instead`; without common words and the name."""
    words = _words(ast.get_docstring(node) or instead)
    return frozenset(words) - _COMMON - {node.name.lower()}


def _tree(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Arguments' names and body without docstring, as text."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    names = [argument.arg for argument in node.args.args]
    return f"{names} {[ast.dump(statement) for statement in body]}"
