"""Samples -> verdicts, restartable: every verdict is kept on disk as soon as it is known.

A verdict is known by its content (task, program, version of the judging), so that a killed evaluation goes on where it
was and gives the same numbers, equal programs are run once, and a file of verdicts serves any set of samples.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_args

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.evals.journal import Journal
from ra3_jax.tasks import puzzle_grade
from ra3_jax.tasks.task import Task
from ra3_jax.tasks.verdict import Status, Verdict

JUDGING = 1
"""Version of how programs are judged: to be raised when tasks.grade or the sandbox judges some program differently."""
PUZZLE_BATCH = 250

Grade = Callable[[Sequence[Task], Iterable[str]], Iterator[Verdict]]
"""(tasks, a program for each) -> verdicts, in order and as they come: tasks.grade on a pool, or `grade_puzzles`."""


def judge(
    tasks: Sequence[Task],
    programs: Sequence[str],
    grade: Grade,
    path: epath.PathLike,
    *,
    level: int = 0,
    on_verdict: Callable[[int, Verdict], None] | None = None,
) -> list[Verdict]:
    """The verdict of each program on the task of the same index. `path`: where verdicts are kept.

    Kept verdicts are used unless they were reached at a lower level of isolation than `level`. Verdicts that say
    nothing about the program (`infra`) are returned, not kept. `on_verdict(samples, verdict)` is called as verdicts
    become known, with the number of samples that it is the verdict of.
    """
    keys = [verdict_key(task, program) for task, program in zip(tasks, programs, strict=True)]
    where: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        where.setdefault(key, []).append(i)
    with Journal(path) as journal:
        kept = {row["key"]: verdict for row in journal.rows if (verdict := _from_row(row, path)).level >= level}
        found: dict[str, Verdict] = {}
        for key, samples in where.items():
            if key in kept:
                found[key] = kept[key]
                if on_verdict:
                    on_verdict(len(samples), kept[key])
        new = {key: samples for key, samples in where.items() if key not in found}
        graded = grade([tasks[s[0]] for s in new.values()], (programs[s[0]] for s in new.values()))
        for (key, samples), verdict in zip(new.items(), graded, strict=True):
            found[key] = verdict
            if verdict.valid:
                journal.append({"key": key, "task_id": tasks[samples[0]].task_id, **dataclasses.asdict(verdict)})
            if on_verdict:
                on_verdict(len(samples), verdict)
    return [found[key] for key in keys]


def verdict_key(task: Task, program: str) -> str:
    """Hash of all that the verdict depends on, but for the machine."""
    content = f"{JUDGING}\0{task.content_id}\0{program}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


_FIELDS = {field.name for field in dataclasses.fields(Verdict)}


def _from_row(row: dict[str, Any], path: epath.PathLike) -> Verdict:
    values = {name: value for name, value in row.items() if name in _FIELDS}
    if not isinstance(row.get("key"), str) or values.keys() != _FIELDS or values["status"] not in get_args(Status):
        raise InputError(f"{path}: a row that is no verdict ({str(row)[:100]}); remove the file to judge anew")
    return Verdict(**{**values, "flags": tuple(values["flags"])})


def grade_puzzles(tasks: Sequence[Task], programs: Iterable[str]) -> Iterator[Verdict]:
    """The judge of puzzles, for whole programs (it takes what follows the prompt) and batch by batch."""
    pairs = zip(tasks, programs, strict=True)
    while batch := list(itertools.islice(pairs, PUZZLE_BATCH)):
        without_prompt = [dataclasses.replace(task, prompt="") for task, _ in batch]
        yield from puzzle_grade.grade(without_prompt, [program for _, program in batch])
