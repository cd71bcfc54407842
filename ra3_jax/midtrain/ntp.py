"""The baseline: plain next-token training on the same expert programs, at several budgets and learning rates."""

import dataclasses
from collections.abc import Callable, Sequence

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.console import Progress as Bar
from ra3_jax.core.metrics import MetricsWriter
from ra3_jax.core.rundir import RunDir
from ra3_jax.data.trace import PackedRows, Program, plain
from ra3_jax.midtrain.em import Bench, Compute, Params
from ra3_jax.midtrain.mstep import mstep_rows, trained_tokens
from ra3_jax.train.loop import Progress, Stopped
from ra3_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class NTPRun:
    """One baseline training."""

    name: str  # of its directory below the run's
    n_steps: int
    learning_rate: float


def plain_rows(programs: Sequence[Program], length: int) -> PackedRows:
    """The expert programs without thoughts, packed."""
    return mstep_rows([plain(p) for p in programs], length)[0]


def steps_for(rows: PackedRows, batch_size: int, compute: Compute) -> int:
    """Updates that cost as much as `compute`, at three units a trained token."""
    per_step = 3 * batch_size * rows.tokens_RT.shape[1] * rows.fill
    return max(1, round(compute.units / per_step))


def train_ntp(
    bench: Bench,
    base: Params,
    rows: PackedRows,
    job: NTPRun,
    run: RunDir,
    *,
    start: int | None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Params, Compute]:
    """Trains (or goes on training) one baseline below `run`. Returns its weights and what it cost.

    `start`: the step to restore, None to begin at the base. Raises Stopped, with all saved, when `should_stop()`.
    """
    trainer, trainable = bench.trainer, bench.trainer.trainable
    checkpoints = Checkpoints(run.checkpoints, keep=1)
    progress = Progress()
    if start is None:
        state, frozen = trainable.start(base, bench.host_seed(0, "ntp adapters")), trainable.frozen(base)
    else:
        state, frozen, _, meta = trainable.restore(checkpoints, start)
        progress = Progress(**meta["progress"])
    with (
        MetricsWriter(run.metrics, resume_step=start) as metrics,
        Bar(job.name, job.n_steps, start=progress.step) as bar,
    ):

        def on_step(done: Progress, values: dict[str, float]) -> None:
            bar.update(done.step, loss=values["loss"])

        def on_log(done: Progress, values: dict[str, float]) -> None:
            metrics.write(done.step, "ntp", values)

        def on_checkpoint(state: TrainState, done: Progress) -> None:
            checkpoints.save(done.step, trainable.tree(state, frozen), {"progress": dataclasses.asdict(done)})

        state, progress = trainer.run(
            state, rows, frozen, seed=bench.host_seed(0, "ntp"), n_steps=job.n_steps, learning_rate=job.learning_rate,
            progress=progress, on_step=on_step, on_log=on_log, on_checkpoint=on_checkpoint, should_stop=should_stop,
        )  # fmt: skip
    checkpoints.close()
    if progress.step < job.n_steps:
        raise Stopped(f"stopped after {progress.step} of {job.n_steps} updates of {job.name}")
    spent = trained_tokens(rows, job.n_steps, trainer.config.loop.batch_size)
    return trainable.plain(state.params, frozen), Compute(trained=spent)
