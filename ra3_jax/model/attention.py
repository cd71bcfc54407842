"""Grouped-query attention and its two masks (packed rows, rows of a cache)."""

import jax
import jax.numpy as jnp

# Finite, so that a query without any valid slot gets a uniform average instead of NaN. Such queries
# are padding.
MASKED = -1e30


def attend(q_BTKGE: jax.Array, k_BKSE: jax.Array, v_BKSE: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(E)) v over the slots where the mask is true; returns [B, T, K, G, E].

    G query heads share one key/value head: the group is an axis of the einsum, keys are never
    repeated. Scores and softmax are float32. The division by the softmax's sum comes after the
    weighted sum of values, on E numbers a query instead of S.
    """
    q_BTKGE = q_BTKGE * q_BTKGE.shape[-1] ** -0.5
    scores_BKGTS = jnp.einsum("btkge,bkse->bkgts", q_BTKGE, k_BKSE, preferred_element_type=jnp.float32)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASKED)
    top_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(axis=-1, keepdims=True))
    weights_BKGTS = jnp.exp(scores_BKGTS - top_BKGT1)
    total_BKGT = weights_BKGTS.sum(axis=-1)
    out_BTKGE = jnp.einsum(
        "bkgts,bkse->btkge",
        weights_BKGTS.astype(v_BKSE.dtype),
        v_BKSE,
        preferred_element_type=jnp.float32,
    )
    return (out_BTKGE / jnp.moveaxis(total_BKGT, 3, 1)[..., None]).astype(v_BKSE.dtype)


def packed_mask(segment_ids_BT: jax.Array) -> jax.Array:
    """Causal within a segment: [B, T, T] bool."""
    length = segment_ids_BT.shape[1]
    causal_TT = jnp.tri(length, dtype=bool)
    return causal_TT & (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])


def cache_mask(positions_BW: jax.Array, slots: int) -> jax.Array:
    """A token sees the slots up to its own: [B, W, S] bool. Slots beyond hold leftovers of invalid
    window slots.
    """
    return jnp.arange(slots) <= positions_BW[:, :, None]


def continues(segment_ids_BT: jax.Array) -> jax.Array:
    """Whether a token has a predecessor in its own segment: [B, T] bool."""
    same_BT = segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]
    return jnp.pad(same_BT, ((0, 0), (1, 0)), constant_values=False)
