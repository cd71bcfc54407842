"""The gradient of the policy-gradient E-step against the exact one, a sum over every latent of a real Transformer.

Nothing is estimated: the mean of the estimator is a sum over all that could be drawn, weighted by its probability.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.data.trace import Kind
from ra3_jax.midtrain.config import EStepConfig
from ra3_jax.midtrain.elbo import LineTerms
from ra3_jax.midtrain.estep import line_advantages, make_batch
from ra3_jax.midtrain.rollouts import score_terms
from ra3_jax.policy.losses import PolicyGradientBatch, policy_gradient_loss
from tests.policy import world
from tests.policy.world import EVENTS, MODEL, THREE, TWO, Case, Terms, Traces, quick_compile

__all__ = ["quick_compile"]

PI, Q = world.params(0), world.params(1)


@pytest.fixture(scope="module")
def three() -> Case:
    return Case(THREE, 1)


def product_terms(traces: Traces, params) -> LineTerms:
    return score_terms(MODEL, params, traces.batch(), EVENTS, traces.n_lines)[1]


OBJECTIVES: dict[str, dict[str, Any]] = {
    "line_sum": dict(reward_norm="line_sum", c=0.0),
    "token_mean": dict(reward_norm="token_mean", c=0.05),
    "elbo": dict(reward_norm="line_sum", c=0.0, reward="elbo"),
    "elbo, token_mean": dict(reward_norm="token_mean", c=0.3, reward="elbo"),
}
ROWS = 216  # every batch below is filled up to this many rows, of weight 0, so that all share one program


def estep_config(**fields: Any) -> EStepConfig:
    fields = dict(horizon=3, gamma=1.0, baseline="none", group=1, advantage_std=None) | fields
    return EStepConfig(method="policy_gradient", **fields)


def reward_lines(case: Case, config: EStepConfig, q: Terms | None = None):
    """r_t [R, L] by the definition."""
    reward = case.pi.action / (case.line_length_L if config.reward_norm == "token_mean" else 1.0)
    reward = reward - config.c * case.traces.think_RL
    return reward + case.pi.latent - (q or case.q).latent if config.reward == "elbo" else reward


@jax.jit
def _expectation_gradient(params, traces: Traces, weight_R, value_R, entropy_weight):
    """grad of sum_R q(R) (value_R - entropy_weight log q(R)) over the rows of weight 1."""

    def objective(params):
        logq_R = jnp.sum(traces.terms_of(params).latent, 1)
        return jnp.sum(weight_R * jnp.exp(logq_R) * (value_R - entropy_weight * logq_R))

    return jax.grad(objective)(params)


def exact_gradient(case: Case, config: EStepConfig):
    """grad_q of E_q[sum_t r_t], by differentiating the sum over all latents."""
    elbo = config.reward == "elbo"
    without_q = reward_lines(case, config) + (case.q.latent if elbo else 0.0)
    rows, weight_R = filled(case.traces.rows)
    return _expectation_gradient(Q, case.traces.take(rows), weight_R, without_q.sum(1)[rows], float(elbo))


@jax.jit
def _score_gradient(params, traces: Traces, coefficient_RL):
    """grad of sum coefficient_RL log q(z_t)."""
    return jax.grad(lambda params: jnp.sum(coefficient_RL * traces.terms_of(params).latent))(params)


def filled(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices 0..n-1 and then zeros up to ROWS, and their weights 1 and 0."""
    rows = np.pad(np.arange(n), (0, ROWS - n))
    return rows, (np.arange(ROWS) < n).astype(np.float32)


@jax.jit
def _loss_gradient(params, batch: PolicyGradientBatch):
    loss_fn = policy_gradient_loss(MODEL, EVENTS)
    return jax.grad(lambda params: loss_fn(params, batch)[0])(params)


