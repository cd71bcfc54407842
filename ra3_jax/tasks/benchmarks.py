"""The benchmarks by name: where their rows are, how they become tasks, how models are asked, what to call them."""

import collections
import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any, Literal

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.core.paths import optional_path
from ra3_jax.tasks import codecontests, codeforces, humaneval, leetcode, livecodebench, mbpp, prompts
from ra3_jax.tasks.sources import Hub, Origin, Row, Source, find, read_json
from ra3_jax.tasks.task import OracleTests, Task

Name = Literal["humaneval", "humaneval+", "mbpp", "mbpp+", "livecodebench", "codeforces"]
Variant = Literal["full", "mini", "noextreme"]
Form = Literal["3shot", "evalplus", "deepcoder", "open-r1"]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    name: Name
    tasks: tuple[Task, ...]
    origin: Origin
    label: str  # what figures must be reported with: form, split, release, window
    style: prompts.Style
    notes: tuple[str, ...] = ()  # what a reader of the figures should know


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The options of `load_benchmark`."""

    data_dir: epath.Path | None
    file: epath.Path | None
    revision: str | None
    variant: Variant
    form: Form | None
    release: str | None
    start_date: datetime.date | None
    end_date: datetime.date | None

    def find(self, source: str) -> Source:
        return find(source, data_dir=self.data_dir, file=self.file, revision=self.revision)


_OPTIONS = {
    "humaneval": (),
    "humaneval+": ("variant",),
    "mbpp": ("variant", "form"),
    "mbpp+": ("variant",),
    "livecodebench": ("release", "start_date", "end_date"),
    "codeforces": ("form",),
}
"""The options that a benchmark has, beyond those of where its rows are."""


def load_benchmark(
    name: Name,
    *,
    data_dir: epath.PathLike | None = None,
    file: epath.PathLike | None = None,
    revision: str | None = None,
    variant: Variant = "full",
    form: Form | None = None,
    release: str | None = None,
    start_date: datetime.date | None = None,
    end_date: datetime.date | None = None,
) -> Benchmark:
    """The tasks of a benchmark, from `file`, else from `data_dir`, else from the Hugging Face hub at `revision`.

    variant: of HumanEval+ and MBPP+, and of MBPP in EvalPlus's form. form: of MBPP, "3shot" (the paper's 500 test
    tasks, the default) or "evalplus" (378 tasks, zero-shot, the base tests of MBPP+); of Codeforces, "deepcoder" (the
    default) or "open-r1". release, start_date, end_date (both included): of LiveCodeBench; release_v5 by default.

    Raises InputError, also for an option that the benchmark does not have.
    """
    if name not in _OPTIONS:
        raise InputError(f"benchmark: found {name!r}, expected one of {', '.join(_OPTIONS)}")
    choice = _Choice(
        optional_path(data_dir), optional_path(file), revision, variant, form, release, start_date, end_date
    )
    for option in ("variant", "form", "release", "start_date", "end_date"):
        value = getattr(choice, option)
        if value not in (None, "full") and option not in _OPTIONS[name]:
            raise InputError(f"{option}={value}: {name} has no such option")
    benchmark = _LOADERS[name](choice)
    counts = collections.Counter(task.task_id for task in benchmark.tasks)
    twice = [task_id for task_id, n in counts.items() if n > 1]
    if twice:
        raise InputError(
            f"{benchmark.origin.place}: task_id {twice[0]!r} found {counts[twice[0]]} times, expected once"
        )
    if not benchmark.tasks:
        raise InputError(f"{benchmark.origin.place}: no task left ({benchmark.label})")
    return benchmark


def _humaneval(choice: _Choice) -> Benchmark:
    source = choice.find("humaneval")
    tasks = humaneval.tasks(source.rows())
    return Benchmark("humaneval", tasks, source.origin, f"HumanEval ({len(tasks)})", prompts.HUMANEVAL)


def _humaneval_plus(choice: _Choice) -> Benchmark:
    source = choice.find("humaneval+" + _slash(choice.variant))
    tasks = humaneval.plus_tasks(source.rows())
    label = f"HumanEval+ ({_variant(choice.variant)}{len(tasks)})"
    return Benchmark("humaneval+", tasks, source.origin, label, prompts.HUMANEVAL_PLUS)


def _mbpp(choice: _Choice) -> Benchmark:
    form = _one_of("form", choice.form or "3shot", ("3shot", "evalplus"))
    if form == "evalplus":
        plus = _mbpp_plus(choice)
        tasks = tuple(map(_base_only, plus.tasks))
        label = f"MBPP (EvalPlus form, {_variant(choice.variant)}{len(tasks)}, zero-shot)"
        return dataclasses.replace(plus, name="mbpp", tasks=tasks, label=label)
    if choice.variant != "full":
        raise InputError(f"variant={choice.variant}: MBPP has variants in its EvalPlus form alone (form=evalplus)")
    source = choice.find("mbpp")
    tasks = mbpp.tasks(source.rows(), "test")
    return Benchmark("mbpp", tasks, source.origin, f"MBPP ({len(tasks)} test, 3-shot)", prompts.MBPP)


def _base_only(task: Task) -> Task:
    assert isinstance(task.tests, OracleTests)
    return dataclasses.replace(task, tests=dataclasses.replace(task.tests, plus=()))


def _mbpp_plus(choice: _Choice) -> Benchmark:
    source = choice.find("mbpp+" + _slash(choice.variant))
    tasks = mbpp.plus_tasks(source.rows())
    label = f"MBPP+ ({_variant(choice.variant)}{len(tasks)}, zero-shot)"
    return Benchmark("mbpp+", tasks, source.origin, label, prompts.MBPP_PLUS)


def _livecodebench(choice: _Choice) -> Benchmark:
    release = _one_of("release", choice.release or "release_v5", livecodebench.RELEASES)
    source = choice.find(f"livecodebench/{release}")
    counted = _Counted(source.rows())
    tasks = tuple(livecodebench.tasks(counted, choice.start_date, choice.end_date))
    origin, shown = source.origin, release
    if choice.file is not None and choice.release is None:
        shown = f"{choice.file.name} ({counted.n} problems, release not stated)"
    elif counted.n != livecodebench.RELEASES[release]:
        warning = f"{counted.n} problems found, {release} has {livecodebench.RELEASES[release]}: this is not all of it"
        origin = dataclasses.replace(origin, warnings=(*origin.warnings, warning))
    dates = [task.metadata["date"] for task in tasks]
    first, last = (choice.start_date or min(dates, default="-"), choice.end_date or max(dates, default="-"))
    label = f"LiveCodeBench {shown}, {first}..{last} ({len(tasks)})"
    style = prompts.livecodebench(_shots(choice))
    return Benchmark("livecodebench", tasks, origin, label, style, _flag_notes(tasks))


class _Counted(Iterator[Row]):
    """Counts the rows that pass."""

    def __init__(self, rows: Iterator[Row]):
        self.rows, self.n = rows, 0

    def __next__(self) -> Row:
        row = next(self.rows)
        self.n += 1
        return row


def _shots(choice: _Choice) -> dict[Any, prompts.Shot] | None:
    """LiveCodeBench's examples for base models, where they lie beside the data."""
    folder = choice.data_dir or (choice.file.parent if choice.file else None)
    shots = {}
    for kind, name in (("function", "lcb_fewshot_func.json"), ("stdin", "lcb_fewshot_stdin.json")):
        if folder is None or not (folder / name).is_file():
            return None
        examples = read_json(folder / name)
        if type(examples) is not list or not examples or type(examples[0]) is not dict:
            raise InputError(f"{folder / name}: found something else, expected a list of objects")
        row = Row(examples[0], str(folder / name), 1, "row")
        shots[kind] = prompts.Shot(row.text("question"), row.text("answer"), row.text("sample_code", ""))
    return shots


