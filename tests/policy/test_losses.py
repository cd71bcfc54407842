"""Losses against numpy, at and away from the behaviour policy; sums that add up over any cut of the batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ra3_jax.data.packing import pack
from ra3_jax.data.trace import Kind, annotate
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.losses import (
    PolicyGradientBatch,
    action_log_probs,
    is_kind,
    kind_weights,
    next_token_loss,
    policy_gradient_loss,
)
from ra3_jax.train.state import TrainState, state_shardings
from ra3_jax.train.step import make_train_step
from tests.policy import world
from tests.policy.world import EVENTS, MARK, MODEL, NEWLINE, THREE, quick_compile

__all__ = ["quick_compile"]

LATENTS = world.every_latent(THREE, 1)[5::27]  # 8 rows
TRACES = world.lay_out(THREE, LATENTS)
LOW, HIGH = 0.2, 0.3
ACTS = (Kind.CODE_ACT, Kind.MARK, Kind.RATIONALE, Kind.END)


def params(seed: int = 0):
    return world.params(seed)


# --- next tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights", [kind_weights(), kind_weights(0.7, 2.0, 0.25), {Kind.CODE: 1.0}], ids=["one", "three", "code only"]
)
def test_next_token_loss(weights):
    """Packed rows; the weight of a token is that of its kind, and its context ends with its own trace."""
    traces = [annotate(THREE, z, mark_id=MARK, newline_id=NEWLINE) for z in LATENTS]
    rows, _ = pack(traces, 48)
    loss, weight, metrics = loss_of_rows(tuple(sorted(weights.items())), params(), TokenBatch.from_rows(rows))
    nll_RT = -TRACES.lm_log_probs(TRACES.logits(params()))
    w_RT = np.vectorize(lambda kind: weights.get(Kind(kind), 0.0))(TRACES.kinds_RT)
    assert float(loss) == pytest.approx((w_RT * nll_RT).sum(), rel=1e-5)
    assert float(weight) == pytest.approx(w_RT.sum())
    code = np.isin(TRACES.kinds_RT, (Kind.CODE, Kind.CODE_ACT, Kind.CODE_AFTER))
    latent = TRACES.thought_RT
    for name, where in (("code", code), ("latent", latent)):
        found, count = metrics[f"nll/{name}"]
        assert float(found) == pytest.approx(nll_RT[where].sum(), rel=1e-5)
        assert int(count) == where.sum() > 0


@functools.partial(jax.jit, static_argnums=0)
def loss_of_rows(weights, params, batch):
    return next_token_loss(MODEL, dict(weights))(params, batch)


def test_kind_weights_leave_out_what_was_no_choice():
    weights = kind_weights(0.5, 2.0, 3.0)
    assert {Kind.PAD, Kind.PROMPT, Kind.END_CUT}.isdisjoint(weights)
    assert {k for k in weights if weights[k] == 0.5} == {Kind.CODE, Kind.CODE_ACT, Kind.CODE_AFTER, Kind.GENERATED}
    assert weights[Kind.MARK] == 2.0 and weights[Kind.RATIONALE] == weights[Kind.END] == 3.0


def test_is_kind():
    kinds = jnp.asarray([[0, 1, 2], [5, 6, 7]])
    np.testing.assert_array_equal(is_kind(kinds, Kind.CODE, Kind.MARK), [[0, 0, 1], [1, 0, 0]])


# --- policy gradient ----------------------------------------------------------------------------------


def draw_batch(seed: int = 0) -> PolicyGradientBatch:
    """Rollouts of some other policy: ratios on both sides of the clip, advantages of both signs."""
    rng = np.random.default_rng(seed)
    behaviour = TRACES.samples(TRACES.logits(params(0))).log_probs
    logq = action_log_probs(behaviour.decision, behaviour.token, TRACES.kinds_RT)
    acts = np.isin(TRACES.kinds_RT, ACTS)
    decides = np.isin(TRACES.kinds_RT, (Kind.CODE_ACT, Kind.MARK))
    shape = TRACES.kinds_RT.shape
    return PolicyGradientBatch(
        rows=TRACES.batch(),
        advantages_BT=np.float32(rng.normal(size=shape) * acts),
        line_weight_BT=np.float32(decides * (TRACES.lines_RT < 3)),
        behaviour_logp_BT=np.float32(logq + 0.4 * rng.normal(size=shape) * acts),
        reference_logp_BT=np.float32(logq + 0.5 * rng.normal(size=shape) * acts),
    )


def reference_logq(logits_RTV, xp: Any = np):
    """log q of every choice, by the reference: the decision, and the tokens of thoughts."""
    decision, token, log_act = TRACES.events(logits_RTV, xp)
    return decision + token * TRACES.thought_RT, log_act


def test_action_log_probs_are_the_policys_own_choices():
    logits = TRACES.logits(params(0))
    scored = TRACES.samples(logits).log_probs
    found = action_log_probs(scored.decision, scored.token, TRACES.kinds_RT)
    np.testing.assert_allclose(found, reference_logq(logits)[0], atol=1e-6)


@pytest.mark.parametrize("entropy_coef, kl_coef", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.7)])
def test_policy_gradient_loss_is_ppo(entropy_coef, kl_coef):
    """Value, metrics and gradient; a token whose ratio is clipped has no gradient."""
    batch = draw_batch()
    found, gradient = ppo(params(), batch, entropy_coef, kl_coef)
    loss, weight, metrics = found
    logq, log_act = reference_logq(TRACES.logits(params()))
    acts = np.isin(TRACES.kinds_RT, ACTS)
    ratio = np.exp(logq - batch.behaviour_logp_BT)
    A = batch.advantages_BT
    gain = np.where(A >= 0, np.minimum(ratio, 1 + HIGH) * A, np.maximum(ratio, 1 - LOW) * A)
    low, high = acts & (A < 0) & (ratio < 1 - LOW), acts & (A > 0) & (ratio > 1 + HIGH)
    assert low.sum() > 2 and high.sum() > 2
    p = np.exp(log_act)
    decides = np.isin(TRACES.kinds_RT, (Kind.CODE_ACT, Kind.MARK)) * batch.line_weight_BT
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(decides > 0, -p * np.log(p) - (1 - p) * np.log(1 - p), 0.0)
    inverse = np.where(acts, batch.reference_logp_BT - logq, 0.0)
    k3 = np.exp(inverse) - 1 - inverse
    assert float(loss) == pytest.approx(-gain.sum() - entropy_coef * entropy.sum() + kl_coef * k3.sum(), abs=1e-4)
    assert float(weight) == batch.line_weight_BT.sum() > 0
    n = acts.sum()
    for name, (value, count) in {
        "entropy": (entropy.sum(), weight),
        "kl": (k3.sum(), n),
        "clip_ratio/low_mean": (low.sum(), n),
        "clip_ratio/high_mean": (high.sum(), n),
        "mismatch/mean": (np.abs(logq - batch.behaviour_logp_BT)[acts].sum(), n),
    }.items():
        assert float(metrics[name][0]) == pytest.approx(value, abs=1e-4), name
        assert float(metrics[name][1]) == count, name
    slope = np.where(low | high, 0.0, ratio * A)  # of the gain, by log q
    expected = score_gradient(
        params(), slope, kl_coef * np.where(acts, 1 - np.exp(inverse), 0.0), entropy_coef * decides
    )
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@jax.jit
def score_gradient(params, gain_slope, kl_slope, entropy_weight):
    """Gradient of a loss whose slopes by log q are known, the entropy's by autodiff of p log p."""

    def loss(params):
        rows = TRACES.batch()
        logits = MODEL.logits(params, rows.tokens_BT, rows.positions_BT, rows.segment_ids_BT)
        logq, log_act = reference_logq(logits, jnp)
        act = jnp.where(TRACES.decides_RT, jnp.exp(log_act), 0.5)
        entropy = -act * jnp.log(act) - (1 - act) * jnp.log(1 - act)
        # the weight lies on the decision's token, as does decides_RT
        return jnp.sum((kl_slope - gain_slope) * logq) - jnp.sum(entropy_weight * entropy)

    return jax.grad(loss)(params)


