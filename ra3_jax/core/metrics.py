"""metrics.jsonl: lines of {"step", "phase", "time", name: value, ...}; other sinks on demand."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from ra3_jax.core.paths import is_remote
from ra3_jax.core.rundir import RunDirError, is_main_process, write_atomic

Value = float | int | bool | str


class Sink(Protocol):
    """Another place that metrics go to."""

    def write(self, step: int, values: Mapping[str, Value]) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Appends to metrics.jsonl and copies to the sinks. `step` counts the run and never goes back.

    `resume_step`: the step a run goes on from; later lines, written before the interruption, are
    dropped so that curves have no duplicates (None: a fresh run, all old lines are dropped). NaN
    and infinite values are written as null. A full disk raises RunDirError. An object store cannot
    append: there the whole file is written again, at most every `REMOTE_SECONDS`. In a run of
    several processes only process 0 writes, so only it needs sinks.
    """

    REMOTE_SECONDS = 30.0

    def __init__(self, path: epath.PathLike, *, resume_step: int | None = None, sinks: Sequence[Sink] = ()):
        self._path = epath.Path(path)
        self._sinks = tuple(sinks)
        self._remote = is_remote(path)
        self._written = 0.0
        self._file = None
        if not is_main_process():
            return
        kept = [] if resume_step is None else lines_until(self._path, resume_step)
        self._lines = kept if self._remote else []
        write_atomic(self._path, "".join(kept))
        if not self._remote:
            self._file = open(self._path, "a", encoding="utf-8")

    def write(self, step: int, phase: str, values: Mapping[str, Any]) -> None:
        """One line. Values: numbers (numpy and 0-d arrays too), bools, strings."""
        if not is_main_process():
            return
        plain = {name: to_value(name, value) for name, value in values.items()}
        record = {"step": int(step), "phase": phase, "time": round(time.time(), 3)}
        if clash := record.keys() & plain.keys():
            raise ValueError(f"metric names {sorted(clash)} are taken by the line's own fields")
        record |= {k: _finite(v) for k, v in plain.items()}
        line = json.dumps(record, allow_nan=False) + "\n"
        if self._file is not None:
            try:
                self._file.write(line)
                self._file.flush()
            except OSError as error:
                raise RunDirError(f"cannot write {self._path}: {error}") from error
        else:
            self._lines.append(line)
            if time.monotonic() - self._written > self.REMOTE_SECONDS:
                self._write_remote()
        for sink in self._sinks:
            sink.write(step, plain)

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
        elif is_main_process():
            self._write_remote()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_remote(self) -> None:
        write_atomic(self._path, "".join(self._lines))
        self._written = time.monotonic()


def lines_until(path: epath.PathLike, step: int) -> list[str]:
    """The lines of a metrics file up to a step; a last line cut short by a kill is dropped."""
    path = epath.Path(path)
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [line for line, record in zip(lines, _parse(path, lines), strict=True) if record["step"] <= step]


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """All complete lines of a metrics file."""
    path = epath.Path(path)
    return _parse(path, [x for x in path.read_text().splitlines(keepends=True) if x.endswith("\n")])


def _parse(path: epath.Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a JSON line: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}:{number}: a metrics line needs an integer step: {line.strip()[:80]}")
        records.append(record)
    return records


def to_value(name: str, value: Any) -> Value:
    """A plain number, bool or string. Raises TypeError naming the metric."""
    if isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"metric {name}: {type(value).__name__} is neither a number nor a string")


def _finite(value: Value) -> Value | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class TensorBoardSink:
    """Event files in a directory. Raises ImportError naming the extra without tensorboardX."""

    def __init__(self, directory: epath.PathLike):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("TensorBoard output needs tensorboardX: pip install 'ra3-jax[tensorboard]'") from error
        self._writer = SummaryWriter(os.fspath(directory))

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A Weights & Biases run. Raises ImportError naming the extra when wandb is missing.

    `run_id` (any stable name of the run directory) makes a resumed job go on in the same W&B run.
    """

    def __init__(self, project: str, run_id: str, config: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("W&B output needs wandb: pip install 'ra3-jax[wandb]'") from error
        self._run = wandb.init(project=project, id=run_id, config=dict(config), resume="allow")

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