def _codeforces(choice: _Choice) -> Benchmark:
    form = _one_of("form", choice.form or "deepcoder", ("deepcoder", "open-r1"))
    style = prompts.livecodebench(_shots(choice), "codeforces")
    rating = "a rating needs the contests' standings; without them there is pass@k only"
    if form == "open-r1":
        source = choice.find("codeforces/open-r1")
        tasks = tuple(codeforces.open_r1_tasks(source.rows()))
        label = f"Codeforces (open-r1 test split, official tests, {len(tasks)})"
        return Benchmark("codeforces", tasks, source.origin, label, style, (*_flag_notes(tasks), rating))
    source = choice.find("codeforces")
    tasks = tuple(codeforces.deepcoder_tasks(source.rows(), _problem_ids(choice)))
    label = f"Codeforces (DeepCoder's {len(tasks)} problems, sample tests only)"
    return Benchmark("codeforces", tasks, source.origin, label, style, (*_flag_notes(tasks), rating))


def _problem_ids(choice: _Choice) -> list[str] | None:
    """Which contest each row is of, where the list lies beside the data; only ratings need it."""
    path = choice.data_dir / "rllm_metadata_cf.json" if choice.data_dir else None
    if path is None or not path.is_file():
        return None
    ids = read_json(path)
    if type(ids) is not list or not all(type(problem) is str for problem in ids):
        raise InputError(f"{path}: found something else, expected a list of problem ids")
    return ids


def _flag_notes(tasks: tuple[Task, ...]) -> tuple[str, ...]:
    counts = collections.Counter(
        flag for task in tasks for flag in filter(None, task.metadata.get("flags", "").split("; "))
    )
    return tuple(f"{n} of {len(tasks)} tasks: {flag}" for flag, n in counts.most_common())


def _slash(variant: Variant) -> str:
    return "" if _one_of("variant", variant, ("full", "mini", "noextreme")) == "full" else f"/{variant}"


def _variant(variant: Variant) -> str:
    return "" if variant == "full" else f"{variant}, "


def _one_of(option: str, value: str, allowed) -> str:
    if value not in allowed:
        raise InputError(f"{option}: found {value!r}, expected one of {', '.join(allowed)}")
    return value


_LOADERS = {
    "humaneval": _humaneval,
    "humaneval+": _humaneval_plus,
    "mbpp": _mbpp,
    "mbpp+": _mbpp_plus,
    "livecodebench": _livecodebench,
    "codeforces": _codeforces,
}

# Training tasks

TRAINING = ("leetcode", "codecontests", "areal-boba-2", "deepcoder/primeintellect", "deepcoder/taco", "deepcoder/lcbv5")


def training_source(
    name: str,
    *,
    data_dir: epath.PathLike | None = None,
    file: epath.PathLike | None = None,
    hub: Hub | None = None,
    revision: str | None = None,
) -> Source:
    """The rows of a data set for RL. Raises InputError."""
    _one_of("training data", name, TRAINING)
    return find(name, data_dir=data_dir, file=file, hub=hub, revision=revision)


def training_task(name: str, row: Row, i: int) -> Task:
    """The task of row `i` (from 0). Raises InputError for a row without tests or of another form; the caller decides
    whether that ends the run or is counted."""
    return leetcode.task(row, i) if name == "leetcode" else codecontests.task(row, name, i)
