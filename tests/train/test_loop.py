import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.train.config import OptimizerConfig
from ra3_jax.train.loop import NonFiniteError, Progress, stop_on_signal, train
from ra3_jax.train.optimizer import make_optimizer, make_schedule
from ra3_jax.train.state import abstract_state, state_from_params, state_shardings
from ra3_jax.train.step import make_train_step
from tests.train import toy

CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
ROWS, STEPS = 4, 9


class Setup:
    """A compiled step and everything that makes a state for it."""

    def __init__(self, mesh):
        self.mesh, self.tx = mesh, make_optimizer(CONFIG)
        self.params = jax.device_get(jax.jit(toy.init_params)(jax.random.key(0)))
        self.shardings = state_shardings(self.params, self.tx, toy.param_shardings(mesh), mesh)
        self.step = make_train_step(toy.loss_fn, self.tx, mesh, self.shardings)

    def state(self):
        return state_from_params(self.params, self.tx, self.shardings)

    def train(self, state, n_steps=STEPS, next_batch=lambda p: toy.make_batch(p, ROWS), **kwargs):
        schedule = make_schedule(CONFIG, STEPS)
        return train(
            self.step,
            state,
            next_batch,
            schedule,
            n_steps,
            mesh=self.mesh,
            batch_size=ROWS,
            **kwargs,
        )