@functools.partial(jax.jit, static_argnums=(2, 3))
def ppo(params, batch, entropy_coef, kl_coef):
    loss_fn = policy_gradient_loss(
        MODEL, EVENTS, clip_low=LOW, clip_high=HIGH, entropy_coef=entropy_coef, kl_coef=kl_coef
    )  # fmt: skip

    def loss(params):
        out = loss_fn(params, batch)
        return out[0], out

    (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return out, gradient


def test_on_policy_nothing_is_clipped_and_the_gradient_is_reinforce():
    logits = TRACES.logits(params())
    logq = np.float32(reference_logq(logits)[0])
    batch = draw_batch()
    batch = PolicyGradientBatch(batch.rows, batch.advantages_BT, batch.line_weight_BT, logq, logq)
    (loss, _, metrics), gradient = ppo(params(), batch, 0.0, 0.0)
    assert float(loss) == pytest.approx(-batch.advantages_BT.sum(), abs=1e-4)
    for name in ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "mismatch/mean"):
        assert float(metrics[name][0]) == pytest.approx(0, abs=1e-4)
    zeros = np.zeros(logq.shape)
    expected = score_gradient(params(), batch.advantages_BT, zeros, zeros)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_k3_is_unbiased_for_the_kl():
    """E_q[k3] = KL(q || reference) over the latents of a program, by enumeration."""
    small = world.lay_out(world.TWO, world.every_latent(world.TWO, 1))
    q_logits, pi_logits = small.logits(params(0)), small.logits(params(1))
    q_R, pi_R = (np.exp(small.terms(x).latent.sum(1)) for x in (q_logits, pi_logits))
    kl = np.sum(q_R * np.log(q_R / pi_R))

    def choices(logits):
        decision, token, _ = small.events(logits)
        return np.float32(decision + token * small.thought_RT)

    zeros = np.zeros(small.tokens_RT.shape, np.float32)
    batch = PolicyGradientBatch(small.batch(), zeros, zeros, choices(q_logits), choices(pi_logits))

    @functools.partial(jax.jit, static_argnums=2)
    def loss(params, batch, kl_coef):
        return policy_gradient_loss(MODEL, EVENTS, kl_coef=kl_coef)(params, batch)[0]

    # The loss is a sum over rows: each row's share by leaving only that row in.
    def of_row(r: int) -> float:
        rows = jax.tree.map(lambda x: np.repeat(x[r : r + 1], 2, 0), batch)
        return float(loss(params(0), rows, 1.0)) / 2

    k3_R = np.array([of_row(r) for r in range(small.rows)])
    assert np.sum(q_R * k3_R) == pytest.approx(kl, rel=1e-3)
    assert (k3_R >= -1e-6).all()


