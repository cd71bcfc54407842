"""Events against masses of plain probabilities, and what happens when a decision saturates."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.data.trace import Kind
from ra3_jax.midtrain.elbo import decision_kl, line_rewards, line_terms, returns_to_go
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.events import (
    Events,
    decision_log_probs,
    event_log_probs,
    masked_lse,
    select_token,
    token_log_probs,
)
from ra3_jax.policy.losses import PolicyGradientBatch, decision_entropy, policy_gradient_loss
from ra3_jax.policy.plan import rollout_row
from ra3_jax.policy.sampler import Sampler
from ra3_jax.policy.scorer import score
from tests.policy import world
from tests.policy.world import (
    BANNED_V,
    BIGRAM,
    EVENTS,
    M_V,
    MARK,
    N_V,
    NEWLINE,
    A,
    V,
    even_plan,
    quick_compile,
    table,
)

__all__ = ["quick_compile"]

KINDS = list(Kind)


def every_event() -> tuple[np.ndarray, np.ndarray]:
    """(tokens, kinds) of every pair."""
    pairs = np.array(list(itertools.product(range(V), KINDS)), np.int32)
    return pairs[:, 0], pairs[:, 1]


def masses(logits_V: np.ndarray, token: int, kind: int) -> tuple[float, float, float]:
    """(decision, token, log_act) of one token, from probabilities."""
    p = np.exp(np.float64(logits_V) - np.max(logits_V))
    p /= p.sum()
    decision = log_act = of_token = 0.0
    if kind in (Kind.CODE_ACT, Kind.MARK):
        log_act = np.log(p[~M_V].sum())
        decision = log_act if kind == Kind.CODE_ACT else np.log(p[M_V].sum())
    if kind in (Kind.CODE, Kind.GENERATED):
        of_token = np.log(p[token])
    elif kind in (Kind.CODE_ACT, Kind.CODE_AFTER):
        of_token = np.log(p[token] / p[~M_V].sum())
    elif kind == Kind.RATIONALE:
        of_token = np.log(p[token] / p[~BANNED_V].sum())
    elif kind == Kind.END:
        of_token = np.log(p[N_V].sum() / p[~BANNED_V].sum())
    return decision, of_token, log_act


scored_events = jax.jit(event_log_probs)


def test_events_against_masses():
    tokens_X, kinds_X = every_event()
    logits_XV = np.random.default_rng(0).normal(0, 2, (len(tokens_X), V)).astype(np.float32)
    found = scored_events(logits_XV, tokens_X, kinds_X, EVENTS)
    expected = np.array([masses(*x) for x in zip(logits_XV, tokens_X, kinds_X, strict=True)])
    for i, name in enumerate(("decision", "token", "log_act")):
        np.testing.assert_allclose(getattr(found, name), expected[:, i], atol=2e-6)
    act, think = jax.jit(decision_log_probs)(logits_XV, EVENTS)
    np.testing.assert_allclose(np.exp(np.float64(act)) + np.exp(np.float64(think)), 1.0, atol=1e-6)
    np.testing.assert_allclose(act, [masses(x, 0, Kind.CODE_ACT)[0] for x in logits_XV], atol=2e-6)
    code = scored_events(logits_XV, tokens_X, np.full_like(kinds_X, Kind.CODE), EVENTS)
    np.testing.assert_allclose(jax.jit(token_log_probs)(logits_XV, tokens_X), code.token, atol=1e-6)


def test_what_may_happen_at_a_position_has_mass_one():
    logits_V = np.random.default_rng(1).normal(0, 2, V).astype(np.float32)
    tokens_X, kinds_X = every_event()
    scored = scored_events(np.tile(logits_V, (len(tokens_X), 1)), tokens_X, kinds_X, EVENTS)
    mass_X = np.exp(np.float64(scored.decision + scored.token))

    def mass(kind: Kind, *tokens) -> float:
        return mass_X[(kinds_X == kind) & np.isin(tokens_X, tokens)].sum()

    words = np.flatnonzero(~BANNED_V & ~N_V)
    codes = np.flatnonzero(~M_V)
    assert mass(Kind.RATIONALE, *words) + mass(Kind.END, NEWLINE) == pytest.approx(1, abs=1e-6)
    assert mass(Kind.CODE_ACT, *codes) + mass(Kind.MARK, MARK) == pytest.approx(1, abs=1e-6)
    assert mass(Kind.CODE_AFTER, *codes) == pytest.approx(1, abs=1e-6)
    assert mass(Kind.CODE, *range(V)) == pytest.approx(1, abs=1e-6)
    assert mass(Kind.END_CUT, NEWLINE) == 1.0  # no event


def test_from_sets_keeps_every_field():
    for field in dataclasses.fields(Events):
        np.testing.assert_array_equal(getattr(EVENTS, field.name), getattr(world.SETS, field.name))


@pytest.mark.parametrize("size", [1e4, -1e4, 3e38])
def test_masked_lse_of_saturated_logits(size):
    logits_XV = jnp.where(M_V, size, 0.0)[None]
    assert np.isfinite(masked_lse(logits_XV, jnp.asarray(M_V))).all()
    np.testing.assert_allclose(masked_lse(logits_XV, jnp.asarray(~M_V)), np.log((~M_V).sum()), rtol=1e-6)


@jax.jit
def scores_and_gradient(logits_XV, tokens_X, kinds_X):
    def total(logits_XV):
        scored = event_log_probs(logits_XV, tokens_X, kinds_X, EVENTS)
        return jnp.sum(scored.decision + scored.token + scored.log_act), scored

    (_, scored), gradient = jax.value_and_grad(total, has_aux=True)(logits_XV)
    return scored, gradient


@jax.jit
def entropy_and_gradient(decision_X, kinds_X):
    return jax.value_and_grad(lambda d: jnp.sum(decision_entropy(d, d, kinds_X)))(decision_X)


@pytest.mark.parametrize("lean", [1e4, -1e4])
@pytest.mark.parametrize("group", ["mark", "newline", "banned"])
def test_saturated_events_are_finite_with_finite_gradients(lean, group):
    """Every event, also the ones of probability exp(-10000): the log is finite and right, and so is its gradient."""
    members_V = {"mark": M_V, "newline": N_V, "banned": BANNED_V}[group]
    tokens_X, kinds_X = every_event()
    noise_XV = np.random.default_rng(2).normal(0, 1, (len(tokens_X), V))
    logits_XV = jnp.asarray(np.where(members_V, lean, 0.0) + noise_XV, jnp.float32)

    scored, gradient = scores_and_gradient(logits_XV, tokens_X, kinds_X)
    for x in (*jax.tree.leaves(scored), gradient):
        assert np.isfinite(x).all()
    mark, code = kinds_X == Kind.MARK, kinds_X == Kind.CODE_ACT
    if group == "mark":
        taken, other = (mark, code) if lean > 0 else (code, mark)
        np.testing.assert_allclose(scored.decision[taken], 0.0, atol=1e-6)
        np.testing.assert_allclose(scored.decision[other], -1e4, rtol=1e-3)
    entropy, slope = entropy_and_gradient(scored.decision, kinds_X)
    assert np.isfinite(entropy) and np.isfinite(slope).all()


def test_decision_entropy_is_p_log_p():
    log_act = jnp.log(jnp.asarray([0.5, 0.1, 0.999, 1e-6]))
    for kind, taken in ((Kind.CODE_ACT, log_act), (Kind.MARK, jnp.log1p(-jnp.exp(log_act)))):
        entropy = decision_entropy(log_act, taken, jnp.full(4, kind))
        p = np.exp(np.float64(log_act))
        np.testing.assert_allclose(entropy, -p * np.log(p) - (1 - p) * np.log1p(-p), rtol=2e-3, atol=1e-6)
    for taken in (0.0, -1e4):
        assert decision_entropy(jnp.asarray([taken]), jnp.asarray([taken]), jnp.asarray([Kind.MARK]))[0] < 1e-9


def test_decision_kl_is_its_formula():
    act = np.array([0.5, 0.9, 0.01, 0.99, 1e-5])
    for alpha in (0.9, 0.01):
        expected = act * np.log(act / alpha) + (1 - act) * np.log((1 - act) / (1 - alpha))
        found = decision_kl(jnp.log(jnp.asarray(act, jnp.float32)), alpha)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        saturated = decision_kl(jnp.asarray([0.0, -1e4, 1e-7]), alpha)
        np.testing.assert_allclose(saturated, [-np.log(alpha), -np.log1p(-alpha), -np.log(alpha)], atol=1e-4)
    assert decision_kl(jnp.log(jnp.asarray([0.9])), 0.9)[0] == pytest.approx(0, abs=1e-6)


def policy_gradient_batch(rows, scored, advantage) -> PolicyGradientBatch:
    decision, token = np.asarray(scored.decision), np.asarray(scored.token)
    kinds = np.asarray(rows.kinds_BT)
    logq = decision + token * np.isin(kinds, (Kind.RATIONALE, Kind.END))
    acts = np.isin(kinds, (Kind.MARK, Kind.CODE_ACT, Kind.RATIONALE, Kind.END))
    decides = np.isin(kinds, (Kind.MARK, Kind.CODE_ACT))
    return PolicyGradientBatch(
        rows, np.float32(advantage * acts), np.float32(decides), np.float32(logq), np.float32(logq)
    )


@pytest.mark.parametrize("lean", [1e4, -1e4])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_policy_gradient_survives_saturation(lean, advantage):
    """Rows that think and rows that do not, under a policy sure of one or the other: loss and gradient are finite."""
    logits_VV = table(NEWLINE={MARK: lean, world.MARKS: lean}, A={MARK: lean}, MARK={NEWLINE: -lean})
    program = world.program([A, NEWLINE], [NEWLINE], [world.EOS])
    traces = world.lay_out(program, world.every_latent(program, 1)[::17])
    rows = traces.batch()
    scored, terms, reward, rest = saturated_terms(logits_VV, rows)
    assert np.min(scored.decision) < -9e3
    batch = policy_gradient_batch(rows, scored, advantage)
    loss, metrics, gradient = loss_and_gradient(logits_VV, batch)
    for x in (loss, gradient, *jax.tree.leaves((metrics, terms, reward, rest))):
        assert np.isfinite(x).all()


@jax.jit
def saturated_terms(logits_VV, rows):
    scored = score(BIGRAM, logits_VV, rows, EVENTS)
    terms = line_terms(scored, rows.kinds_BT, rows.lines_BT, 3)
    reward = line_rewards(terms, 0.05, "token_mean")
    return scored, terms, reward, (returns_to_go(reward, 2), decision_kl(terms.log_act, 0.9))


@jax.jit
def loss_and_gradient(logits_VV, batch):
    loss_fn = policy_gradient_loss(BIGRAM, EVENTS, entropy_coef=0.1, kl_coef=0.1)

    def loss(logits_VV):
        loss, _, metrics = loss_fn(logits_VV, batch)
        return loss, metrics

    (loss, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(logits_VV)
    return loss, metrics, gradient


@pytest.mark.parametrize("lean", [1e4, -1e4])
def test_sampler_survives_saturation(lean):
    """A sure policy does what it is sure of, and says so with log-probs that are finite."""
    logits_VV = table(NEWLINE={MARK: lean}, A={MARK: lean}, MARK={NEWLINE: 1e4})
    plan = even_plan([rollout_row(world.THREE, 2, sample_index=i) for i in range(4)])
    samples = Sampler(BIGRAM, window=2).run(logits_VV, plan, EVENTS, jax.random.key(0))
    marks = np.sum(np.asarray(samples.kinds_BS) == Kind.MARK)
    ends_in_space = 4  # line 2 of THREE ends in another newline id, whose row of the table is flat
    assert 8 <= marks <= 8 + ends_in_space if lean > 0 else marks <= ends_in_space
    for x in jax.tree.leaves(samples.log_probs):
        assert np.isfinite(x).all()


def test_bfloat16_model_that_saturates():
    """Logits of some thousands from a bfloat16 model: sampler and scorer stay finite, in both directions."""
    jax.config.update("jax_disable_most_optimizations", False)  # else this CPU cannot multiply bfloat16
    config = dataclasses.replace(world.MODEL.config, dtype="bfloat16")
    model = LanguageModel(config)
    embed_VD = world.params(0)["embed"]
    embed_VD = 1e4 * embed_VD.at[MARK].set(2 * embed_VD[NEWLINE])  # the size is normed away except in the logits
    params = world.params(0) | {"embed": embed_VD}
    rows = [rollout_row(world.THREE, 3, sample_index=i) for i in range(8)]
    samples = Sampler(model, window=2).run(params, even_plan(rows), EVENTS, jax.random.key(0))
    scored = jax.jit(functools.partial(score, model))(params, samples.token_batch(), EVENTS)
    for log_probs in (samples.log_probs, scored):
        for x in jax.tree.leaves(log_probs):
            assert np.isfinite(x).all()
    decides = np.isin(samples.kinds_BS, (Kind.MARK, Kind.CODE_ACT))
    log_act = np.asarray(scored.log_act)[decides].reshape(8, 3)
    assert (log_act[:, 1] < -1e3).all() and (log_act[:, [0, 2]] > -1e-6).all()  # thinks before line 2, sure of both
    np.testing.assert_allclose(np.asarray(scored.decision)[decides], 0.0, atol=1e-6)


def test_select_token_is_a_gather():
    rng = np.random.default_rng(3)
    logits_XV, tokens_X = rng.normal(size=(2, 5, V)).astype(np.float32), rng.integers(0, V, (2, 5))
    expected = np.take_along_axis(logits_XV, tokens_X[..., None], -1)[..., 0]
    np.testing.assert_array_equal(select_token(jnp.asarray(logits_XV), jnp.asarray(tokens_X)), expected)
