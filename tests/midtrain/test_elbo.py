"""The pure array functions of the temporal ELBO against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3_jax.data.trace import Kind
from ra3_jax.midtrain.elbo import (
    LineTerms,
    complete_returns,
    horizon_weights,
    iwae_bound,
    leave_one_out,
    line_rewards,
    line_sums,
    line_terms,
    log_importance_weights,
    returns_to_go,
    select_rollout,
)
from ra3_jax.midtrain.estep import line_advantages, scale_to_std
from ra3_jax.policy.events import EventLogProbs

ROWS, LINES = 6, 5
arrays = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed))
horizons = st.sampled_from([1, 2, 3, LINES, LINES + 3])
gammas = st.sampled_from([1.0, 0.9, 0.3, 0.0])

to_go = jax.jit(returns_to_go, static_argnums=(1, 2))
complete = jax.jit(complete_returns, static_argnums=1)
quick = settings(max_examples=25, deadline=None)


def random_windows(rng) -> tuple[np.ndarray, np.ndarray]:
    """(present [B, L], whether the window reaches the end [B]): consecutive lines, like a rollout's."""
    present = np.zeros((ROWS, LINES), np.float32)
    ends = rng.random(ROWS) < 0.5
    for b in range(ROWS):
        first = rng.integers(LINES)
        present[b, first : rng.integers(first + 1, LINES + 1)] = 1
    return present, ends


def loop_returns(reward, horizon: int, gamma: float) -> np.ndarray:
    returns = np.zeros_like(reward)
    for b, t in np.ndindex(*reward.shape):
        for k in range(t, min(t + horizon, reward.shape[1])):
            returns[b, t] += gamma ** (k - t) * reward[b, k]
    return returns


@quick
@given(arrays, horizons, gammas)
def test_returns_to_go(rng, horizon, gamma):
    reward = rng.normal(size=(ROWS, LINES)).astype(np.float32)
    np.testing.assert_allclose(to_go(reward, horizon, gamma), loop_returns(reward, horizon, gamma), atol=1e-5)


@quick
@given(arrays, horizons)
def test_complete_returns(rng, horizon):
    """A return counts where all of its lines were rolled out, or where the program ends inside the window."""
    present, ends = random_windows(rng)
    found = np.asarray(complete(present, horizon, ends))
    for b in range(ROWS):
        lines = np.flatnonzero(present[b])
        for t in range(LINES):
            whole = t in lines and (ends[b] or t + horizon - 1 <= lines[-1])
            assert found[b, t] == whole