# --- sums over any cut --------------------------------------------------------------------------------


def test_losses_are_sums_over_rows():
    batch = draw_batch()
    whole = ppo(params(), batch, 0.0, 0.7)
    parts = [  # twice the same half, so that all have one shape
        ppo(params(), jax.tree.map(lambda x, i=i: np.concatenate([x[i : i + 4]] * 2), batch), 0.0, 0.7) for i in (0, 4)
    ]
    total = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_microbatches_give_the_same_update(one_device_mesh):
    """One step of plain gradient descent on 8 rows is the gradient of the whole batch, divided by its lines."""
    batch, tx = draw_batch(), optax.identity()
    (loss, weight, metrics), gradient = ppo(params(), batch, 0.0, 0.7)
    loss_fn = policy_gradient_loss(MODEL, EVENTS, clip_low=LOW, clip_high=HIGH, kl_coef=0.7)
    shardings = state_shardings(params(), tx, MODEL.param_shardings(one_device_mesh), one_device_mesh)
    step = make_train_step(loss_fn, tx, one_device_mesh, shardings, accumulate=4)
    state = jax.device_put(TrainState.create(jax.tree.map(jnp.copy, params()), tx), shardings)
    state, found = step(state, batch, np.float32(1.0))
    for p, q, g in zip(*map(jax.tree.leaves, (params(), state.params, gradient)), strict=True):
        np.testing.assert_allclose(np.asarray(p) - np.asarray(q), g / weight, atol=2e-6)
    assert float(found["loss"]) == pytest.approx(float(loss / weight), rel=1e-5)
    for name, (total, count) in metrics.items():
        assert float(found[name]) == pytest.approx(float(total / count), abs=1e-5)
