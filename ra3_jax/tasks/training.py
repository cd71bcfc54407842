"""The tasks that reinforcement learning trains on, by index: puzzles, repairs, MBPP's train split, data sets.

Everything is read once and checked before anything is compiled. Then a task is a function of an integer, so that the
position of a learner in its data is one: `tasks[i]` is the i-th task, `tasks.at(position)` what a learner meets there.

Left out, and counted in each part's report:
- what overlaps an evaluation benchmark (screening.py): by id, where MBPP's train split and MBPP+ share a task; by text,
  with HumanEval, MBPP's test split and their EvalPlus variants, and with Codeforces and LiveCodeBench where at hand;
- what was met before: the same statement or id, in this part or an earlier one;
- weak tests: those that one constant answer passes, or the first argument handed back. A policy finds such answers.
A task without tests, or of which a field cannot be used, is an error that names file and line (`bad_rows` skips it).

A data set stays on disk. Lines of a local .jsonl file are found again by their byte offsets; rows of the hub, of a
bucket, or of .parquet and .gz files, are first written to such a file in the cache (no more than `limit`, if given).
"""

import array
import bisect
import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, get_args

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.core.paths import is_remote
from ra3_jax.data import puzzles
from ra3_jax.data.lines import universal_newlines
from ra3_jax.tasks import mbpp, prompts
from ra3_jax.tasks.benchmarks import training_source, training_task
from ra3_jax.tasks.codecontests import MAX_TESTS
from ra3_jax.tasks.on_disk import OnDisk, cached_rows, read_lines
from ra3_jax.tasks.puzzles import puzzle_task
from ra3_jax.tasks.repair import repair_tasks
from ra3_jax.tasks.rows import Row
from ra3_jax.tasks.screening import Benchmarks, Screen, statement_digest
from ra3_jax.tasks.sources import SPECS, Hub, Source, find
from ra3_jax.tasks.task import CallTests, StdioTests, Task

# fmt: off
Kind = Literal[
    "puzzles", "repair", "mbpp-train", "leetcode", "codecontests", "areal-boba-2",
    "deepcoder/primeintellect", "deepcoder/taco", "deepcoder/lcbv5",
]
# fmt: on
GENERATED = ("puzzles", "repair")
N_GENERATED = 2048  # tasks, where no limit is given
DEV_SEED = 5001  # of held-out puzzles: others than those that mid-training is measured on (4001, 9001)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Part:
    """One kind of tasks in the mixture."""

    kind: Kind
    weight: float = 1.0
    """Share of the tasks met, relative to the other parts' weights."""
    limit: int | None = None
    """Puzzles and repairs: how many are made. Data sets: rows read, from the first; must be given for the hub."""
    blocks: tuple[int, ...] = ()
    """Puzzles and repairs: numbers of blocks, in equal shares; () means 3 and 4."""
    file: epath.PathLike | None = None
    """Data sets: a file, or"""
    data_dir: epath.PathLike | None = None
    """a folder with the usual file names (both may be gs://), or, where neither is given, the hub:"""
    hub: str | None = None
    """id of the data set there, instead of the usual one,"""
    revision: str | None = None
    """and its branch, tag or commit."""


@dataclasses.dataclass(frozen=True)
class TrainingSpec:
    parts: tuple[Part, ...] = (Part("puzzles"),)
    seed: int = 0
    """Of the puzzles, and of the order in which tasks are met."""
    held_out: int = 64
    """Tasks of each part that are never trained on, to evaluate on."""
    puzzle_split: Literal["dev", "test"] = "dev"
    """Compositions of the held-out puzzles and repairs."""
    max_tests: int = MAX_TESTS
    """Tests a task, those with the longest inputs."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """At a row that is broken or has no tests: an error, or counted and left out."""
    weak_tests: Literal["drop", "keep"] = "drop"
    """Tasks whose tests one constant answer passes, or the first argument."""
    benchmarks: epath.PathLike | None = None
    """Folder with HumanEval, MBPP and MBPP+, to keep them out of what is trained on; $RA3_BENCH_DATA if not given."""
    decontaminate: bool = True
    """False: trains on whatever the data sets hold, evaluation tasks included. Recorded."""
    cache: epath.PathLike | None = None
    """Local folder for the rows of the hub or a bucket; that of the project's caches if not given."""