@pytest.fixture(scope="module")
def setup():
    return Setup(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_resumed_run_is_bitwise_the_undisturbed_one(setup, tmp_path):
    whole_log, log = [], []
    whole, end = setup.train(setup.state(), log_every=1, on_log=lambda p, m: whole_log.append((p, m)))
    assert end == Progress(step=STEPS, position=STEPS * ROWS)

    checkpoints = Checkpoints(tmp_path)

    def save(state, progress):
        checkpoints.save(progress.step, state, dataclasses.asdict(progress))

    def die(position):
        if position == 7 * ROWS:
            raise KeyboardInterrupt
        return toy.make_batch(position, ROWS)

    with pytest.raises(KeyboardInterrupt):
        setup.train(setup.state(), next_batch=die, checkpoint_every=5, on_checkpoint=save)
    checkpoints.close()

    abstract = abstract_state(setup.params, setup.tx, setup.shardings)
    state, meta = Checkpoints(tmp_path).restore(abstract)
    assert meta == {"step": 5, "position": 5 * ROWS, "nonfinite": 0}
    resumed, end = setup.train(state, progress=Progress(**meta), log_every=1, on_log=lambda p, m: log.append((p, m)))
    assert end == Progress(step=STEPS, position=STEPS * ROWS)
    assert_same(resumed, whole)

    def without_speed(log):
        return [(p, {k: v for k, v in m.items() if "perf" not in k}) for p, m in log]

    assert without_speed(log) == without_speed(whole_log[5:])


def test_state_of_an_async_save_is_not_overwritten_by_the_next_update(setup, tmp_path):
    """The step donates the buffers that the writer thread may still be reading."""
    seen = {}
    checkpoints = Checkpoints(tmp_path, keep=None)

    def save(state, progress):
        seen[progress.step] = jax.tree.map(np.array, state)  # shares no memory with the device
        checkpoints.save(progress.step, state, {})

    setup.train(setup.state(), checkpoint_every=1, on_checkpoint=save)
    checkpoints.wait()
    abstract = abstract_state(setup.params, setup.tx, setup.shardings)
    assert sorted(seen) == checkpoints.steps() == list(range(1, STEPS + 1))
    for step in (1, 4, STEPS):
        assert_same(checkpoints.restore(abstract, step)[0], seen[step])


def test_callbacks_come_in_order_and_once(setup):
    events = []
    setup.train(
        setup.state(),
        log_every=4,
        checkpoint_every=4,
        on_step=lambda p, m: events.append(("step", p.step)),
        on_log=lambda p, m: events.append(("log", p.step)),
        on_checkpoint=lambda s, p: events.append(("save", p.step)),
    )
    expected = []
    for i in range(1, STEPS + 1):
        expected += [("step", i)]
        expected += [("log", i)] if i in (4, 8, STEPS) else []
        expected += [("save", i)] if i in (4, 8, STEPS) else []
    assert events == expected


def test_metrics_are_read_one_update_late(setup):
    """Update n is dispatched, and batch n + 1 built, before anyone waits for update n - 1."""
    events = []

    def next_batch(position):
        events.append(f"batch {position // ROWS + 1}")
        return toy.make_batch(position, ROWS)

    def step(state, batch, lr):
        events.append("dispatch")
        return setup.step(state, batch, lr)

    step._cache_size = setup.step._cache_size
    train(
        step,
        setup.state(),
        next_batch,
        make_schedule(CONFIG, STEPS),
        3,
        mesh=setup.mesh,
        batch_size=ROWS,
        on_step=lambda p, m: events.append(f"metrics {p.step}"),
    )
    assert events == [
        "batch 1",
        *("dispatch", "batch 2"),
        *("dispatch", "batch 3", "metrics 1"),
        *("dispatch", "metrics 2"),
        "metrics 3",
    ]


def test_log_holds_means_speed_and_one_compile(setup):
    log = {}
    setup.train(
        setup.state(),
        log_every=3,
        count_tokens=lambda batch: batch["x_BD"].size,
        on_log=lambda p, m: log.update({p.step: m}),
    )
    assert sorted(log) == [3, 6, 9]
    schedule = make_schedule(CONFIG, STEPS)
    for step, metrics in log.items():
        assert metrics["lr"] == schedule(step - 1)
        assert metrics["perf/compiles"] == 1
        assert metrics["perf/tokens_per_s"] * metrics["perf/step_s"] == pytest.approx(ROWS * toy.D)
        assert metrics["loss"] == metrics["error"] and metrics["grad_norm"] > 0
    assert log[9]["loss"] < log[3]["loss"]


def bad_batch(position):
    batch = toy.make_batch(position, ROWS)
    if position == 3 * ROWS:
        batch["x_BD"][0, 0] = np.nan
    return batch


def test_nonfinite_stops_before_anything_is_damaged(setup):
    with pytest.raises(NonFiniteError, match=r"update 4 \(rows up to 16\): loss nan.*not applied"):
        setup.train(setup.state(), next_batch=bad_batch)


def test_nonfinite_can_be_skipped_and_is_counted(setup):
    steps, saved = [], []
    state, end = setup.train(
        setup.state(),
        next_batch=bad_batch,
        nonfinite="skip",
        checkpoint_every=4,
        on_step=lambda p, m: steps.append((p.nonfinite, m["nonfinite"])),
        on_checkpoint=lambda s, p: saved.append((p.step, p.nonfinite)),
    )
    assert end.nonfinite == 1
    assert steps == [(0, 0.0)] * 3 + [(1, 1.0)] + [(1, 0.0)] * 5
    assert saved == [(4, 1), (8, 1), (STEPS, 1)]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))


def test_stop_request_saves_and_returns(setup):
    done, saved = [], []
    _, end = setup.train(
        setup.state(),
        on_step=lambda p, m: done.append(p.step),
        on_checkpoint=lambda s, p: saved.append(p.step),
        should_stop=lambda: len(done) >= 3,
    )
    assert end.step == saved[0] == done[-1] < STEPS and len(saved) == 1


def test_signal_asks_once_then_acts(setup):
    """The first Ctrl-C stops the loop after an update; the handlers are back afterwards."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        done = []

        def on_step(progress, metrics, number=number, done=done):
            done.append(progress.step)
            if progress.step == 3:
                os.kill(os.getpid(), number)

        with stop_on_signal() as should_stop:
            _, end = setup.train(setup.state(), on_step=on_step, should_stop=should_stop)
            assert signal.getsignal(signal.SIGINT) == before[0]
        assert 3 <= end.step < STEPS and done[-1] == end.step
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_nothing_left_to_do_returns_at_once(setup):
    state = setup.state()
    same, end = setup.train(state, progress=Progress(step=STEPS, position=STEPS * ROWS))
    assert same is state and end.step == STEPS
