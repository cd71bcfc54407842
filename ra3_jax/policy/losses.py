"""Losses as `loss_fn(params, batch) -> (loss_sum, weight_sum, metrics)`, the one contract with the trainer.

Sums and weights stay apart, so accumulation over microbatches and devices is exact; metrics are such pairs too.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from ra3_jax.data.trace import CODE_KINDS, LATENT_KINDS, Kind
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.batch import Array, TokenBatch
from ra3_jax.policy.events import Events
from ra3_jax.policy.scorer import score, score_plain

Metrics = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[..., tuple[jax.Array, jax.Array, Metrics]]


def is_kind(kinds_X: jax.Array, *kinds: Kind) -> jax.Array:
    """True where the kind is one of `kinds`."""
    return jnp.any(kinds_X[..., None] == jnp.asarray(kinds), axis=-1)


def kind_weights(code: float = 1.0, decision: float = 1.0, rationale: float = 1.0) -> dict[Kind, float]:
    """Loss weight per kind. A newline given for free was no event and is not learned; neither is the prompt."""
    return {
        **dict.fromkeys((*CODE_KINDS, Kind.GENERATED), code),
        Kind.MARK: decision,
        Kind.RATIONALE: rationale,
        Kind.END: rationale,
    }


def next_token_loss(model: LanguageModel, weights: Mapping[Kind, float], *, chunk: int | None = None) -> LossFn:
    """Weighted next-token cross-entropy on traces: NTP on plain programs, the M-step on annotated ones."""
    table = [weights.get(kind, 0.0) for kind in Kind]

    def loss_fn(params, batch: TokenBatch) -> tuple[jax.Array, jax.Array, Metrics]:
        nll_BT = -score_plain(model, params, batch, chunk=chunk)
        weight_BT = jnp.asarray(table, jnp.float32)[batch.kinds_BT]
        code_BT = is_kind(batch.kinds_BT, *CODE_KINDS)
        latent_BT = is_kind(batch.kinds_BT, *LATENT_KINDS)
        metrics = {
            "nll/code": (jnp.sum(nll_BT * code_BT), jnp.sum(code_BT)),
            "nll/latent": (jnp.sum(nll_BT * latent_BT), jnp.sum(latent_BT)),
        }
        return jnp.sum(nll_BT * weight_BT), jnp.sum(weight_BT), metrics

    return loss_fn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyGradientBatch:
    """Rollouts with what the update needs of them. Arrays are [B, T]; tokens that are no action have advantage 0."""

    rows: TokenBatch
    advantages_BT: Array  # of the line, at every decision and latent token of the line
    line_weight_BT: Array  # 1 at the decision of each line whose return is complete: the loss is a mean over those
    behaviour_logp_BT: Array  # log q of each action when it was sampled
    reference_logp_BT: Array  # log pi~ of each action, for the KL term


def action_log_probs(decision_BT: Array, token_BT: Array, kinds_BT: Array) -> jax.Array:
    """log q of what the policy chose at each token: decisions, rationale tokens, ends. 0 at the expert's tokens."""
    chosen_BT = is_kind(jnp.asarray(kinds_BT), Kind.RATIONALE, Kind.END)
    return decision_BT + jnp.where(chosen_BT, token_BT, 0.0)


def policy_gradient_loss(
    model: LanguageModel,
    events: Events,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    entropy_coef: float = 0.0,
    kl_coef: float = 0.0,
    chunk: int | None = None,
) -> LossFn:
    r"""Clipped policy gradient on decision and rationale tokens (PPO, eq. 7, per token).

    loss = - sum_i min(rho_i A_i, clip(rho_i, 1 - low, 1 + high) A_i) / lines, with rho_i = q(i) / q_behaviour(i).
    At the behaviour policy itself its gradient is that of REINFORCE, - sum_i A_i grad log q(i) / lines.
    `entropy_coef` rewards the entropy of the act/think decision; `kl_coef` charges the k3 estimate of KL(q || pi~).
    """

    def loss_fn(params, batch: PolicyGradientBatch) -> tuple[jax.Array, jax.Array, Metrics]:
        rows = batch.rows
        scores = score(model, params, rows, events, chunk=chunk)
        logq_BT = action_log_probs(scores.decision, scores.token, rows.kinds_BT)
        # Beyond e^20 a ratio is clipped anyway, but its overflow times a zero gradient would be NaN.
        log_ratio_BT = jnp.clip(logq_BT - batch.behaviour_logp_BT, -20.0, 20.0)
        ratio_BT = jnp.exp(log_ratio_BT)
        clipped_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high)
        advantage_BT = batch.advantages_BT
        surrogate_BT = jnp.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
        decides_BT = is_kind(rows.kinds_BT, Kind.CODE_ACT, Kind.MARK) * batch.line_weight_BT
        entropy_BT = decision_entropy(scores.log_act, scores.decision, rows.kinds_BT) * decides_BT
        acts_BT = is_kind(rows.kinds_BT, Kind.CODE_ACT, Kind.MARK, Kind.RATIONALE, Kind.END)
        log_inverse_BT = jnp.where(acts_BT, jnp.clip(batch.reference_logp_BT - logq_BT, -20.0, 20.0), 0.0)
        k3_BT = jnp.exp(log_inverse_BT) - 1 - log_inverse_BT
        lines = jnp.sum(batch.line_weight_BT)
        loss = -jnp.sum(surrogate_BT)
        if entropy_coef:
            loss -= entropy_coef * jnp.sum(entropy_BT)
        if kl_coef:
            loss += kl_coef * jnp.sum(k3_BT)
        n_acts = jnp.sum(acts_BT)
        low_BT = (ratio_BT < 1 - clip_low) & (advantage_BT < 0)
        high_BT = (ratio_BT > 1 + clip_high) & (advantage_BT > 0)
        metrics = {
            "entropy": (jnp.sum(entropy_BT), lines),
            "kl": (jnp.sum(k3_BT), n_acts),
            "clip_ratio/low_mean": (jnp.sum(low_BT & acts_BT), n_acts),
            "clip_ratio/high_mean": (jnp.sum(high_BT & acts_BT), n_acts),
            "mismatch/mean": (jnp.sum(jnp.abs(log_ratio_BT) * acts_BT), n_acts),
        }
        return loss, lines, metrics

    return loss_fn


def decision_entropy(log_act_BT: jax.Array, decision_BT: jax.Array, kinds_BT: jax.Array) -> jax.Array:
    """Entropy in nats of the act/think decision at each decision token, finite when it saturates.

    The probability of the decision not taken is 1 - exp(decision): its logarithm is bounded from below before use.
    """
    taken_BT = jnp.where(is_kind(kinds_BT, Kind.MARK), decision_BT, log_act_BT)
    other_BT = jnp.maximum(-jnp.expm1(taken_BT), 1e-12)
    return -(jnp.exp(taken_BT) * taken_BT + other_BT * jnp.log(other_BT))