@quick
@given(arrays, st.sampled_from([1, 2, 3]))
def test_leave_one_out(rng, group):
    returns = rng.normal(size=(ROWS // group, group, LINES)).astype(np.float32)
    baseline = np.asarray(jax.jit(leave_one_out)(returns))
    for p, g, t in np.ndindex(*returns.shape):
        others = [returns[p, h, t] for h in range(group) if h != g]
        assert baseline[p, g, t] == pytest.approx(np.mean(others) if others else 0.0, abs=1e-5)


@quick
@given(arrays, st.sampled_from([(1, 1.0, 1), (2, 0.5, 3), (LINES + 3, 0.9, 2)]))
def test_line_advantages(rng, setting):
    horizon, gamma, group = setting
    present, ends = random_windows(rng)
    present, ends = np.repeat(present[::group], group, 0), np.repeat(ends[::group], group)  # a group shares its window
    reward = (rng.normal(size=present.shape) * present).astype(np.float32)
    own = rng.normal(size=present.shape).astype(np.float32)
    for baseline in (None, own):
        advantages, weight, returns = advantages_of(reward, present, ends, baseline, group, horizon, gamma)
        expected = loop_returns(reward, horizon, gamma)
        np.testing.assert_allclose(returns, expected, atol=1e-5)
        if baseline is None:
            grouped = expected.reshape(-1, group, LINES)
            total = grouped.sum(1, keepdims=True) - grouped
            b = (total / max(1, group - 1)).reshape(expected.shape) if group > 1 else np.zeros_like(expected)
        else:
            b = own
        np.testing.assert_array_equal(weight, complete(present, horizon, ends))
        np.testing.assert_allclose(advantages, (expected - b) * weight, atol=1e-5)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def advantages_of(reward, present, ends, baseline, group, horizon, gamma):
    return line_advantages(reward, present, ends, baseline, group=group, horizon=horizon, gamma=gamma)


def test_advantages_of_equal_rollouts_are_zero():
    reward = np.tile(np.random.default_rng(0).normal(size=(1, LINES)), (ROWS, 1)).astype(np.float32)
    ones = np.ones_like(reward)
    advantages, _, _ = advantages_of(reward, ones, np.ones(ROWS, bool), None, 3, 2, 0.9)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-5)


def test_scale_to_std():
    rng = np.random.default_rng(0)
    weight = (rng.random((ROWS, LINES)) < 0.6).astype(np.float32)
    advantage = (3 * rng.normal(size=weight.shape) * weight).astype(np.float32)
    scaled = np.asarray(scale_to_std(jnp.asarray(advantage), jnp.asarray(weight), 0.3))
    assert np.sqrt((scaled[weight > 0] ** 2).mean()) == pytest.approx(0.3, rel=1e-4)
    np.testing.assert_allclose(scaled / 0.3, advantage / np.sqrt((advantage[weight > 0] ** 2).mean()), atol=1e-5)
    zeros = jnp.zeros((ROWS, LINES))
    for weights in (zeros, zeros + 1):
        np.testing.assert_array_equal(scale_to_std(zeros, weights, 0.3), zeros)


@pytest.mark.parametrize("horizon, gamma", [(1, 1.0), (2, 1.0), (3, 0.5)])
def test_horizon_weights(horizon, gamma):
    """The return of a row whose every line earns 1: a baseline of m a line is m times that."""
    present, _ = random_windows(np.random.default_rng(1))
    found = horizon_weights(present, horizon, gamma)
    np.testing.assert_allclose(found, loop_returns(present, horizon, gamma), atol=1e-6)


def test_line_sums_leave_the_prompt_out():
    rng = np.random.default_rng(0)
    values, lines = rng.normal(size=(4, 30)).astype(np.float32), rng.integers(0, LINES + 1, (4, 30))
    found = np.asarray(line_sums(values, lines, LINES))
    expected = np.array([[values[b][lines[b] == t].sum() for t in range(1, LINES + 1)] for b in range(4)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (4, LINES)


def test_line_terms_collect_by_kind():
    rng = np.random.default_rng(0)
    kinds, lines = rng.integers(0, 10, (3, 60)), rng.integers(0, 4, (3, 60))
    decision, token, log_act = rng.normal(size=(3, 3, 60)).astype(np.float32)
    terms = jax.jit(line_terms, static_argnums=3)(EventLogProbs(decision, token, log_act), kinds, lines, LINES)
    CODE, DECIDE = (Kind.CODE, Kind.CODE_ACT, Kind.CODE_AFTER), (Kind.CODE_ACT, Kind.MARK)
    ones = np.ones_like(token)
    expected = {
        "action": (token, CODE),
        "code_tokens": (ones, CODE),
        "decision": (decision, DECIDE),
        "rationale": (token, (Kind.RATIONALE, Kind.END)),
        "rationale_tokens": (ones, (Kind.RATIONALE,)),
        "log_act": (log_act, DECIDE),
        "think": (ones, (Kind.MARK,)),
    }
    for name, (values, which) in expected.items():
        for b in range(3):
            for t in range(1, LINES + 1):
                total = values[b][(lines[b] == t) & np.isin(kinds[b], which)].sum()
                assert getattr(terms, name)[b, t - 1] == pytest.approx(total, abs=1e-4), name
    np.testing.assert_array_equal(terms.present, np.asarray(terms.code_tokens) > 0)
    np.testing.assert_allclose(terms.latent, terms.decision + terms.rationale)


def terms_of(rng, rows: int = 4) -> LineTerms:
    present = (np.arange(LINES) < rng.integers(1, LINES + 1, (rows, 1))).astype(np.float32)

    def draw(low, high, whole=False):
        x = rng.uniform(low, high, present.shape)
        return jnp.float32((np.round(x) if whole else x) * present)

    return LineTerms(
        draw(-9, -1), draw(1, 6, True), draw(-3, 0), draw(-5, 0),
        draw(0, 4, True), draw(-1, 0), draw(0, 1, True), jnp.float32(present),
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["token_mean", "line_sum"])
@pytest.mark.parametrize("elbo", [False, True])
def test_line_rewards(norm, elbo):
    rng = np.random.default_rng(0)
    terms, ratio = terms_of(rng), rng.normal(size=(4, LINES)).astype(np.float32)
    found = np.asarray(line_rewards(terms, 0.25, norm, ratio if elbo else None))
    for b, t in np.ndindex(*found.shape):
        expected = 0.0
        if terms.present[b, t]:
            tokens = terms.code_tokens[b, t] if norm == "token_mean" else 1.0
            expected = float(terms.action[b, t] / tokens) - 0.25 * float(terms.think[b, t])
            expected += float(ratio[b, t]) if elbo else 0.0
        assert found[b, t] == pytest.approx(expected, abs=1e-5)


def test_importance_weights_and_bounds():
    rng = np.random.default_rng(0)
    pi, q = terms_of(rng), terms_of(rng)
    np.testing.assert_allclose(log_importance_weights(pi), np.sum(pi.action, 1), rtol=1e-6)
    expected = np.sum(pi.action + pi.decision + pi.rationale - q.decision - q.rationale, 1)
    np.testing.assert_allclose(log_importance_weights(pi, q), expected, rtol=1e-5)
    log_w = rng.normal(-1000, 3, (3, 4)).astype(np.float32)
    by_hand = [np.log(np.mean(np.exp(np.float64(row) + 1000))) - 1000 for row in log_w]
    np.testing.assert_allclose(iwae_bound(log_w), by_hand, rtol=1e-6)
    np.testing.assert_allclose(iwae_bound(log_w[:, :1]), log_w[:, 0], rtol=1e-6)


@quick
@given(arrays)
def test_bound_grows_with_the_samples(rng):
    """L_K over all K-subsets of the same weights: its mean never falls with K (Burda et al., 2016)."""
    log_w = rng.normal(0, 2, 4).astype(np.float32)
    means = []
    for K in range(1, 5):
        subsets = np.array([s for s in np.ndindex(*(4,) * K) if len(set(s)) == K])
        means.append(float(np.mean(bound(log_w[subsets]))))
    assert all(low <= high + 1e-5 for low, high in zip(means, means[1:], strict=False))


bound = jax.jit(iwae_bound)


def test_select_rollout_takes_the_first_among_the_best():
    returns = np.array([[[1.0, 5.0, 2.0], [3.0, 5.0, 2.0], [3.0, 4.0, 9.0]]])
    np.testing.assert_array_equal(select_rollout(returns), [[1, 0, 2]])
