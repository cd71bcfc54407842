"""The training loop: keeps the device busy, counts rows, reports, saves, resumes exactly.

The device runs update n while the host builds batch n + 1 and reads the metrics of update n - 1;
nothing else waits for the device. A batch is a function of the data position (rows consumed so
far), so a run that is interrupted and resumed from (state, Progress) sees what an undisturbed run
sees, bit for bit.
"""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ra3_jax.core import watchdog
from ra3_jax.core.mesh import to_host
from ra3_jax.train.optimizer import Schedule
from ra3_jax.train.state import TrainState
from ra3_jax.train.step import Batch, StepFn, compile_count, frozen_args, put_batch, put_scalar


class NonFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite; the update was not applied."""


class Stopped(RuntimeError):
    """A signal asked the run to end. What it has done is saved; the same command goes on from there."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is; plain ints, stored with every checkpoint."""

    step: int = 0
    """Updates done."""
    position: int = 0
    """Rows consumed: where the data stream goes on."""
    nonfinite: int = 0
    """Updates skipped because of a NaN or infinite gradient."""


Report = Callable[[Progress, dict[str, float]], None]


def train(
    step_fn: StepFn,
    state: TrainState,
    next_batch: Callable[[int], Batch],
    schedule: Schedule,
    n_steps: int,
    *,
    mesh: Mesh,
    batch_size: int,
    frozen: Any = None,
    progress: Progress = Progress(),
    log_every: int = 10,
    checkpoint_every: int = 0,
    nonfinite: str = "stop",
    count_tokens: Callable[[Batch], int] | None = None,
    on_step: Report | None = None,
    on_log: Report | None = None,
    on_checkpoint: Callable[[TrainState, Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[TrainState, Progress]:
    """Does updates `progress.step` to `n_steps - 1`; returns the last state and where it stands.

    `state` is consumed (donated). `next_batch(position)` returns host arrays, `schedule(step)` the
    learning rate; `frozen` are weights that the step takes and does not train; `count_tokens(batch)` makes
    `perf/tokens_per_s`. Callbacks run on the host:

    - `on_step(progress, metrics)` once for every update, in order, read one update late;
    - `on_log` the same every `log_every` updates and after the last, with the learning rate and
      `perf/*` over the updates since;
    - `on_checkpoint(state, progress)` every `checkpoint_every` updates (0: never) and at the end,
      after all reports up to `progress`. It must be done reading `state` when it returns: the next
      update overwrites it.

    `should_stop()` is asked before each update; when true the loop saves and returns early.
    `nonfinite` "stop" raises NonFiniteError, "skip" counts; neither applies the bad update.
    """
    if progress.step >= n_steps:
        return state, progress
    reports = _Reports(
        compiles=lambda: compile_count(step_fn),
        due=lambda step: step % log_every == 0 or step == n_steps,
        stop_on_nonfinite=nonfinite == "stop",
        on_step=on_step,
        on_log=on_log,
        bad=progress.nonfinite,
    )
    saved = progress.step
    host_batch = next_batch(progress.position)
    while progress.step < n_steps and not (should_stop and should_stop()):
        lr = schedule(progress.step)
        tokens = count_tokens(host_batch) if count_tokens else 0
        batch, lr_device = put_batch(host_batch, mesh), put_scalar(lr, mesh)
        with jax.transfer_guard("disallow"):  # a hidden copy would make host and device take turns
            state, metrics = step_fn(state, batch, lr_device, *frozen_args(frozen))
        progress = Progress(progress.step + 1, progress.position + batch_size)
        if progress.step < n_steps:
            host_batch = next_batch(progress.position)
        reports.settle()
        reports.pending = _Update(progress, metrics, lr, tokens)
        if on_checkpoint and checkpoint_every and progress.step % checkpoint_every == 0:
            reports.settle()
            saved = progress.step
            on_checkpoint(state, dataclasses.replace(progress, nonfinite=reports.bad))
    reports.settle()
    progress = dataclasses.replace(progress, nonfinite=reports.bad)
    if on_checkpoint and saved != progress.step:
        on_checkpoint(state, progress)
    return state, progress


@dataclasses.dataclass(frozen=True)
class _Update:
    """An update that the device may still be computing."""

    progress: Progress
    metrics: dict[str, jax.Array]
    lr: float
    tokens: int


@dataclasses.dataclass
class _Reports:
    """Waits for the pending update and hands its metrics to the callbacks; measures speed."""

    compiles: Callable[[], int]
    due: Callable[[int], bool]
    stop_on_nonfinite: bool
    on_step: Report | None
    on_log: Report | None
    bad: int
    """Updates skipped so far."""
    pending: _Update | None = None
    # The clock starts after the first update, so that compilation is not averaged in.
    _start: float | None = None
    _steps: int = 0
    _tokens: int = 0

    def settle(self) -> None:
        """Reports the pending update, if there is one."""
        update, self.pending = self.pending, None
        if update is None:
            return
        values = {k: float(v) for k, v in to_host(update.metrics).items()}
        self.bad += int(values["nonfinite"])
        reached = dataclasses.replace(update.progress, nonfinite=self.bad)
        if self._start is None:
            self._start = time.perf_counter()
        else:
            self._steps += 1
            self._tokens += update.tokens
        if self.on_step:
            self.on_step(reached, values)
        if self.on_log and self.due(reached.step):
            self.on_log(reached, values | {"lr": update.lr} | self._speed())
        if values["nonfinite"] and self.stop_on_nonfinite:
            raise NonFiniteError(
                f"update {reached.step} (rows up to {reached.position}): loss {values['loss']}, "
                f"gradient norm {values['grad_norm']}; the update was not applied"
            )

    def _speed(self) -> dict[str, float]:
        """perf/* over the updates since the last call."""
        out = {"perf/compiles": float(self.compiles())}
        now = time.perf_counter()
        if self._steps and self._start is not None:
            seconds = now - self._start
            out["perf/step_s"] = seconds / self._steps
            if self._tokens:
                out["perf/tokens_per_s"] = self._tokens / seconds
        self._start, self._steps, self._tokens = now, 0, 0
        return out


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """`with stop_on_signal() as should_stop`: Ctrl-C or SIGTERM (the notice of a preemption) asks to save and return.

    A second signal does what it did before (Ctrl-C interrupts at once). With several processes SIGTERM to any of them
    stops all, at the same call: each must ask equally often. Outside the main thread signals are left alone.
    """
    if jax.process_count() > 1:
        yield _AgreedStop()
        return
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        restore()

    def should_stop() -> bool:
        watchdog.beat()
        return asked

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {s: signal.signal(s, ask) for s in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield should_stop
    finally:
        restore()


class _AgreedStop:
    """Asks JAX's preemption service, which takes SIGTERM and picks a call that no process has made yet."""

    def __init__(self):
        self._calls, self._reached = 0, False

    def __call__(self) -> bool:
        watchdog.beat()
        self._calls += 1
        self._reached = self._reached or multihost_utils.reached_preemption_sync_point(self._calls)
        return self._reached