@dataclasses.dataclass
class Report:
    """What a part was made of. `rows` = kept + the sum of `dropped`."""

    kind: str
    origin: str  # place, version (sha256 or commit), and whether it is the known release
    rows: int = 0
    train: int = 0
    held_out: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)  # reason -> its first case
    notes: list[str] = dataclasses.field(default_factory=list)

    def drop(self, reason: str, case: str) -> None:
        self.dropped[reason] += 1
        self.examples.setdefault(reason, case)

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.train} tasks to train on, {self.held_out} held out, from {self.origin}"]
        lines += [f"  left out {n}: {reason} (such as {self.examples[reason]})" for reason, n in self.dropped.items()]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


@dataclasses.dataclass(frozen=True)
class TaskSet:
    """The tasks of one part."""

    part: Part
    train: Sequence[Task]  # those of a file are read when asked for
    held_out: Sequence[Task]
    report: Report


class TaskSource:
    """The parts, as a sequence of tasks and as an endless stream."""

    def __init__(self, sets: Sequence[TaskSet], seed: int):
        self.sets = tuple(sets)
        self._seed = seed
        self._ends = list(itertools.accumulate(len(s.train) for s in sets))
        self._turns = array.array("B")  # the part whose turn it is, by position
        self._nth = array.array("Q")  # how often it had been before
        self._had = [0] * len(sets)
        self._orders: dict[int, tuple[int, list[int]]] = {}  # of each part: the epoch last asked for, and its order

    def __len__(self) -> int:
        """Different tasks to train on."""
        return self._ends[-1]

    def __getitem__(self, i: int) -> Task:
        """The i-th task, the parts one after another. Raises IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(f"task {i} of {len(self)}")
        k = bisect.bisect_right(self._ends, i)
        return self.sets[k].train[i - (self._ends[k - 1] if k else 0)]

    def at(self, position: int) -> Task:
        """The task at a position (from 0, without end) of the stream, a function of the spec and the position alone.

        Parts take turns so that each has its share of any beginning, to within one or two tasks; each goes through all
        of its tasks in one order after another.
        """
        if position < 0:
            raise IndexError(f"position {position}")
        weights = [s.part.weight for s in self.sets]
        while len(self._turns) <= position:  # the part that is furthest behind its share
            due = (len(self._turns) + 1) / sum(weights)
            k = max(range(len(weights)), key=lambda k: due * weights[k] - self._had[k])
            self._turns.append(k)
            self._nth.append(self._had[k])
            self._had[k] += 1
        k, n = self._turns[position], self._nth[position]
        tasks = self.sets[k].train
        epoch, i = divmod(n, len(tasks))
        if k not in self._orders or self._orders[k][0] != epoch:
            self._orders[k] = (epoch, _shuffled(len(tasks), "order", str(self._seed), str(k), str(epoch)))
        return tasks[self._orders[k][1][i]]

    @property
    def held_out(self) -> tuple[Task, ...]:
        """Those of all parts; `task.source` tells them apart."""
        return tuple(task for s in self.sets for task in s.held_out)

    @property
    def reports(self) -> tuple[Report, ...]:
        return tuple(s.report for s in self.sets)


def training_tasks(spec: TrainingSpec) -> TaskSource:
    """Reads and checks all parts. Raises InputError."""
    _check(spec)
    read = any(part.kind not in GENERATED for part in spec.parts)
    benchmarks = Benchmarks(spec.benchmarks) if spec.decontaminate and read else None
    screen = Screen(benchmarks, spec.weak_tests == "drop")
    sets = []
    for part in spec.parts:
        if part.kind in GENERATED:
            sets.append(_generated(part, spec))
        elif part.kind == "mbpp-train":
            sets.append(_mbpp_train(part, spec, screen, benchmarks.mbpp_plus if benchmarks else ()))
        else:
            sets.append(_data_set(part, spec, screen))
    return TaskSource(sets, spec.seed)


def _check(spec: TrainingSpec) -> None:
    """Raises InputError for what cannot be meant."""
    if not spec.parts:
        raise InputError("parts: none given, expected at least one kind of tasks")
    if not 1 <= spec.max_tests <= MAX_TESTS:
        raise InputError(f"max_tests: found {spec.max_tests}, expected 1..{MAX_TESTS}")
    if spec.held_out < 0:
        raise InputError(f"held_out: found {spec.held_out}, expected 0 or more")
    kinds = [part.kind for part in spec.parts]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"parts: found {', '.join(kinds)}, expected each kind once (its ids would be met twice)")
    for k, part in enumerate(spec.parts):
        name = f"parts[{k}] ({part.kind})"
        if part.kind not in get_args(Kind):
            raise InputError(f"{name}: kind found {part.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if not 0 < part.weight < float("inf"):
            raise InputError(f"{name}: weight found {part.weight}, expected more than 0")
        if part.limit is not None and part.limit < 1:
            raise InputError(f"{name}: limit found {part.limit}, expected at least 1")
        if part.kind in GENERATED:
            if part.file or part.data_dir or part.hub or part.revision:
                raise InputError(f"{name}: these are generated, but a file, data_dir, hub or revision is given")
            if not all(1 <= n <= len(puzzles.ORDINALS) for n in part.blocks):
                raise InputError(f"{name}: blocks found {part.blocks}, expected some of 1..{len(puzzles.ORDINALS)}")
        elif part.blocks:
            raise InputError(f"{name}: blocks found {part.blocks}, which only puzzles and repairs have")
        elif part.limit is None and part.kind != "mbpp-train" and not (part.file or part.data_dir):
            raise InputError(f"{name}: read from the hub, so limit (how many rows) must be given, or file or data_dir")
        if part.hub and (part.file or part.data_dir):
            raise InputError(f"{name}: hub={part.hub} is given, and a local file or folder too; give one of them")


# How models are asked


def style_of(kind: str) -> prompts.Style:
    """Prompt, stop strings and extraction for the tasks of a kind (of a `task.source`)."""
    if kind in GENERATED:
        return prompts.PUZZLES
    if kind == "mbpp-train":
        return prompts.MBPP_PLUS
    chat = _leetcode_chat if kind == "leetcode" else prompts.livecodebench_chat
    # a base model continues the question itself: there is no example to show
    return dataclasses.replace(
        prompts.livecodebench(None, kind),
        prompt=lambda task: chat(task).messages[-1][1],
        chat=chat,
        extraction="fences",
    )


def _leetcode_chat(task: Task) -> prompts.Chat:
    """The rows say themselves what is wanted."""
    return prompts.Chat((("user", task.prompt),))


# Puzzles


def puzzle_family(
    kind: Literal["puzzles", "repair"], split: puzzles.Split, n: int, seed: int, blocks: Sequence[int] = ()
) -> list[Task]:
    """The first `n` of a stream of puzzles, or of their repairs. "mid" draws from the training compositions, which
    "dev" and "test" share none with."""
    family = puzzles.generate(split, n, seed, ks=dict.fromkeys(blocks, 1.0) or None)
    return repair_tasks(family, seed) if kind == "repair" else list(map(puzzle_task, family))


def _generated(part: Part, spec: TrainingSpec) -> TaskSet:
    assert part.kind == "puzzles" or part.kind == "repair"
    n = part.limit or N_GENERATED
    drawn = (
        puzzle_family(part.kind, "mid", n, spec.seed, part.blocks),
        puzzle_family(part.kind, spec.puzzle_split, spec.held_out, DEV_SEED, part.blocks),
    )
    train, held_out = ([_trimmed(task, spec.max_tests) for task in tasks] for tasks in drawn)
    origin = f"the built-in family, seed {spec.seed}; held out: {spec.puzzle_split} compositions, seed {DEV_SEED}"
    return TaskSet(part, train, held_out, Report(part.kind, origin, n + spec.held_out, n, spec.held_out))


# Data sets


def _data_set(part: Part, spec: TrainingSpec, screen: Screen) -> TaskSet:
    where = {"data_dir": part.data_dir, "file": part.file, "revision": part.revision}
    source = training_source(part.kind, hub=_hub(part), **where)
    report = _report(part, source, screen)

    def make(row: Row, i: int) -> Task:
        return _trimmed(training_task(part.kind, row, i), spec.max_tests)

    paths = _files_of(part)
    if paths and all(path.name.endswith(".json") for path in paths):  # is read whole in any case
        rows = enumerate(itertools.islice(source.rows(), part.limit))
        made = ((functools.partial(make, row, i), None) for i, row in rows)
        kept = [(digest, task) for digest, task, _ in _screened(made, spec, screen, report)]
        return _split(part, spec, report, kept, list)
    wrapped = not paths or not all(path.name.endswith(".jsonl") and not is_remote(path) for path in paths)
    if wrapped:
        paths = [cached_rows(part.kind, source, part.limit, spec.cache)]
    lines = itertools.islice(read_lines(paths, wrapped), part.limit)
    made = ((lambda text=text, line=line: make(line.row(text), line.i), line) for text, line in lines)
    kept = [(digest, line) for digest, _, line in _screened(made, spec, screen, report)]
    return _split(part, spec, report, kept, lambda chosen: OnDisk(chosen, make))


def _mbpp_train(part: Part, spec: TrainingSpec, screen: Screen, plus_ids: Container[int]) -> TaskSet:
    """Asked as MBPP+ asks, without examples: those of MBPP's own prompt (2, 3, 4) are tasks of MBPP+."""
    where = {"data_dir": part.data_dir, "file": part.file, "revision": part.revision}
    source = find("mbpp", hub=_hub(part), **where)
    report = _report(part, source, screen)
    by_id = {row.get("task_id", int): row for row in source.rows()}
    made = []
    for task in mbpp.tasks(by_id.values(), "train"):
        number = int(task.task_id.rpartition("/")[2])
        if number in plus_ids:
            report.rows += 1
            report.drop("in MBPP+ (same id)", task.task_id)
            continue
        row = by_id[number]
        lines = ('"""', row.text("text").strip(), row.list_of("test_list", str)[0].strip(), '"""\n')
        task = dataclasses.replace(task, prompt=universal_newlines("\n".join(lines)), source="mbpp-train", metadata={})
        made.append((lambda task=task: task, None))
    kept = [(digest, task) for digest, task, _ in _screened(itertools.islice(made, part.limit), spec, screen, report)]
    return _split(part, spec, report, kept, list)


