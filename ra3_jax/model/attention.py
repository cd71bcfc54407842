"""Grouped-query attention over packed rows and over a cache, and which kernel computes it where."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from ra3_jax.model.config import ModelConfig
from ra3_jax.model.splash import fits_splash

# Finite, so that a query without any valid slot gets a uniform average instead of NaN. Such queries
# are padding.
MASKED = -1e30


def choose_kernel(config: ModelConfig, length: int) -> Literal["einsum", "splash", "cudnn"]:
    """What attends among packed rows of this length on the devices of `jax.set_mesh`.

    "auto" asks the mesh, and not the default backend: a program that a machine without any TPU compiles for a described
    slice of them must be the one that runs there.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = device.device_kind if device is not None else "cpu"  # it has no platform before jax 0.10.1
    platform = "cpu" if kind == "cpu" else "tpu" if kind.startswith("TPU") else "gpu"
    if config.attention == "splash" or (config.attention == "auto" and platform == "tpu"):
        return "splash" if fits_splash(length) else "einsum"
    if config.attention == "cudnn" or (config.attention == "auto" and platform == "gpu" and fits_cudnn(config, length)):
        return "cudnn"
    return "einsum"


def fits_cudnn(config: ModelConfig, length: int) -> bool:
    """Whether cuDNN's flash attention takes such rows on any GPU since Ampere (`jax._src.cudnn` checks the same)."""
    return config.dtype == "bfloat16" and config.head_dim <= 128 and config.head_dim % 8 == 0 and length % 2 == 0


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
    # Batch axes first: XLA's CPU backend cannot transpose the output of a bfloat16 matmul on the way.
    out_BKGTE = jnp.einsum(
        "bkgts,bkse->bkgte",
        weights_BKGTS.astype(v_BKSE.dtype),
        v_BKSE,
        preferred_element_type=jnp.float32,
    )
    return jnp.moveaxis(out_BKGTE / total_BKGT[..., None], 3, 1).astype(v_BKSE.dtype)


def attend_causal(q_BTKGE: jax.Array, k_BKTE: jax.Array, v_BKTE: jax.Array, mask_BTT: jax.Array) -> jax.Array:
    """`attend` for a causal mask: a block of queries meets only the keys up to its own end.

    Saves almost half of the scores, and blocks that fit a CPU's cache run 3.5 times as fast as the whole (T = 256). At
    most 8 blocks, so that the program stays small.
    """
    length = q_BTKGE.shape[1]
    block = max(64, -(-length // 8))
    parts = [
        attend(q_BTKGE[:, i : i + block], k_BKTE[:, :, :end], v_BKTE[:, :, :end], mask_BTT[:, i : i + block, :end])
        for i in range(0, length, block)
        for end in [min(i + block, length)]
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def attend_cudnn(
    q_BTKGE: jax.Array, k_BKTE: jax.Array, v_BKTE: jax.Array, mask_BTT: jax.Array, *, implementation: Any = "cudnn"
) -> jax.Array:
    """`attend` for a causal mask by cuDNN's flash attention: no [T, T] scores a head, only the mask's, a row.

    `implementation="xla"` computes the same anywhere, for tests.
    """
    batch, length, kv_heads, group, head_dim = q_BTKGE.shape
    out_BTHE = jax.nn.dot_product_attention(
        q_BTKGE.reshape(batch, length, kv_heads * group, head_dim),
        k_BKTE.swapaxes(1, 2),
        v_BKTE.swapaxes(1, 2),
        mask=mask_BTT[:, None],
        is_causal=True,
        implementation=implementation,
    )
    return out_BTHE.reshape(q_BTKGE.shape)


def packed_mask(segment_ids_BT: jax.Array) -> jax.Array:
    """Causal within a segment: [B, T, T] bool."""
    length = segment_ids_BT.shape[1]
    causal_TT = jnp.tri(length, dtype=bool)
    return causal_TT & (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])


def attend_cache(q_BWKGE: jax.Array, k_BKSE: jax.Array, v_BKSE: jax.Array, positions_BW: jax.Array) -> jax.Array:
    """`attend` of a window over a cache: a token sees the slots up to its own; [B, W, K, G, E].

    Slots beyond hold nothing, or leftovers of invalid window slots. All slots are read: a loop that stops behind the
    longest row was tried and is slower but for nearly empty caches.
    """
    mask_BWS = jnp.arange(k_BKSE.shape[2]) <= positions_BW[:, :, None]
    return attend(q_BWKGE, k_BKSE, v_BKSE, mask_BWS)


def continues(segment_ids_BT: jax.Array) -> jax.Array:
    """Whether a token has a predecessor in its own segment: [B, T] bool."""
    same_BT = segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]
    return jnp.pad(same_BT, ((0, 0), (1, 0)), constant_values=False)
