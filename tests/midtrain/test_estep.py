"""An update's batch against the reference, whatever the baseline and the window; resuming; and that it learns."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.data.trace import Kind, Latent
from ra3_jax.midtrain.config import EStepConfig
from ra3_jax.midtrain.estep import EStepState, PolicyGradientEStep, draw_windows
from ra3_jax.policy.losses import PolicyGradientBatch
from ra3_jax.policy.sampler import Sampler
from ra3_jax.train.config import OptimizerConfig
from ra3_jax.train.state import TrainState
from ra3_jax.train.trainable import Trainable
from tests.policy import world
from tests.policy.world import EOS, EVENTS, MODEL, NEWLINE, NEWLINE_SPACE, A, B, Terms, Traces, quick_compile

__all__ = ["quick_compile"]

# Four lines each and prompts that nothing else shares, so that rows tell which program they are.
PROGRAMS = [
    world.program([B, NEWLINE], [A, B, NEWLINE_SPACE], [A, NEWLINE], [EOS], prompt=[0, *prompt], example_id=i)
    for i, prompt in enumerate([[A], [B], [A, A], [B, A]])
]
G, PER_UPDATE, LINES, SLOTS = 3, 2, 4, 64
KEY = jax.random.key(3)
START = EStepState()
PI, Q = world.params(0), world.params(1)


def estep_config(**fields: Any) -> EStepConfig:
    fields = {
        "group": G, "horizon": 2, "c": 0.05, "reward_norm": "token_mean", "max_latent_tokens": 2, "updates": 2,
        "programs_per_update": PER_UPDATE, "advantage_std": None, "gamma": 0.8, **fields,
    }  # fmt: skip
    return EStepConfig(method="policy_gradient", **fields)


@dataclasses.dataclass
class Recorder:
    """A step that learns nothing and keeps what it was given."""

    batches: list[PolicyGradientBatch] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)

    def __call__(self, q, batch, lr):
        self.batches.append(batch)
        self.rates.append(float(lr))
        return q, {"loss": jnp.float32(0)}


def record(config: EStepConfig, state: EStepState = START):
    """(recorder, metrics of each update, last state)."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    step, seen = Recorder(), []
    q: Any = TrainState(Q, (), jnp.int32(0))
    trainable = Trainable.create(MODEL, mesh, config.optimizer, config.lora)
    estep = PolicyGradientEStep(MODEL, Sampler(MODEL, 2), EVENTS, mesh, config, trainable, step)
    _, state = estep.run(
        PI, q, PROGRAMS, KEY, 1, lambda i: 0.1 * (i + 1), state, on_update=lambda q, s, values: seen.append(values)
    )
    return step, seen, state


def latents_of(tokens, kinds, lines) -> tuple[Latent | None, ...]:
    """The thoughts of one row, one entry per line of the program."""
    found: list[Latent | None] = [None] * LINES
    for t in range(1, LINES + 1):
        inside = lines == t
        if (kinds[inside] == Kind.MARK).any():
            cut = bool((kinds[inside] == Kind.END_CUT).any())
            found[t - 1] = Latent(tuple(map(int, tokens[inside & (kinds == Kind.RATIONALE)])), cut)
    return tuple(found)


def rows_of(batch: PolicyGradientBatch) -> list[tuple[Any, Traces, int, int]]:
    """(program, its laid out row, first line, number of lines) of each row; the row itself must be the same."""
    rows, found = batch.rows, []
    for b in range(len(rows.tokens_BT)):
        tokens, kinds, lines = (np.asarray(x)[b] for x in (rows.tokens_BT, rows.kinds_BT, rows.lines_BT))
        program = next(
            p
            for p in PROGRAMS[::-1]
            if np.array_equal(tokens[: len(p.prompt_ids) + 1], [*p.prompt_ids, p.lines[0][0]])
            or np.array_equal(tokens[: len(p.prompt_ids) + 1], [*p.prompt_ids, world.MARK])
        )
        first, last = lines[lines > 0].min() - 1, lines.max()
        traces = world.lay_out(
            program, [latents_of(tokens, kinds, lines)], length=SLOTS, first_line=first, n_lines=last - first
        )
        for name in ("tokens_BT", "kinds_BT", "lines_BT", "segment_ids_BT", "positions_BT"):
            np.testing.assert_array_equal(getattr(rows, name)[b], getattr(traces.batch(), name)[0], err_msg=name)
        found.append((program, traces, first, last - first))
    return found


def join(traces: list[Traces]) -> Traces:
    return jax.tree.map(lambda *xs: np.concatenate(xs), *traces)


def line_rewards(config: EStepConfig, pi: Terms, q: Terms, think_RL, present_RL):
    reward = pi.action
    if config.reward_norm == "token_mean":
        reward = reward / [len(line) for line in PROGRAMS[0].lines]
    reward = reward - config.c * think_RL
    if config.reward == "elbo":
        reward = reward + pi.latent - q.latent
    return reward * present_RL