def drawn_batch(case: Case, drawn: np.ndarray, config: EStepConfig, *, ema=0.0, plain_RL=None):
    """What `make_batch` says to rollouts that came out as the traces `drawn`."""
    reference, pi_terms = score_terms(MODEL, PI, case.traces.batch(), EVENTS, case.program.n_lines)
    q_terms = product_terms(case.traces, Q)
    reference, pi_terms, q_terms = jax.tree.map(lambda x: x[drawn], (reference, pi_terms, q_terms))
    samples = case.traces.take(drawn).samples(case.q_logits[drawn])
    reaches_end_B = jnp.full(len(drawn), case.traces.lines_RT.max() == case.program.n_lines)
    return make_batch(
        samples, reference, pi_terms, q_terms, plain_RL, jnp.float32(ema), reaches_end_B, config, config.group
    )  # fmt: skip


def estimator(case: Case, batch: PolicyGradientBatch, drawn: np.ndarray, probability: np.ndarray):
    """Mean, over what could be drawn, of the gradient (of what is maximised) that the loss returns, times the lines.

    `probability` is that of each drawn row. The loss is a sum over rows and, on policy, linear in the advantages: so
    the same trace drawn in several groups is one row here, which carries the sum of its advantages times probabilities.
    """
    weighted_RT = np.zeros(batch.advantages_BT.shape)
    np.add.at(weighted_RT, drawn, np.float64(batch.advantages_BT) * probability[:, None])
    first = [int(np.flatnonzero(drawn == r)[0]) for r in range(case.traces.rows)]
    rows, weight_R = filled(case.traces.rows)
    of_trace = jax.tree.map(lambda x: np.asarray(x)[first][rows], batch)
    advantages = np.float32(weighted_RT[: case.traces.rows][rows] * weight_R[:, None])
    gradient = _loss_gradient(Q, dataclasses.replace(of_trace, advantages_BT=advantages))
    return jax.tree.map(jnp.negative, gradient)


def assert_same(found, expected, tolerance=2e-4):
    found, expected = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, expected))
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_policy_gradient_is_the_gradient_of_the_objective(three, name):
    """T >= n, gamma = 1: REINFORCE averages to the gradient of J_c (of the bound itself with the elbo reward)."""
    config = estep_config(**OBJECTIVES[name])
    drawn = np.arange(ROWS)
    batch, metrics = drawn_batch(three, drawn, config)
    assert_same(estimator(three, batch, drawn, three.q_R), exact_gradient(three, config))
    reward = reward_lines(three, config)
    assert float(metrics["reward"]) == pytest.approx(reward.mean(), abs=1e-5)
    assert float(metrics["return"]) == pytest.approx(to_go(reward).mean(), abs=1e-5)
    assert float(batch.line_weight_BT.sum()) == ROWS * 3


def to_go(reward: np.ndarray) -> np.ndarray:
    return np.cumsum(reward[:, ::-1], 1)[:, ::-1]


@pytest.mark.parametrize("baseline", ["act", "ema"])
def test_baselines_do_not_change_the_mean(three, baseline):
    config = estep_config(baseline=baseline, **OBJECTIVES["token_mean"])
    plain_L = three.pi.action[three.nothing] / three.line_length_L
    drawn = np.arange(ROWS)
    plain_RL = jnp.tile(jnp.float32(plain_L), (ROWS, 1))
    batch, _ = drawn_batch(three, drawn, config, ema=-0.7, plain_RL=plain_RL)
    assert_same(estimator(three, batch, drawn, three.q_R), exact_gradient(three, config))
    # and the baseline is what its name says: b_t of the return from line t on
    b_L = to_go(plain_L[None])[0] if baseline == "act" else -0.7 * np.array([3.0, 2.0, 1.0])
    advantage_RL = to_go(reward_lines(three, config)) - b_L
    acts_RT = three.traces.decides_RT | three.traces.thought_RT
    acts_RT &= three.traces.kinds_RT != Kind.END_CUT
    line_RT = np.maximum(three.traces.lines_RT - 1, 0)
    expected = np.take_along_axis(advantage_RL, line_RT, 1) * acts_RT
    np.testing.assert_allclose(batch.advantages_BT, expected, atol=2e-5)


@pytest.fixture(scope="module")
def small() -> Case:
    return Case(TWO, 1)