def _report(part: Part, source: Source, screen: Screen) -> Report:
    limit = [f"only the first {part.limit} rows were read"] if part.limit else []
    return Report(part.kind, str(source.origin), notes=[*source.origin.warnings, *limit, screen.note])


def _screened(
    made: Iterable[tuple[Callable[[], Task], T]], spec: TrainingSpec, screen: Screen, report: Report
) -> Iterator[tuple[str, Task, T]]:
    """(digest of the statement, task, what came with it) of what stays. Raises InputError for a bad row, if told to."""
    for make, handle in made:
        report.rows += 1
        try:
            task = make()
        except InputError as error:
            if spec.bad_rows == "stop":
                raise InputError(f"{error} (bad_rows=skip leaves such rows out, and counts them)") from error
            report.drop("broken, or without tests", str(error))
            continue
        if reason := screen.reason(task):
            report.drop(*reason)
        else:
            yield statement_digest(task), task, handle


def _split(
    part: Part,
    spec: TrainingSpec,
    report: Report,
    kept: list[tuple[str, T]],
    tasks: Callable[[list[T]], Sequence[Task]],
) -> TaskSet:
    """Held out are those whose statements have the lowest digests: the same ones whatever is added elsewhere."""
    if len(kept) <= spec.held_out:
        raise InputError(
            f"{part.kind}: {len(kept)} tasks are left, expected more than the {spec.held_out} to hold out\n{report}"
        )
    apart = {digest for digest, _ in sorted(kept, key=lambda pair: pair[0])[: spec.held_out]}
    held_out = [handle for digest, handle in kept if digest in apart]
    train = [handle for digest, handle in kept if digest not in apart]
    report.train, report.held_out = len(train), len(held_out)
    return TaskSet(part, tasks(train), tasks(held_out), report)