def to_go(reward_RL, config: EStepConfig) -> np.ndarray:
    returns = np.zeros_like(reward_RL)
    for t in range(LINES):
        for k in range(t, min(t + config.horizon, LINES)):
            returns[:, t] += config.gamma ** (k - t) * reward_RL[:, k]
    return returns


CASES = {
    "leave_one_out": estep_config(),
    "none, elbo, line_sum": estep_config(baseline="none", reward="elbo", reward_norm="line_sum", c=0.0),
    "act": estep_config(baseline="act"),
    "ema": estep_config(baseline="ema", ema_decay=0.75),
    "leave_one_out, window": estep_config(window_lines=3),
    "act, window": estep_config(baseline="act", window_lines=3),
    "ema, window": estep_config(baseline="ema", window_lines=2, horizon=1),
}


@pytest.mark.parametrize("name", CASES)
def test_batches_of_updates(name):
    """Rewards, returns, baselines and log-probs of two updates, computed again from the rows alone."""
    config = CASES[name]
    step, seen, state = record(config)
    assert len(step.batches) == len(seen) == state.update == 2
    assert step.rates == pytest.approx([0.1, 0.2])
    ema = 0.0
    for update, batch in enumerate(step.batches):
        programs, rows, firsts, counts = zip(*rows_of(batch), strict=True)
        assert [p.example_id for p in programs] == [p.example_id for p in programs[::G] for _ in range(G)]
        traces = join(list(rows))
        pi_logits, q_logits = traces.logits(PI), traces.logits(Q)
        pi, q = traces.terms(pi_logits), traces.terms(q_logits)
        lines = np.arange(LINES)
        first_R, stop_R = np.array(firsts), np.array(firsts) + np.array(counts)
        present = (lines >= first_R[:, None]) & (lines < stop_R[:, None])
        reward = line_rewards(config, pi, q, traces.think_RL, present)
        returns = to_go(reward, config)
        complete = present & ((lines + config.horizon <= stop_R[:, None]) | (stop_R[:, None] == LINES))

        plain = join([world.lay_out(p, [(None,) * LINES], length=SLOTS) for p in programs])
        plain_pi = plain.terms(plain.logits(PI))
        plain_reward = line_rewards(dataclasses.replace(config, c=0.0, reward="line"), plain_pi, plain_pi, 0.0, 1.0)
        if config.baseline == "ema":
            decay = config.ema_decay if update else 0.0
            ema = decay * ema + (1 - decay) * plain_reward.mean()
        match config.baseline:
            case "none":
                b = np.zeros_like(returns)
            case "act":
                b = to_go(plain_reward * present, config)
            case "ema":
                b = ema * to_go(present.astype(float), config)
            case "leave_one_out":
                grouped = returns.reshape(-1, G, LINES)
                b = ((grouped.sum(1, keepdims=True) - grouped) / (G - 1)).reshape(returns.shape)
        acts = np.isin(traces.kinds_RT, (Kind.CODE_ACT, Kind.MARK, Kind.RATIONALE, Kind.END))
        line_RT = np.maximum(traces.lines_RT - 1, 0)
        advantage = np.take_along_axis((returns - b) * complete, line_RT, 1) * acts
        weight = np.take_along_axis(complete, line_RT, 1) & traces.decides_RT
        np.testing.assert_allclose(batch.advantages_BT, advantage, atol=3e-5)
        np.testing.assert_array_equal(batch.line_weight_BT, weight)
        for found, logits in ((batch.behaviour_logp_BT, q_logits), (batch.reference_logp_BT, pi_logits)):
            decision, token, _ = traces.events(logits)
            np.testing.assert_allclose(found, decision + token * traces.thought_RT, atol=2e-5)

        n, thoughts = present.sum(), traces.think_RL.sum()
        values = seen[update]
        words = (traces.kinds_RT == Kind.RATIONALE).sum()
        tokens = (present * [len(line) for line in PROGRAMS[0].lines]).sum()
        for key, expected in {
            "reward": reward.sum() / n,
            "return": (returns * complete).sum() / complete.sum(),
            "elbo/recon": pi.action.sum() / tokens,
            "elbo/penalty": config.c * thoughts / n,
            "latent/think_rate": thoughts / n,
            "latent/mean_len": words / thoughts,
            "elbo/rationale_entropy": -q.rationale.sum() / thoughts,
            "loss": 0.0,
        }.items():
            assert values[key] == pytest.approx(expected, abs=1e-4), key
    sampled = sum(int((np.asarray(b.rows.segment_ids_BT) > 0).sum()) for b in step.batches)
    assert state.sampled_tokens == state.trained_tokens == sampled
    extra = PER_UPDATE * 2 * sum(map(len, PROGRAMS[0].lines)) if config.baseline in ("act", "ema") else 0
    assert state.scored_tokens >= sampled + extra
    if config.baseline == "ema":
        assert state.ema == pytest.approx(ema, abs=1e-5) and ema < -0.1


