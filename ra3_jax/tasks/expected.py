"""Expected outputs of EvalPlus tasks: what the reference program answers in the sandbox, found once and kept on disk.

One file a task, named by a hash of all that the outputs depend on. Its lines: a header, one line an output, and a hash
of all of it, so that a damaged file is noticed and made anew. A line is `CPU-seconds v VALUE` (wire.encode) or
`CPU-seconds d DIGEST`: the outputs of MBPP+ are 1.4 GB, nearly all of it in a few giants, and a digest tells as much as
long as equality is what counts. Where a tolerance applies, outputs are kept whole. The largest file has 4 MB, and only
a few tasks are in memory at a time.

The normal form of a digest (1 equals 1.0) takes longer than the giants themselves and is rarely needed: `Unresolved` is
raised where it is, and `Store.resolve` finds it.
"""

import collections
import dataclasses
import hashlib
import json
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.core.paths import local_cache_dir, local_path
from ra3_jax.sandbox.job import Answer, Call, Job, Limits, Outcome
from ra3_jax.sandbox.wire import Digest, Malformed, decode, encode
from ra3_jax.tasks.compare import IS_FLOATS, needs_values, reference_view, view
from ra3_jax.tasks.task import OracleTests, Task

FORMAT = 1  # of the files; part of their names
LIMITS = Limits(cpu_s=120.0, total_cpu_s=600.0, memory_mb=4096)  # of reference programs
KEPT = 8  # tasks in memory

Which = Literal["base", "plus"]


@dataclasses.dataclass(frozen=True)
class Part:
    """Expected outputs of the base inputs, or of the plus inputs."""

    lines: tuple[str, ...]  # encoded; decoded one at a time
    cpu_s: tuple[float, ...]  # of the reference, by input

    def value(self, i: int) -> Any:
        """A plain value, or a Digest whose normal form may raise Unresolved."""
        kind, text = self.lines[i][:1], self.lines[i][2:]
        if kind == "v":
            return decode(text)
        blob, normal, type_name, length = decode(text)
        return Digest(blob, normal or _unresolved, type_name, length)


@dataclasses.dataclass(frozen=True)
class Expected:
    base: Part
    plus: Part
    whole: bool  # answers have to be compared as values, not as digests


def _unresolved() -> str:
    raise Unresolved


class Unresolved(Exception):
    """Whether an answer equals a large expected output takes the normal form of that, which nobody asked for so far."""


