r"""The events of the trace policy pi~ and their log-probabilities (pure array functions).

With f32 logits l over the vocabulary and LSE_A = logsumexp over the ids in A, the policy's events are

    think             log q(think)      = LSE_M - LSE            M: ids whose text begins with "#"
    act               log q(act)        = LSE_notM - LSE
    token after act   log p(x_1 | act)  = l_x - LSE_notM          also the first token after a rationale
    rationale token   log q(y)          = l_y - LSE_R             R: every id that is not masked in a rationale
    end               log q(end)        = LSE_N - LSE_R           N: ids that end the line (N is a part of R)
    any other token   log p(x)          = l_x - LSE

Every LSE takes its own maximum over its own set, so all of these stay finite when a decision saturates in either
direction; a difference of near-equal probabilities (log1p(-p)) never occurs.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ra3_jax.data.codec import EventSets
from ra3_jax.data.trace import Kind


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Events:
    """`EventSets` of the codec on the device: three masks over the model's vocabulary and the canonical ids."""

    mark_V: jax.Array  # bool, M
    newline_V: jax.Array  # bool, N
    banned_V: jax.Array  # bool, masked inside a rationale
    mark_id: int = dataclasses.field(metadata=dict(static=True))
    newline_id: int = dataclasses.field(metadata=dict(static=True))
    eos_id: int = dataclasses.field(metadata=dict(static=True))
    pad_id: int = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def from_sets(cls, sets: EventSets) -> "Events":
        return cls(
            mark_V=jnp.asarray(sets.mark_V),
            newline_V=jnp.asarray(sets.newline_V),
            banned_V=jnp.asarray(sets.banned_V),
            mark_id=sets.mark_id,
            newline_id=sets.newline_id,
            eos_id=sets.eos_id,
            pad_id=sets.pad_id,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EventLogProbs:
    """Log-probs of what happened at a token, f32, 0 where no such event happened."""

    decision: jax.Array  # log q(act) at CODE_ACT, log q(think) at MARK
    token: jax.Array  # the token given the decision; log q(end) at END
    log_act: jax.Array  # log q(act) at CODE_ACT and at MARK: what the decision KL needs


def masked_lse(logits_XV: jax.Array, allowed_V: jax.Array) -> jax.Array:
    """logsumexp over the allowed ids, with the maximum taken over the same ids."""
    return jax.nn.logsumexp(logits_XV, axis=-1, where=allowed_V)


def select_token(logits_XV: jax.Array, tokens_X: jax.Array) -> jax.Array:
    """`logits[..., tokens]`, as a masked sum: unlike a gather it works and fuses on a sharded vocabulary."""
    vocab = jnp.arange(logits_XV.shape[-1])
    return jnp.sum(jnp.where(vocab == tokens_X[..., None], logits_XV, 0.0), axis=-1)


def token_log_probs(logits_XV: jax.Array, tokens_X: jax.Array) -> jax.Array:
    """log p(token) of the plain language model."""
    return select_token(logits_XV, tokens_X) - jax.nn.logsumexp(logits_XV, axis=-1)


def decision_log_probs(logits_XV: jax.Array, events: Events) -> tuple[jax.Array, jax.Array]:
    """(log q(act), log q(think)) at the start of a line."""
    lse = jax.nn.logsumexp(logits_XV, axis=-1)
    return (
        masked_lse(logits_XV, ~events.mark_V) - lse,
        masked_lse(logits_XV, events.mark_V) - lse,
    )


def event_log_probs(logits_XV: jax.Array, tokens_X: jax.Array, kinds_X: jax.Array, events: Events) -> EventLogProbs:
    """Scores each token as the event that its kind says it was (equations at the head of the module).

    `logits_XV` are f32 logits of the position before the token, already divided by the temperature.
    """
    token_logit = select_token(logits_XV, tokens_X)
    lse = jax.nn.logsumexp(logits_XV, axis=-1)
    lse_mark = masked_lse(logits_XV, events.mark_V)
    lse_not_mark = masked_lse(logits_XV, ~events.mark_V)
    lse_newline = masked_lse(logits_XV, events.newline_V)
    lse_rationale = masked_lse(logits_XV, ~events.banned_V)

    def at(kind: Kind, value: jax.Array) -> jax.Array:
        return jnp.where(kinds_X == kind, value, 0.0)

    log_act = lse_not_mark - lse
    return EventLogProbs(
        decision=at(Kind.CODE_ACT, log_act) + at(Kind.MARK, lse_mark - lse),
        token=at(Kind.CODE, token_logit - lse)
        + at(Kind.GENERATED, token_logit - lse)
        + at(Kind.CODE_ACT, token_logit - lse_not_mark)
        + at(Kind.CODE_AFTER, token_logit - lse_not_mark)
        + at(Kind.RATIONALE, token_logit - lse_rationale)
        + at(Kind.END, lse_newline - lse_rationale),
        log_act=at(Kind.CODE_ACT, log_act) + at(Kind.MARK, log_act),
    )