def test_advantages_are_scaled_to_a_standard_deviation():
    raw, scaled = record(estep_config())[0], record(estep_config(advantage_std=0.3))[0]
    for a, b in zip(raw.batches, scaled.batches, strict=True):
        decides = np.asarray(a.line_weight_BT) > 0
        before, after = np.asarray(a.advantages_BT), np.asarray(b.advantages_BT)
        assert np.sqrt((after[decides] ** 2).mean()) == pytest.approx(0.3, rel=1e-4)
        np.testing.assert_allclose(after, before * 0.3 / np.sqrt((before[decides] ** 2).mean()), atol=1e-5)


def test_a_batch_may_serve_several_updates():
    step, seen, state = record(estep_config(updates_per_batch=3, updates=1))
    assert len(step.batches) == 3 and len(seen) == state.update == 1
    assert all(batch is step.batches[0] for batch in step.batches)
    assert state.trained_tokens == 3 * state.sampled_tokens


def test_an_update_depends_on_its_number_alone():
    whole, _, end = record(estep_config(baseline="ema", updates=3))
    _, _, middle = record(estep_config(baseline="ema", updates=1))
    rest, _, resumed = record(estep_config(baseline="ema", updates=3), middle)
    assert resumed == end
    for a, b in zip(whole.batches[1:], rest.batches, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    seen = [np.asarray(batch.rows.tokens_BT)[::G] for batch in whole.batches]
    assert not np.array_equal(seen[0], seen[1])


def test_rollouts_in_parts_are_those_of_the_whole():
    whole, metrics, state = record(estep_config(updates=1))
    parts, metrics_of_parts, state_of_parts = record(estep_config(updates=1, rollout_batch=G))
    assert state == state_of_parts
    for a, b in zip(*(jax.tree.leaves(found.batches[0]) for found in (whole, parts)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # another batch of a matrix product is rounded otherwise
    np.testing.assert_array_equal(whole.batches[0].rows.tokens_BT, parts.batches[0].rows.tokens_BT)
    assert metrics[0] == pytest.approx(metrics_of_parts[0], abs=1e-5)


def test_every_program_is_seen_once_an_epoch():
    step, _, _ = record(estep_config(updates=4))
    seen = [row for batch in step.batches for row in rows_of(batch)]
    ids = [program.example_id for program, *_ in seen[::G]]
    assert sorted(ids[:4]) == sorted(ids[4:]) == [0, 1, 2, 3]
    # and rolled out anew each time
    thoughts = [
        [row.tokens_RT.tobytes() for program, row, *_ in epoch if program is PROGRAMS[0]]
        for epoch in (seen[: 4 * G], seen[4 * G :])
    ]
    assert thoughts[0] != thoughts[1]


def test_windows_cover_every_start():
    rng = np.random.default_rng(0)
    programs = [world.TWO, *PROGRAMS]
    seen = set()
    for _ in range(60):
        drawn = draw_windows(programs, 3, rng)
        assert drawn[0] == (0, 2)  # shorter than a window
        assert all(n == 3 and 0 <= first <= 1 for first, n in drawn[1:])
        seen |= set(drawn[1:])
    assert seen == {(0, 3), (1, 3)}
    assert draw_windows(programs, 0, rng) == [(0, 2), *[(0, 4)] * 4]


@pytest.mark.parametrize("c, baseline", [(4.0, "leave_one_out"), (-4.0, "act")])
def test_it_learns_what_a_thought_costs(c, baseline):
    """A thought that costs (earns) more than any line is worth: q stops thinking (does little else)."""
    config = estep_config(
        c=c, horizon=1, updates=25, group=4, advantage_std=0.3, baseline=baseline,
        optimizer=OptimizerConfig(learning_rate=0.03, schedule="constant", weight_decay=0.0),
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    estep = PolicyGradientEStep.create(MODEL, Sampler(MODEL, 2), EVENTS, mesh, config)
    embed = Q["embed"]
    start = Q | {"embed": embed.at[world.MARK].set(2.5 * embed[NEWLINE])}  # thinks behind a newline, else hardly
    before = jax.tree.map(np.array, start)
    rates: list[float] = []

    def on_update(q, state, values):
        rates.append(values["latent/think_rate"])

    q, _ = estep.run(PI, estep.trainable.start(start), PROGRAMS, KEY, 1, lambda i: 0.03, on_update=on_update)
    assert int(q.step) == len(rates) == config.updates
    jax.tree.map(np.testing.assert_array_equal, start, before)  # the caller's weights are its own
    first, last = rates[0], np.mean(rates[-5:])
    assert 0.15 < first < 0.6
    assert last < 0.02 if c > 0 else last > 0.7