def _hub(part: Part) -> Hub | None:
    """The data set that the part names, read in the way of the usual one."""
    if part.hub is None:
        return None
    usual = SPECS["mbpp" if part.kind == "mbpp-train" else part.kind].hub
    return dataclasses.replace(usual, id=part.hub) if usual else Hub(part.hub, splits=("train",))


def _files_of(part: Part) -> list[epath.Path]:
    if part.file is not None:
        return [epath.Path(part.file)]
    if part.data_dir is None:
        return []
    return [path for name in SPECS[part.kind].files for path in sorted(epath.Path(part.data_dir).glob(name))]


def _trimmed(task: Task, most: int) -> Task:
    """With the `most` tests that have the longest inputs, in their order."""
    tests = task.tests
    if isinstance(tests, StdioTests):
        sizes = [len(case.stdin) for case in tests.cases]
    elif isinstance(tests, CallTests):
        sizes = [len(str(case.args)) for case in tests.cases]
    else:
        return task
    if len(sizes) <= most:
        return task
    kept = sorted(sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True)[:most])
    cases: Any = tuple(tests.cases[i] for i in kept)
    return dataclasses.replace(task, tests=dataclasses.replace(tests, cases=cases))


def _shuffled(n: int, *key: str) -> list[int]:
    """0 ... n - 1 in an order that depends on the key alone, in any version of Python."""
    return sorted(range(n), key=lambda i: hashlib.sha256("\0".join((*key, str(i))).encode()).digest())