class Store:
    """The cache on a local disk. `folder` None: `expected` in core.paths.local_cache_dir()."""

    def __init__(self, folder: epath.PathLike | None = None):
        self.folder = local_cache_dir() / "expected" if folder is None else local_path(folder, "cache")
        self._kept: collections.OrderedDict[str, Expected] = collections.OrderedDict()

    def path(self, task: Task) -> Path:
        """By content: reference program, inputs, tolerance, rules of its dataset, format, version of Python."""
        content = f"{FORMAT} {platform.python_version()} {task.content_id}"
        key = hashlib.sha256(content.encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', task.task_id)[:40]}-{key[:32]}.txt"

    def load(self, task: Task) -> Expected | None:
        """None when it has yet to be computed. A damaged file counts as none, with a warning."""
        if task.content_id in self._kept:
            self._kept.move_to_end(task.content_id)
            return self._kept[task.content_id]
        path = self.path(task)
        try:
            expected = _read(path, *_sizes(_oracle(task)))
        except FileNotFoundError:
            return None
        except (Malformed, OSError) as error:
            warnings.warn(f"{path}: damaged ({error}); computed anew", stacklevel=2)
            return None
        self._keep(task, expected)
        return expected

    def compute(self, task: Task) -> Generator[Job, Outcome, Expected]:
        """Runs the reference program: yields jobs, is sent their outcomes; writes the file.

        Raises InputError when the reference fails, or the file cannot be written; RuntimeError when the sandbox fails.
        """
        whole = needs_values(_oracle(task))
        base = yield from _answers(task, "base", whole)
        plus = yield from _answers(task, "plus", whole)
        if not whole and (yield from _large_floats(task, base, plus)):
            whole = True
            base = yield from _answers(task, "base", whole)
            plus = yield from _answers(task, "plus", whole)
        return self._save(task, Expected(_part(base), _part(plus), whole))

    def resolve(self, task: Task) -> Generator[Job, Outcome, Expected]:
        """Finds the normal forms of all digests of a task, as `compute` finds its outputs."""
        expected = self.load(task) or (yield from self.compute(task))
        base = yield from _resolved(task, "base", expected.base)
        plus = yield from _resolved(task, "plus", expected.plus)
        return self._save(task, Expected(base, plus, expected.whole))

    def _save(self, task: Task, expected: Expected) -> Expected:
        _write(self.path(task), expected, {"task": task.task_id, "function": _oracle(task).entry_point})
        self._keep(task, expected)
        return expected

    def _keep(self, task: Task, expected: Expected) -> None:
        self._kept[task.content_id] = expected
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _oracle(task: Task) -> OracleTests:
    if not isinstance(task.tests, OracleTests):
        raise TypeError(f"task {task.task_id} has {type(task.tests).__name__}, which hold their expected outputs")
    return task.tests


def _sizes(tests: OracleTests) -> tuple[int, int]:
    return len(tests.base), len(tests.plus)


def inputs(tests: OracleTests, which: Which) -> tuple[tuple[Any, ...], ...]:
    return tests.base if which == "base" else tests.plus


# Running the reference


def _answers(task: Task, which: Which, whole: bool) -> Generator[Job, Outcome, list[Answer]]:
    """One process for each part, as for the programs that are judged."""
    tests = _oracle(task)
    program, name = reference_view(tests)
    return (yield from _run(task, f"{which} inputs", program, name, inputs(tests, which), whole))


def _resolved(task: Task, which: Which, part: Part) -> Generator[Job, Outcome, Part]:
    tests, lines = _oracle(task), list(part.lines)
    digests = [i for i, line in enumerate(lines) if line.startswith("d ")]
    arguments = [inputs(tests, which)[i] for i in digests]
    program, name = reference_view(tests)
    answers = yield from _run(task, f"large {which} inputs", program, name, arguments, whole=False, resolved=True)
    for i, answer in zip(digests, answers, strict=True):
        lines[i] = _line(answer.value, resolved=True)
    return Part(tuple(lines), part.cpu_s)


def _run(
    task: Task,
    label: str,
    program: str,
    name: str,
    arguments: Sequence[tuple[Any, ...]],
    whole: bool,
    resolved: bool = False,
) -> Generator[Job, Outcome, list[Answer]]:
    if not arguments:
        return []
    calls = tuple(Call(name, args) for args in arguments)
    accept = None if resolved else lambda i, answer: answer.status == "ok"  # a job without it resolves all its digests
    outcome = yield Job(program, calls=calls, accept=accept, limits=LIMITS, whole=whole)
    if outcome.status == "infra":
        raise RuntimeError(f"the sandbox failed on the reference program of {task.task_id}: {outcome.detail}")
    if outcome.status != "ok" or len(outcome.answers) != len(arguments):
        raise InputError(
            f"{task.source}, {task.task_id}: the reference program fails on number {max(0, len(outcome.answers) - 1)} "
            f"of the {label}: found {outcome.status} ({outcome.detail}), expected an answer"
        )
    return list(outcome.answers)


def _large_floats(task: Task, base: list[Answer], plus: list[Answer]) -> Generator[Job, Outcome, bool]:
    """Is one of the outputs that came as digests made of floats alone, so that a tolerance applies to it?"""
    tests = _oracle(task)
    pairs = [*zip(tests.base, base, strict=True), *zip(tests.plus, plus, strict=True)]
    large = [args for args, a in pairs if isinstance(a.value, Digest) and a.value.type in ("list", "tuple")]
    program, name = view(tests, tests.reference, IS_FLOATS)
    found = yield from _run(task, "inputs with large outputs", program, name, large, whole=False)
    return any(answer.value is True for answer in found)


# The files


def _part(answers: list[Answer]) -> Part:
    return Part(tuple(_line(answer.value) for answer in answers), tuple(round(answer.cpu_s, 4) for answer in answers))


def _line(value: Any, resolved: bool = False) -> str:
    if isinstance(value, Digest):
        return f"d {encode([value.blob, value.normal if resolved else '', value.type, value.length])}"
    return f"v {encode(value)}"


def _write(path: Path, expected: Expected, about: dict[str, Any]) -> None:
    header = {"format": FORMAT, **about, "base": len(expected.base.lines), "plus": len(expected.plus.lines)}
    rows = [json.dumps(header | {"whole": expected.whole})]
    for part in (expected.base, expected.plus):
        rows += [f"{cpu_s} {line}" for cpu_s, line in zip(part.cpu_s, part.lines, strict=True)]
    content = "".join(f"{row}\n" for row in rows).encode()
    content += f"sha256 {hashlib.sha256(content).hexdigest()}\n".encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")  # of its own: others may compute it too
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot write expected outputs ({error}); set RA3_CACHE to another folder") from error


def _read(path: Path, n_base: int, n_plus: int) -> Expected:
    """Raises FileNotFoundError, OSError, Malformed."""
    hasher, rows = hashlib.sha256(), []
    with open(path, "rb") as file:
        for row in file:
            if row.startswith(b"sha256 "):
                break
            hasher.update(row)
            rows.append(row)
        else:
            row = b""
    if row != f"sha256 {hasher.hexdigest()}\n".encode():
        raise Malformed("its hash does not match")
    header = json.loads(rows[0])
    if len(rows) != 1 + n_base + n_plus:
        raise Malformed(f"{len(rows) - 1} outputs, expected {n_base + n_plus}")
    pairs = [row.decode().rstrip("\n").split(" ", 1) for row in rows[1:]]
    base, plus = pairs[:n_base], pairs[n_base:]
    return Expected(_from_pairs(base), _from_pairs(plus), header["whole"])


def _from_pairs(pairs: list[list[str]]) -> Part:
    return Part(tuple(line for _, line in pairs), tuple(float(cpu_s) for cpu_s, _ in pairs))
