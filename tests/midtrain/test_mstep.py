"""The M-step: it goes on exactly where it stopped, and it learns what its weights say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.data.trace import Kind, annotate, plain
from ra3_jax.midtrain.config import MStepConfig
from ra3_jax.midtrain.mstep import NextTokenTrainer, mstep_rows, trained_tokens
from ra3_jax.train.config import LoopConfig, OptimizerConfig
from ra3_jax.train.loop import Progress
from tests.policy import world
from tests.policy.world import MARK, MODEL, NEWLINE, THREE, TWO, quick_compile

__all__ = ["quick_compile"]

CONFIG = MStepConfig(
    epochs=3,
    loop=LoopConfig(batch_size=2, accumulate=2, checkpoint_every=3, log_every=2),
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2),
)
TRACES = [
    annotate(program, latents, mark_id=MARK, newline_id=NEWLINE)
    for program, max_new, step in ((TWO, 2, 61), (THREE, 1, 31))
    for latents in world.every_latent(program, max_new)[::step]
]
ROWS, _ = mstep_rows(TRACES, 48)


def trainer(config: MStepConfig = CONFIG) -> NextTokenTrainer:
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return NextTokenTrainer.create(MODEL, mesh, config)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_interrupted_run_goes_on_bit_for_bit():
    of = trainer()
    steps: list[tuple[int, float]] = []
    saved = {}

    def on_checkpoint(state, progress):
        saved[progress.step] = jax.tree.map(np.array, state), progress

    whole, done = of.run(
        of.trainable.start(world.params(0)), ROWS, seed=4, n_steps=7,
        on_step=lambda progress, values: steps.append((progress.step, values["loss"])), on_checkpoint=on_checkpoint,
    )  # fmt: skip
    assert done == Progress(step=7, position=14)
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(saved) == [3, 6, 7]
    state, progress = saved[3]
    later: list[tuple[int, float]] = []
    resumed, done = of.run(
        jax.device_put(state, of.trainable.shardings), ROWS, seed=4, n_steps=7, progress=progress,
        on_step=lambda progress, values: later.append((progress.step, values["loss"])),
    )  # fmt: skip
    assert done == Progress(step=7, position=14)
    same(resumed, whole)
    assert later == steps[3:]
    assert not np.array_equal(np.asarray(whole.params["embed"]), np.asarray(world.params(0)["embed"]))


def test_seed_and_learning_rate_matter():
    of = trainer()

    def run(**options):
        rates: list[float] = []
        state, _ = of.run(
            of.trainable.start(world.params(0)), ROWS, **{"seed": 4, "n_steps": 4, **options},
            on_log=lambda progress, values: rates.append(values["lr"]),
        )  # fmt: skip
        return np.asarray(state.params["embed"]), rates

    embed, rates = run()
    assert rates == pytest.approx([0.01, 0.001])  # after updates 2 (the peak) and 4 (the end)
    assert np.array_equal(run()[0], embed)
    assert not np.array_equal(run(seed=5)[0], embed)
    hotter, rates = run(learning_rate=0.02)
    assert rates == pytest.approx([0.02, 0.002]) and not np.array_equal(hotter, embed)
    _, rates = run(n_steps=1)  # shorter than the warmup
    assert rates == [0.01]


def test_n_steps_counts_epochs():
    of = trainer()
    n = len(ROWS)
    assert of.n_steps(ROWS) == round(3 * n / 2)
    assert of.n_steps(ROWS, 10) == 5 * n
    assert of.n_steps(ROWS, 0.01) == 1


def test_start_copies():
    of = trainer()
    mine = jax.tree.map(jnp.copy, world.params(0))
    before = jax.tree.map(np.array, mine)
    state = of.trainable.start(mine)
    state, _ = of.run(state, ROWS, seed=0, n_steps=1)
    same(mine, before)
    assert int(state.step) == 1


def test_weights_say_what_is_learned():
    """With weight on the thoughts alone, the code does not count: the loss is the mean NLL of the latents."""
    config = dataclasses.replace(CONFIG, code_weight=0.0, loop=LoopConfig(batch_size=len(ROWS)))
    of = trainer(config)
    seen: dict[str, float] = {}

    def on_step(progress, values):
        seen.setdefault("loss", values["loss"])
        seen.setdefault("weight", values["weight"])
        seen.setdefault("nll/code", values["nll/code"])

    of.run(of.trainable.start(world.params(0)), ROWS, seed=0, n_steps=1, on_step=on_step)
    nll, weight, code_nll, code = 0.0, 0, 0.0, 0
    for trace in TRACES:
        laid_out = world.lay_out(trace.program, [trace.latents], length=24)
        logp = laid_out.lm_log_probs(laid_out.logits(world.params(0)))[0]
        chosen = np.isin(laid_out.kinds_RT[0], (Kind.MARK, Kind.RATIONALE, Kind.END))
        of_code = np.isin(laid_out.kinds_RT[0], (Kind.CODE, Kind.CODE_ACT, Kind.CODE_AFTER))
        nll, weight = nll - logp[chosen].sum(), weight + chosen.sum()
        code_nll, code = code_nll - logp[of_code].sum(), code + of_code.sum()
    assert seen["weight"] == weight > 0
    assert seen["loss"] == pytest.approx(nll / weight, rel=1e-5)
    assert seen["nll/code"] == pytest.approx(code_nll / code, rel=1e-5)


def test_it_learns():
    of = trainer()
    losses: list[float] = []
    of.run(
        of.trainable.start(world.params(0)),
        ROWS,
        seed=0,
        n_steps=30,
        on_step=lambda _, values: losses.append(values["loss"]),
    )
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_mstep_rows_show_some_programs_plainly_again():
    n = len(TRACES)
    for share, expected in ((0.0, 0), (0.25, round(n / 4)), (1.0, n)):
        rows, dropped = mstep_rows(TRACES, 48, ntp_lambda=share, seed=3)
        assert dropped == 0
        assert rows.example_RT.max() + 1 == n + expected
        for example in range(n, n + expected):
            where = rows.example_RT == example
            candidates = [plain(p).tokens_T.tolist() for p in (TWO, THREE)]
            assert rows.tokens_RT[where].tolist() in candidates
            assert not np.isin(rows.kinds_RT[where], (Kind.MARK, Kind.RATIONALE)).any()
    once, again, other = (mstep_rows(TRACES, 48, ntp_lambda=0.25, seed=s)[0] for s in (3, 3, 4))
    np.testing.assert_array_equal(once.tokens_RT, again.tokens_RT)
    assert not np.array_equal(once.example_RT, other.example_RT) or not np.array_equal(once.tokens_RT, other.tokens_RT)
    lengths = [len(trace) for trace in TRACES]
    _, dropped = mstep_rows(TRACES, sorted(lengths)[-2], ntp_lambda=0.0)
    assert dropped == sum(length > sorted(lengths)[-2] for length in lengths)


def test_trained_tokens_of_whole_epochs_are_exact():
    tokens = sum(map(len, TRACES))
    assert (ROWS.segment_ids_RT > 0).sum() == tokens
    assert trained_tokens(ROWS, 3 * len(ROWS), 2) == 6 * tokens
