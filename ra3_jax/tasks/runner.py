"""Runs untrusted programs in worker processes, many to a process, and says what each did.

`language` defines what a program may do and counts its steps, so that outcomes depend on the
program alone. The clock is a backstop: a program that the kernel had to stop is reported as
`timeout`, a worker that failed for any other reason as `infra`; neither is ever taken for a wrong
answer. A worker that a program ends loses only that program.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGPROF, SIGXCPU
from typing import Any, Literal, get_args

from ra3_jax.tasks.values import decode, encode
from ra3_jax.tasks.worker import READY

# No site packages; -P keeps the working directory off the import path.
WORKER = (sys.executable, "-s", "-S", "-P", "-B", "-m", "ra3_jax.tasks.worker")
# The order of a set of strings depends on the hash seed.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(Path(__file__).parents[2])}

ResultStatus = Literal["returned", "error", "limit"]
Status = Literal["ran", "syntax", "refused", "missing", "error", "limit", "timeout", "infra"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use. The first two are deterministic, the others a backstop."""

    steps: int = 10_000
    """Loop iterations, comprehension items and function calls of one call of the entry point."""
    items: int = 100_000
    """Length of a sequence that is made or copied by one operation."""
    memory_mb: int = 512
    """Address space of a worker."""
    cpu_s: float = 3.0
    """CPU seconds of one program over all its inputs."""
    wall_s: float = 60.0
    """Seconds of clock for starting a worker; each of its programs adds `cpu_s`."""
    workers: int = 1
    """Worker processes at the same time."""


DEFAULT_LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Job:
    """A program and the arguments of the calls to make."""

    source: str
    entry_point: str
    inputs: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one call did. `value` is a plain builtin value, None unless `returned`."""

    status: ResultStatus
    value: Any = None
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program did: `ran` with one result an input, or why it did not get as far."""

    status: Status
    detail: str = ""
    results: tuple[Result, ...] = ()


def run_programs(jobs: Sequence[Job], limits: Limits = DEFAULT_LIMITS) -> list[Outcome]:
    """The outcome of every job, in order.

    Raises values.NotPlain on inputs that cannot be passed, RuntimeError when no worker can start.
    """
    lines = [_job_line(job, limits) for job in jobs]
    size = max(1, -(-len(jobs) // limits.workers))
    starts = range(0, len(jobs), size)
    with ThreadPoolExecutor(limits.workers) as pool:
        parts = pool.map(lambda i: _run_chunk(jobs[i : i + size], lines[i : i + size], limits), starts)
        return [outcome for part in parts for outcome in part]


def _run_chunk(jobs: Sequence[Job], lines: Sequence[str], limits: Limits) -> list[Outcome]:
    """One worker for all. When it ends early: its program once more, alone; then the rest."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(jobs):
        outcomes += _run_worker(jobs[len(outcomes) :], lines[len(outcomes) :], limits)[0]
        if len(outcomes) < len(jobs):
            culprit = slice(len(outcomes), len(outcomes) + 1)
            alone, end = _run_worker(jobs[culprit], lines[culprit], limits)
            outcomes += alone or [end]
    return outcomes


def _run_worker(jobs: Sequence[Job], lines: Sequence[str], limits: Limits) -> tuple[list[Outcome], Outcome]:
    """What one worker wrote before it ended, and what its end means for the program it was on."""
    with (
        tempfile.TemporaryDirectory() as cwd,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as log,
    ):
        given.write("".join(lines).encode())
        given.seek(0)
        process = subprocess.Popen(
            [*WORKER, str(out.fileno()), str(limits.cpu_s), str(limits.memory_mb)],
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=ENVIRONMENT,
            cwd=cwd,
            pass_fds=(out.fileno(),),
            start_new_session=True,
        )
        try:
            code = process.wait(limits.wall_s + limits.cpu_s * len(jobs))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        log.seek(0)
        ready, *written = out.read().decode().split("\n")
        if ready + "\n" != READY:
            tail = log.read()[-500:].decode(errors="replace")
            raise RuntimeError(f"worker did not start (exit code {code}): {tail}")
    # What stands after the last newline was cut off.
    done = [_outcome(job, line) for job, line in zip(jobs, written[:-1], strict=False)]
    return done, _end(code, limits)


def _end(code: int | None, limits: Limits) -> Outcome:
    """`code`: how the worker ended, None when the runner had to kill it."""
    if code in (-SIGPROF, -SIGXCPU):
        return Outcome("timeout", f"more than {limits.cpu_s:g} s of CPU")
    how = "no end within the wall limit" if code is None else f"worker ended with code {code}"
    return Outcome("infra", how)


def _job_line(job: Job, limits: Limits) -> str:
    inputs = [encode(tuple(args)) for args in job.inputs]
    row = {"source": job.source, "entry_point": job.entry_point, "inputs": inputs}
    return json.dumps({**row, "steps": limits.steps, "items": limits.items}) + "\n"


def _outcome(job: Job, line: str) -> Outcome:
    """Reads one line of a worker; anything malformed is `infra`."""
    try:
        row = json.loads(line)
        status, results = row["status"], [_result(*entry) for entry in row["results"]]
        if status not in get_args(Status) or (status == "ran") != (len(results) == len(job.inputs)):
            raise ValueError(f"{status!r}, {len(results)} results of {len(job.inputs)}")
        return Outcome(status, str(row["detail"]), tuple(results))
    except (ValueError, TypeError, KeyError) as error:
        return Outcome("infra", f"unreadable reply of the worker: {error}")


def _result(status: Any, value: Any) -> Result:
    if status not in get_args(ResultStatus):
        raise ValueError(f"result status {status!r}")
    if status == "returned":
        return Result(status, decode(value))
    return Result(status, None, str(value))
