r"""The temporal ELBO on lines, as pure array functions (jnp; the device's and the host's arrays both do).

    log p(a | s_0) >= E_q sum_t [ log pi(a_t | s_t, z_<=t) - KL(q(z_t | s_t, z_<t) || p(z_t | s_t, z_{t-1})) ]

Training uses J_c: line reward r_t = norm(log pi~(a_t | .)) - c 1[think], return-to-go over a horizon of T lines.
Evaluation uses importance weights: log w = sum_t [ log pi~(a_t | .) + log pi~(z_t | .) - log q(z_t | .) ],
L_K = E log (1/K) sum_k w_k, which is L_1 (the ELBO) at K = 1 and rises to log p(a) with K. J_c is not a bound.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from ra3_jax.data.trace import CODE_KINDS, Kind
from ra3_jax.policy.batch import Array
from ra3_jax.policy.events import EventLogProbs
from ra3_jax.policy.losses import is_kind


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LineTerms:
    """What each line of each rollout contributed; all [B, L], 0 at lines that a row does not have."""

    action: jax.Array  # log pi~(a_t | s_t, z_<=t): tokens of the line given the decision
    code_tokens: jax.Array  # number of tokens of the action
    decision: jax.Array  # log-prob of act or think
    rationale: jax.Array  # log-prob of the thought's tokens and of its end
    rationale_tokens: jax.Array  # number of tokens of the thought, mark and newline not counted
    log_act: jax.Array  # log q(act), whichever was chosen
    think: jax.Array  # 1.0 where a thought precedes the line
    present: jax.Array  # 1.0 where the row has the line

    @property
    def latent(self) -> jax.Array:
        """log-prob of z_t."""
        return self.decision + self.rationale


def line_sums(values_BT: Array, lines_BT: Array, n_lines: int) -> jax.Array:
    """Sums values by line: [B, T] with line numbers 1..L -> [B, L]. Line 0 (the prompt) is left out."""
    rows = jnp.arange(values_BT.shape[0])[:, None]
    table_BL = jnp.zeros((values_BT.shape[0], n_lines + 1), jnp.float32)
    return table_BL.at[rows, lines_BT].add(values_BT.astype(jnp.float32))[:, 1:]


def line_terms(log_probs: EventLogProbs, kinds_BT: Array, lines_BT: Array, n_lines: int) -> LineTerms:
    """Collects the log-probs of tokens by line. Rows hold one trace each."""
    kinds_BT = jnp.asarray(kinds_BT)

    def collect(values_BT, *kinds: Kind) -> jax.Array:
        return line_sums(jnp.where(is_kind(kinds_BT, *kinds), values_BT, 0.0), lines_BT, n_lines)

    ones_BT = jnp.ones(kinds_BT.shape, jnp.float32)
    return LineTerms(
        action=collect(log_probs.token, *CODE_KINDS),
        code_tokens=collect(ones_BT, *CODE_KINDS),
        decision=collect(log_probs.decision, Kind.CODE_ACT, Kind.MARK),
        rationale=collect(log_probs.token, Kind.RATIONALE, Kind.END),
        rationale_tokens=collect(ones_BT, Kind.RATIONALE),
        log_act=collect(log_probs.log_act, Kind.CODE_ACT, Kind.MARK),
        think=collect(ones_BT, Kind.MARK),
        present=jnp.minimum(collect(ones_BT, *CODE_KINDS), 1.0),
    )


def line_rewards(
    terms: LineTerms, c: float, norm: Literal["token_mean", "line_sum"], log_ratio_BL: Array | None = None
) -> jax.Array:
    """r_t = norm(log pi~(a_t | .)) - c 1[think], [B, L].

    `token_mean` divides by the tokens of the line; the published scale of c makes sense for that one only.
    With `log_ratio_BL` = log pi~(z_t) - log q(z_t) added, the rewards of a program sum to its log w (c = 0, line_sum).
    """
    reward_BL = terms.action
    if norm == "token_mean":
        reward_BL = reward_BL / jnp.maximum(terms.code_tokens, 1.0)
    reward_BL = reward_BL - c * terms.think
    if log_ratio_BL is not None:
        reward_BL = reward_BL + log_ratio_BL
    return reward_BL * terms.present


def returns_to_go(reward_BL: Array, horizon: int, gamma: float = 1.0) -> jax.Array:
    """R_t = sum_{k=t}^{t+T-1} gamma^{k-t} r_k, [B, L]; lines that a row lacks count as 0."""
    padded = jnp.pad(jnp.asarray(reward_BL), ((0, 0), (0, horizon - 1)))
    n_lines = reward_BL.shape[1]
    return sum((gamma**k * padded[:, k : k + n_lines] for k in range(horizon)), jnp.zeros_like(reward_BL))


def complete_returns(present_BL: Array, horizon: int, reaches_end_B: Array) -> jax.Array:
    """1.0 at lines whose return saw all of its T lines, or the true end of the program. [B, L].

    The first line present is s; a row that stops before the program's end keeps t <= s + L - T only.
    """
    ahead_BL = jnp.flip(jnp.cumsum(jnp.flip(present_BL, 1), 1), 1)  # lines from t on, t included
    whole_BL = (ahead_BL >= horizon) | jnp.asarray(reaches_end_B)[:, None]
    return present_BL * whole_BL


def leave_one_out(returns_PGL: Array) -> jax.Array:
    """b_t = mean of the other rollouts' R_t. [programs, G, L]; zeros for G = 1.

    The expert's lines are the same in all rollouts of a program, so line t of one is comparable with line t of another,
    and since the rollouts are independent the baseline does not bias the gradient.
    """
    group = returns_PGL.shape[1]
    if group == 1:
        return jnp.zeros_like(returns_PGL)
    return (jnp.sum(returns_PGL, axis=1, keepdims=True) - returns_PGL) / (group - 1)


def horizon_weights(present_BL: Array, horizon: int, gamma: float) -> jax.Array:
    """sum_k gamma^k over the lines that R_t really sums: what turns a mean line reward into a return. [B, L]."""
    return returns_to_go(jnp.asarray(present_BL, jnp.float32), horizon, gamma)


def select_rollout(returns_PGL: Array) -> jax.Array:
    """Hard EM: for each line the rollout with the best T-line return, [programs, L] (the first among equals)."""
    return jnp.argmax(returns_PGL, axis=1)


def log_importance_weights(terms: LineTerms, proposal: LineTerms | None = None) -> jax.Array:
    """log w [B] of each row. `terms` are under pi~; without a proposal q = pi~ and the latent terms cancel."""
    log_w_BL = terms.action
    if proposal is not None:
        log_w_BL = log_w_BL + terms.latent - proposal.latent
    return jnp.sum(log_w_BL, axis=1)


def iwae_bound(log_w_PK: Array) -> jax.Array:
    """log (1/K) sum_k w_k of each program, [programs]. K = 1 gives the ELBO sample."""
    return jax.nn.logsumexp(log_w_PK, axis=1) - math.log(log_w_PK.shape[1])


def decision_kl(log_act_BL: Array, alpha: float) -> jax.Array:
    """KL(Bern(q_act) || Bern(alpha)) in nats at each line, finite at q_act = 0 and 1. [B, L]."""
    act_BL = jnp.exp(log_act_BL)
    think_BL = -jnp.expm1(log_act_BL)
    log_think_BL = jnp.log(jnp.maximum(think_BL, 1e-30))
    return act_BL * (log_act_BL - math.log(alpha)) + think_BL * (log_think_BL - math.log1p(-alpha))
