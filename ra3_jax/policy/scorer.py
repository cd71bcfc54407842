"""The log-probs of given rows in one parallel pass: the reward of the E-step, the bounds, the check on the sampler."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ra3_jax.core.mesh import RULES, constrain
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.events import EventLogProbs, Events, event_log_probs, token_log_probs


def previous_hidden(model: LanguageModel, params, batch: TokenBatch) -> jax.Array:
    """hidden_BTD whose position t holds what predicts token t (zeros at t = 0: never scored, a prompt token)."""
    hidden_BTD = model.hidden(params, batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT)
    return jnp.pad(hidden_BTD[:, :-1], ((0, 0), (1, 0), (0, 0)))


def score(
    model: LanguageModel,
    params,
    batch: TokenBatch,
    events: Events,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> EventLogProbs:
    """Log-probs [B, T] of every token as the event that it was.

    `chunk` tokens on each device go through the vocabulary at once (and are recomputed in the backward pass), so that
    logits are never held whole; None takes all at once.
    """

    def of(hidden_BXD, tokens_BX, kinds_BX) -> EventLogProbs:
        logits_BXV = model.unembed(params, hidden_BXD) / temperature
        return event_log_probs(logits_BXV, tokens_BX, kinds_BX, events)

    hidden_BTD = previous_hidden(model, params, batch)
    return over_time(of, chunk, hidden_BTD, batch.tokens_BT, batch.kinds_BT)


def score_plain(model: LanguageModel, params, batch: TokenBatch, *, chunk: int | None = None) -> jax.Array:
    """Plain next-token log-probs [B, T] (0 at padding and at the first token of a segment)."""

    def of(hidden_BXD, tokens_BX) -> jax.Array:
        return token_log_probs(model.unembed(params, hidden_BXD), tokens_BX)

    logp_BT = over_time(of, chunk, previous_hidden(model, params, batch), batch.tokens_BT)
    return jnp.where((batch.segment_ids_BT > 0) & (batch.positions_BT > 0), logp_BT, 0.0)


SCORED_AT_ONCE = 8192
"""Tokens on each device: of more, what the feed-forward layers hold in between would be the largest thing there is."""


def in_parts(function, chunk: int | None, batch: TokenBatch):
    """`function(rows)` of a batch too large for one forward pass, without gradient; results are joined.

    Some rows of every device at a time (none moves), as few as SCORED_AT_ONCE says; None as `chunk`: all.
    """
    rows, length = batch.tokens_BT.shape
    each = rows // _data_shards()
    if chunk is None or rows % _data_shards():
        return function(batch)
    parts = next(n for n in range(1, each + 1) if each % n == 0 and (n == each or each // n * length <= SCORED_AT_ONCE))
    if parts == 1:
        return function(batch)

    def split(x_BT):
        x = jnp.swapaxes(x_BT.reshape(rows // parts, parts, *x_BT.shape[1:]), 0, 1)
        return jax.lax.with_sharding_constraint(x, P(None, RULES.batch))

    def join(x):
        x = jnp.swapaxes(x, 0, 1)
        return constrain(x.reshape(rows, *x.shape[2:]), "batch", *[None] * (x.ndim - 2))

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, batch)))


def _data_shards() -> int:
    sizes = jax.sharding.get_abstract_mesh().shape
    return sizes["data"] * sizes["fsdp"]


def over_time(function, chunk: int | None, *arrays_BT):
    """`function` over slices along axis 1, each rematerialised; results are joined along axis 1.

    A slice holds `chunk` tokens on each device, over all of its rows; None: everything at once.
    """
    if chunk is None:
        return function(*arrays_BT)
    rows = max(1, arrays_BT[0].shape[0] // _data_shards())
    return _in_slices(function, max(1, chunk // rows), *arrays_BT)


def _in_slices(function, chunk: int, *arrays_BT):
    length = arrays_BT[0].shape[1]
    if chunk >= length:
        return function(*arrays_BT)
    if rest := length % chunk:
        whole = _in_slices(function, chunk, *(x_BT[:, :-rest] for x_BT in arrays_BT))
        tail = jax.checkpoint(function)(*(x_BT[:, -rest:] for x_BT in arrays_BT))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), whole, tail)

    def split(x_BT):
        x = x_BT.reshape(x_BT.shape[0], length // chunk, chunk, *x_BT.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], length, *x.shape[3:])

    out = jax.lax.map(lambda xs: jax.checkpoint(function)(*xs), tuple(map(split, arrays_BT)))
    return jax.tree.map(join, out)
