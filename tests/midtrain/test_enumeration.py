"""The trace policy, the bounds and the E-step's gradient against sums over every latent, with a real Transformer.

Nothing here is estimated unless it says so: an expectation is a sum over all traces, weighted by their probability.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ra3_jax.data.trace import Kind, Program, annotate
from ra3_jax.midtrain.config import EStepConfig
from ra3_jax.midtrain.elbo import LineTerms, iwae_bound, line_rewards, log_importance_weights, returns_to_go
from ra3_jax.midtrain.estep import line_advantages, make_batch
from ra3_jax.midtrain.rollouts import score_terms, trace_rows
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.losses import PolicyGradientBatch, policy_gradient_loss
from ra3_jax.policy.plan import make_plan, rollout_row
from ra3_jax.policy.sampler import Sampler
from tests.policy import world
from tests.policy.world import EVENTS, MODEL, THREE, TWO, Terms, Traces, quick_compile

__all__ = ["quick_compile"]

PI, Q = world.params(0), world.params(1)


class Case:
    """All traces of a program (or of a window of it) with their exact log-probs under pi and q."""

    def __init__(self, program: Program, max_new: int, first_line: int = 0, n_lines: int | None = None):
        self.program = program
        self.latents = world.every_latent(program, max_new, first_line, n_lines)
        self.traces = world.lay_out(program, self.latents, first_line=first_line, n_lines=n_lines)
        with world.on_one_device():
            self.pi_logits, self.q_logits = self.traces.logits(PI), self.traces.logits(Q)
        self.pi, self.q = self.traces.terms(self.pi_logits), self.traces.terms(self.q_logits)
        self.p_R = np.exp(self.pi.latent.sum(1))  # of the latents, the code being forced
        self.q_R = np.exp(self.q.latent.sum(1))
        self.w_R = np.exp(self.pi.action.sum(1))
        self.code = float(np.sum(self.p_R * self.w_R))  # p(code), the sum over all latents
        self.line_length_L = np.array([len(line) for line in program.lines], float)

    @property
    def nothing(self) -> int:
        """The trace without any thought."""
        return self.latents.index((None,) * self.program.n_lines)


@pytest.fixture(scope="module")
def two() -> Case:
    return Case(TWO, 2)


@pytest.fixture(scope="module")
def three() -> Case:
    return Case(THREE, 1)


def product_terms(traces: Traces, params) -> LineTerms:
    return score_terms(MODEL, params, traces.batch(), EVENTS, traces.n_lines)[1]


# --- the trace policy ---------------------------------------------------------------------------------


def test_every_latent_is_there_once(two, three):
    assert two.traces.rows == (1 + (1 + 4) + 4**2) ** 2
    assert three.traces.rows == (1 + 1 + 4) ** 3
    for case in (two, three):
        assert len(set(case.latents)) == case.traces.rows


@pytest.mark.parametrize("name", ["two", "three"])
def test_scorer_is_the_trace_policy_and_its_latents_sum_to_one(name, request):
    case = request.getfixturevalue(name)
    assert np.sum(case.p_R) == pytest.approx(1.0, abs=1e-12)  # the reference's own check
    terms = product_terms(case.traces, PI)
    assert np.exp(np.float64(terms.latent).sum(1)).sum() == pytest.approx(1.0, abs=1e-5)
    for field in ("action", "decision", "rationale", "log_act", "latent"):
        np.testing.assert_allclose(getattr(terms, field), getattr(case.pi, field), atol=2e-5)
    np.testing.assert_array_equal(terms.think, case.traces.think_RL)
    np.testing.assert_array_equal(terms.present, np.ones_like(case.traces.think_RL))
    np.testing.assert_array_equal(terms.code_tokens[0], case.line_length_L)
    lengths = [[0 if z is None else len(z.ids) for z in row] for row in case.latents]
    np.testing.assert_array_equal(terms.rationale_tokens, lengths)


def traces_by_content(tokens_RT, kinds_RT) -> list[bytes]:
    return [
        np.array([t, k], np.int32).tobytes() for t, k in zip(np.asarray(tokens_RT), np.asarray(kinds_RT), strict=True)
    ]


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_sampler_draws_latents_with_their_probability(two, temperature):
    """Chi-square over all traces; the log-probs of each sampled row are those of its trace."""
    n = 2048
    row = rollout_row(TWO, 2)
    plan = make_plan([rollout_row(TWO, 2, sample_index=g) for g in range(n)], slots=24)
    assert row.capacity == two.traces.length_R.max()
    sampler = Sampler(MODEL, window=2, temperature=temperature)
    samples = sampler.run(PI, plan, EVENTS, jax.random.key(3), group=n)
    # Two traces differ in tokens, or in whether the last thought was cut.
    row_of = {key: r for r, key in enumerate(traces_by_content(two.traces.tokens_RT, two.traces.kinds_RT))}
    index = np.array([row_of[key] for key in traces_by_content(samples.tokens_BS, samples.kinds_BS)])
    logits = two.traces.logits(PI, temperature)
    expected = n * np.exp(two.traces.terms(logits).latent.sum(1))
    seen = np.bincount(index, minlength=two.traces.rows)
    order = np.argsort(-expected)
    common = order[: int((expected >= 5).sum())]
    rest = order[len(common) :]
    observed = [*seen[common], seen[rest].sum()]
    p = scipy.stats.chisquare(observed, [*expected[common], expected[rest].sum()]).pvalue
    assert len(common) >= 15
    assert p > 1e-3
    decision, token, log_act = two.traces.events(logits)
    for found, reference in zip(
        (samples.log_probs.decision, samples.log_probs.token, samples.log_probs.log_act),
        (decision, token, log_act),
        strict=True,
    ):
        np.testing.assert_allclose(found, reference[index], atol=1e-5)
    np.testing.assert_array_equal(samples.lines_BS, two.traces.lines_RT[index])
    np.testing.assert_array_equal(samples.length_B, two.traces.length_R[index])


def test_trace_policy_differs_from_the_language_model_by_the_mask_terms(two):
    """Equal without a thought; else each thought adds -log(1 - p(M)) behind it and the events inside it (section 2)."""
    traces = two.traces
    scores, terms = score_terms(MODEL, PI, traces.batch(), EVENTS, 2)
    policy_R = np.float64(terms.action + terms.latent).sum(1)
    p_RTV = np.exp(two.pi_logits)
    p_RTV /= p_RTV.sum(-1, keepdims=True)
    lm_R = traces.lm_log_probs(two.pi_logits).sum(1)
    difference_R = np.zeros(traces.rows)
    for r, row in enumerate(two.latents):
        at = len(TWO.prompt_ids)  # of the token to come; p_RTV[r, at - 1] predicts it
        for z, line in zip(row, TWO.lines, strict=True):
            if z is not None:
                mass = p_RTV[r, at - 1]
                difference_R[r] += np.log(mass[world.M_V].sum() / mass[world.MARK])  # "#" stands for all marks
                at += 1
                for _ in z.ids:
                    difference_R[r] -= np.log(1 - p_RTV[r, at - 1][world.BANNED_V].sum())
                    at += 1
                mass = p_RTV[r, at - 1]
                if z.cut:
                    difference_R[r] -= np.log(mass[world.NEWLINE])  # given for free
                else:
                    difference_R[r] += np.log(mass[world.N_V].sum() / mass[world.NEWLINE])
                    difference_R[r] -= np.log(1 - mass[world.BANNED_V].sum())
                at += 1
                difference_R[r] -= np.log(1 - p_RTV[r, at - 1][world.M_V].sum())
            at += len(line)
    np.testing.assert_allclose(policy_R - lm_R, difference_R, atol=3e-5)
    plain_R = (traces.think_RL == 0).all(1)
    assert plain_R.sum() == 1
    assert policy_R[plain_R][0] == pytest.approx(lm_R[plain_R][0], abs=1e-5)
    assert np.abs(difference_R[~plain_R]).min() > 1e-3
    np.testing.assert_allclose(np.float64(scores.decision + scores.token).sum(1), policy_R, atol=1e-5)


# --- bounds -------------------------------------------------------------------------------------------


def test_bounds_rise_from_the_elbo_to_the_likelihood(two):
    log_w_R = np.asarray(log_importance_weights(product_terms(two.traces, PI)))
    np.testing.assert_allclose(log_w_R, np.log(two.w_R), atol=2e-5)
    p_R = two.p_R / two.p_R.sum()
    log_p = np.log(two.code)

    l_1 = np.sum(p_R * np.float64(iwae_bound(log_w_R[:, None])))
    pairs = np.stack(np.meshgrid(log_w_R, log_w_R, indexing="ij"), -1).reshape(-1, 2)
    l_2 = np.sum(np.outer(p_R, p_R).ravel() * np.float64(iwae_bound(pairs)))
    assert l_1 == pytest.approx(np.sum(p_R * np.log(two.w_R)), abs=1e-5)
    exact = np.sum(np.outer(p_R, p_R) * np.log((two.w_R[:, None] + two.w_R[None]) / 2))
    assert l_2 == pytest.approx(exact, abs=1e-5)
    assert l_1 + 0.05 < l_2 < log_p - 0.05

    rng = np.random.default_rng(0)
    estimates = {}
    for K in (8, 64, 512):
        drawn = rng.choice(len(p_R), p=p_R, size=(400, K))
        bound_P = np.asarray(iwae_bound(log_w_R[drawn]), np.float64)
        estimates[K] = bound_P.mean(), bound_P.std(ddof=1) / np.sqrt(len(bound_P))
    rising = [(l_1, 0.0), (l_2, 0.0), *estimates.values()]
    for (low, low_se), (high, high_se) in itertools.pairwise(rising):
        assert low < high + 3 * np.hypot(low_se, high_se)
    for mean, se in estimates.values():
        assert mean < log_p + 3 * se
    assert estimates[512][0] == pytest.approx(log_p, abs=0.02)


@pytest.mark.parametrize("proposal", ["pi", "q"])
def test_elbo_falls_short_of_the_likelihood_by_the_kl_to_the_posterior(two, proposal):
    """log p(a) - ELBO(q) = KL(q || posterior); a proposal of its own brings its density into the weights."""
    pi_terms, q_terms = product_terms(two.traces, PI), product_terms(two.traces, Q)
    if proposal == "pi":
        proposal_R, log_w = two.p_R, log_importance_weights(pi_terms)
    else:
        proposal_R, log_w = two.q_R, log_importance_weights(pi_terms, q_terms)
    elbo = np.sum(proposal_R * np.float64(log_w))
    posterior_R = two.p_R * two.w_R / two.code
    kl = np.sum(proposal_R * np.log(proposal_R / posterior_R))
    assert kl > 0.05
    assert np.log(two.code) - elbo == pytest.approx(kl, abs=3e-5)
    assert np.sum(proposal_R * np.exp(np.float64(log_w))) == pytest.approx(two.code, rel=1e-4)


# --- the gradient of the E-step -----------------------------------------------------------------------

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


def test_rewards_of_the_elbo_sum_to_the_importance_weight(three):
    """c = 0, line_sum: what elbo.py says of `line_rewards` with the log-ratio added."""
    pi_terms, q_terms = product_terms(three.traces, PI), product_terms(three.traces, Q)
    reward = line_rewards(pi_terms, 0.0, "line_sum", pi_terms.latent - q_terms.latent)
    log_w = log_importance_weights(pi_terms, q_terms)
    expected = np.log(three.w_R) + np.log(three.p_R) - np.log(three.q_R)
    np.testing.assert_allclose(log_w, expected, atol=5e-5)
    np.testing.assert_allclose(np.sum(reward, 1), log_w, atol=1e-5)
    np.testing.assert_allclose(returns_to_go(reward, 3)[:, 0], log_w, atol=1e-5)


def test_the_layout_here_is_the_projects_own(three):
    """What ties the enumeration to `annotate`: the same rows, token by token."""
    some = [0, 1, 5, 40, 110, ROWS - 1]
    traces = [annotate(THREE, three.latents[r], mark_id=world.MARK, newline_id=world.NEWLINE) for r in some]
    rows = trace_rows(traces, batch=len(some), length=three.traces.tokens_RT.shape[1])
    expected = three.traces.take(np.array(some)).batch()
    jax.tree.map(np.testing.assert_array_equal, TokenBatch.from_rows(rows), expected)
