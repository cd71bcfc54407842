"""The trace policy and its bounds against sums over every latent, with a real Transformer.

Nothing here is estimated unless it says so: an expectation is a sum over all traces, weighted by their probability.
"""

import itertools

import jax
import numpy as np
import pytest
import scipy.stats

from ra3_jax.data.trace import annotate
from ra3_jax.midtrain.elbo import LineTerms, iwae_bound, line_rewards, log_importance_weights, returns_to_go
from ra3_jax.midtrain.rollouts import score_terms, trace_rows
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.plan import make_plan, rollout_row
from ra3_jax.policy.sampler import Sampler
from tests.policy import world
from tests.policy.world import EVENTS, MODEL, THREE, TWO, Case, Traces, quick_compile

__all__ = ["quick_compile"]

PI, Q = world.params(0), world.params(1)


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
    return [row.astype(np.int32).tobytes() for row in np.concatenate([tokens_RT, kinds_RT], axis=1)]


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
    some = [0, 1, 5, 40, 110, 215]
    traces = [annotate(THREE, three.latents[r], mark_id=world.MARK, newline_id=world.NEWLINE) for r in some]
    rows = trace_rows(traces, batch=len(some), length=three.traces.tokens_RT.shape[1])
    expected = three.traces.take(np.array(some)).batch()
    jax.tree.map(np.testing.assert_array_equal, TokenBatch.from_rows(rows), expected)
