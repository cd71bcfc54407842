"""What is kept out of training: evaluation tasks, repetitions, tests that are passed without solving the task."""

import collections
import hashlib
import os
import re
from collections.abc import Iterable, Iterator

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.data.decontamination import BenchmarkIndex, BenchmarkItem, read_benchmarks
from ra3_jax.data.lines import DataError, universal_newlines
from ra3_jax.data.sources import Document
from ra3_jax.tasks import mbpp
from ra3_jax.tasks.rows import read_rows
from ra3_jax.tasks.sources import SPECS
from ra3_jax.tasks.task import CallTests, StdioTests, Task

NEEDED = ("HumanEval", "MBPP", "MBPP+")  # whose files must be at hand
CONSTANT, IDENTITY = "one constant answer passes all tests", "the first argument passes all tests"
N_WORDS, MIN_SHARE = 13, 0.5
_WORD = re.compile(r"\w+")


class Screen:
    """Says why a task is left out. Remembers the statements and ids that it has seen."""

    def __init__(self, benchmarks: "Benchmarks | None", drop_weak: bool):
        self._benchmarks = benchmarks
        self._drop_weak = drop_weak
        self._seen: dict[str, str] = {}  # digest of a statement -> id
        self._ids: set[str] = set()

    @property
    def note(self) -> str:
        """For a report: what the tasks were compared with."""
        if self._benchmarks is None:
            return "NOT decontaminated: evaluation tasks may be among these"
        return "kept out: " + ", ".join(f"{name} ({n})" for name, n in self._benchmarks.counts.items())

    def reason(self, task: Task) -> tuple[str, str] | None:
        """(why it is left out, which case), or None."""
        if self._drop_weak and (weakness := weakness_of(task)):
            return weakness, task.task_id
        digest = statement_digest(task)
        if digest in self._seen:
            return "same statement as an earlier task", f"{task.task_id}: {self._seen[digest]}"
        if task.task_id in self._ids:  # results are told apart by it
            return "same id as an earlier task", task.task_id
        self._seen[digest] = task.task_id
        self._ids.add(task.task_id)
        found = self._benchmarks.overlap(task) if self._benchmarks else None
        return (found[0], f"{task.task_id}: {found[1]}") if found else None


class Benchmarks:
    """The evaluation tasks in a folder.

    HumanEval, MBPP (its test split, the only one measured on) and their EvalPlus variants are compared as
    data.decontamination does, statement and solution. Statements of competitions share whole sentences by custom ("The
    first line contains ..."): a task overlaps one of LiveCodeBench or Codeforces, where their files are in the folder
    too, when it has half of that one's runs of 13 words.
    """

    def __init__(self, folder: epath.PathLike | None):
        """None: $RA3_BENCH_DATA. Raises InputError where there is none, or a benchmark of NEEDED is missing."""
        items = _items(folder)
        folder = epath.Path(folder or os.environ["RA3_BENCH_DATA"])
        self.mbpp_plus = frozenset(_number(item) for item in items if item.benchmark == "MBPP+")  # in MBPP's numbers
        self._index = BenchmarkIndex(items)
        self._contests = _Statements(_contest_statements(folder))
        self.counts = self._index.counts | self._contests.counts

    def overlap(self, task: Task) -> tuple[str, str] | None:
        """(benchmark and kind of overlap, task of the benchmark), or None."""
        for text in (task.prompt, task.canonical or ""):
            try:
                found = self._index.overlap(Document(task.task_id, "", universal_newlines(text)))
            except DataError:  # its words were compared; prose has no functions to compare
                continue
            if found is not None:
                return f"in {found[0].benchmark} ({found[1]})", found[0].task_id
        return self._contests.overlap(task.prompt)


class _Statements:
    """Look-up of statements by their runs of words."""

    def __init__(self, statements: Iterable[tuple[str, str, str]]):
        self.counts: collections.Counter[str] = collections.Counter()
        self._of: dict[int, list[int]] = {}  # hash of a run -> statements that have it
        self._names: list[tuple[str, str, int]] = []  # benchmark, id, number of runs
        for benchmark, task_id, text in statements:
            runs = _runs(text)
            self.counts[benchmark] += 1
            for run in runs:
                self._of.setdefault(run, []).append(len(self._names))
            self._names.append((benchmark, task_id, len(runs)))

    def overlap(self, text: str) -> tuple[str, str] | None:
        shared = collections.Counter(k for run in _runs(text) for k in self._of.get(run, ()))
        for k, n in shared.most_common():
            benchmark, task_id, n_runs = self._names[k]
            if n >= MIN_SHARE * n_runs:
                return f"in {benchmark} (half of the statement)", task_id
        return None


def weakness_of(task: Task) -> str:
    """How the tests can be passed without solving the task; "" where no such way is known."""
    tests = task.tests
    if isinstance(tests, StdioTests):
        same = all(case.stdout.split() == tests.cases[0].stdout.split() for case in tests.cases)
        return CONSTANT if same and tests.checker is None else ""
    if not isinstance(tests, CallTests):
        return ""
    if all(case.expected == tests.cases[0].expected for case in tests.cases):
        return CONSTANT
    return IDENTITY if all(case.args[:1] == (case.expected,) for case in tests.cases) else ""


def statement_digest(task: Task) -> str:
    """Of the words of the prompt, whatever their case and the space between them."""
    return hashlib.sha256(" ".join(task.prompt.lower().split()).encode()).hexdigest()


def _runs(text: str) -> set[int]:
    words = _WORD.findall(text.lower())
    return {hash(tuple(words[i : i + N_WORDS])) for i in range(len(words) - N_WORDS + 1)}


def _items(folder: epath.PathLike | None) -> list[BenchmarkItem]:
    how = (
        "Give the folder that has the benchmarks' files (benchmarks=DIR, or $RA3_BENCH_DATA), so that no evaluation"
        " task is trained on. decontaminate=False does without, and that is recorded"
    )
    if folder is None and not os.environ.get("RA3_BENCH_DATA"):
        raise InputError(f"benchmarks: no folder given, expected that of {', '.join(NEEDED)}. {how}")
    folder = epath.Path(folder or os.environ["RA3_BENCH_DATA"])
    try:
        items = read_benchmarks(folder)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"benchmarks: {error}. {how}") from error
    missing = [name for name in NEEDED if all(item.benchmark != name for item in items)]
    if missing:
        raise InputError(f"benchmarks: {folder} has no file of {', '.join(missing)}. {how}")
    return [item for item in items if item.benchmark != "MBPP" or _number(item) in mbpp.SPLITS["test"]]


def _number(item: BenchmarkItem) -> int:
    return int(item.task_id.rpartition("/")[2])


def _contest_statements(folder: epath.Path) -> Iterator[tuple[str, str, str]]:
    """(benchmark, id, statement) of the files that are there. Raises InputError for a broken one."""
    for name in SPECS["codeforces"].files:
        if (folder / name).is_file():
            for row in read_rows(folder / name):
                yield "Codeforces", f"{name}:{row.line}", row.text("problem")
    for name in SPECS["livecodebench/release_v6"].files:
        if (folder / name).is_file():
            for row in read_rows(folder / name):
                yield "LiveCodeBench", row.text("question_id"), row.text("question_content")