@pytest.mark.parametrize("name", ["line_sum", "elbo"])
def test_leave_one_out_keeps_the_mean(small, name):
    """G = 2: every pair of traces, weighted by its probability."""
    pairs = np.array(list(itertools.product(range(small.traces.rows), repeat=2)))
    probability_P = small.q_R[pairs].prod(1)
    config = estep_config(group=2, baseline="leave_one_out", **OBJECTIVES[name])
    batch, _ = drawn_batch(small, pairs.ravel(), config)
    mean = estimator(small, batch, pairs.ravel(), np.repeat(probability_P, 2) / 2)
    assert_same(mean, exact_gradient(small, config))


def test_leave_one_out_lowers_the_variance(small):
    """Along random directions of the weights, from the score of every trace and line."""
    pairs = np.array(list(itertools.product(range(small.traces.rows), repeat=2)))
    probability_P = small.q_R[pairs].prod(1)
    rng = np.random.default_rng(0)

    @jax.jit
    def derivative(traces: Traces, direction):
        return jax.jvp(lambda params: traces.terms_of(params).latent, (Q,), (direction,))[1]

    def along(direction):
        return np.float64(derivative(small.traces, direction))

    directions = [jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), Q) for _ in range(8)]
    score_DRL = np.stack([along(direction) for direction in directions])
    reward = jnp.float32(reward_lines(small, estep_config())[pairs.ravel()])
    zeros, ends = jnp.zeros_like(reward), jnp.ones(len(reward), bool)
    means, variances = [], []
    for baseline in (None, zeros):
        advantage, weight, returns = line_advantages(reward, zeros + 1, ends, baseline, group=2, horizon=2, gamma=1.0)
        np.testing.assert_array_equal(weight, zeros + 1)
        np.testing.assert_allclose(returns, to_go(np.asarray(reward, np.float64)), rtol=1e-5)
        rows = np.einsum("rl,drl->dr", np.float64(advantage), score_DRL[:, pairs.ravel()])
        groups_DP = rows.reshape(len(directions), -1, 2).mean(2)
        means.append(groups_DP @ probability_P)
        variances.append(groups_DP**2 @ probability_P - means[-1] ** 2)
    np.testing.assert_allclose(means[0], means[1], atol=1e-4 * np.abs(means[1]).max())
    assert np.abs(means[1]).max() > 0.1
    assert np.sum(variances[0]) < 0.7 * np.sum(variances[1])


@pytest.mark.parametrize(
    "horizon, gamma, window",
    [(1, 1.0, (0, 3)), (2, 0.5, (0, 3)), (2, 0.9, (0, 2)), (1, 0.9, (1, 2)), (2, 0.9, (2, 1))],
)
def test_short_horizons_and_windows(three, horizon, gamma, window):
    """The estimator's own mean: sum over traces of q(trace) sum_t R_t grad log q(z_t), over the complete returns."""
    first, n = window
    stop = first + n
    case = three if n == 3 else Case(THREE, 1, first, n)
    assert case.q_R.sum() == pytest.approx(1.0)
    config = estep_config(horizon=horizon, gamma=gamma, **OBJECTIVES["token_mean"])
    reward = reward_lines(case, config)
    returns, complete = np.zeros_like(reward), np.zeros(3)
    for t in range(first, stop):
        for k in range(t, min(t + horizon, stop)):
            returns[:, t] += gamma ** (k - t) * reward[:, k]
        complete[t] = t + horizon <= stop or stop == 3
    drawn = np.arange(case.traces.rows)
    batch, _ = drawn_batch(case, drawn, config)
    line_RT = np.maximum(case.traces.lines_RT - 1, 0)
    np.testing.assert_array_equal(batch.line_weight_BT, complete[line_RT] * case.traces.decides_RT)
    assert complete.sum() == {(0, 3): 3, (0, 2): 1, (1, 2): 2, (2, 1): 1}[window]
    rows, weight_R = filled(case.traces.rows)
    coefficient_RL = (case.q_R[:, None] * complete * returns)[rows] * weight_R[:, None]
    expected = _score_gradient(Q, case.traces.take(rows), coefficient_RL)
    assert_same(estimator(case, batch, drawn, case.q_R), expected)


def test_window_without_a_complete_return_teaches_nothing():
    case = Case(THREE, 1, 1, 1)
    batch, _ = drawn_batch(case, np.arange(case.traces.rows), estep_config(horizon=2))
    assert not np.any(batch.advantages_BT) and not np.any(batch.line_weight_BT)
