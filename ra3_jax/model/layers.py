"""Pieces of a layer as pure array functions: norm, rotary positions, gated feed-forward."""

import math

import jax
import jax.numpy as jnp

from ra3_jax.core.mesh import constrain
from ra3_jax.model.config import ModelConfig, RopeScaling


def rms_norm(x_XD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, computed in float32, in x's dtype."""
    x32_XD = x_XD.astype(jnp.float32)
    inverse_X1 = jax.lax.rsqrt(jnp.mean(jnp.square(x32_XD), axis=-1, keepdims=True) + eps)
    return (x32_XD * inverse_X1 * scale_D.astype(jnp.float32)).astype(x_XD.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> list[float]:
    """Radians per position of each of the head_dim / 2 rotated pairs.

    With `scaling`, wavelengths beyond original_max_position / low_freq_factor are stretched by
    `factor`, those below original_max_position / high_freq_factor are kept, and those between are
    interpolated (Llama-3, `rope_type: llama3`).
    """
    frequencies = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if scaling is None:
        return frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor

    def stretch(frequency: float) -> float:
        turns = scaling.original_max_position * frequency / (2 * math.pi)  # over the original context
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        return frequency * (keep + (1 - keep) / scaling.factor)

    return [stretch(frequency) for frequency in frequencies]


def rope_angles(config: ModelConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), each [B, T, E/2] float32: bfloat16 would round position 257 to 256."""
    frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles_BTE = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles_BTE), jnp.sin(angles_BTE)


def apply_rope(x_BTHE: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (x[i], x[i + E/2]): HF's "rotate half" convention, so HF weights need no
    permutation.
    """
    cos_BT1E, sin_BT1E = (a_BTE[:, :, None] for a_BTE in angles)
    a_BTHE, b_BTHE = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
    rotated_BTHE = jnp.concatenate(
        [a_BTHE * cos_BT1E - b_BTHE * sin_BT1E, b_BTHE * cos_BT1E + a_BTHE * sin_BT1E], axis=-1
    )
    return rotated_BTHE.astype(x_BTHE.dtype)


def gated_mlp(x_BTD: jax.Array, gate_FD: jax.Array, up_FD: jax.Array, down_DF: jax.Array) -> jax.Array:
    """(silu(x gate) * (x up)) down."""
    gate_BTF = jnp.einsum("btd,fd->btf", x_BTD, gate_FD)
    up_BTF = jnp.einsum("btd,fd->btf", x_BTD, up_FD)
    h_BTF = constrain(jax.nn.silu(gate_BTF) * up_BTF, "batch", "length", "mlp")
    return jnp.einsum("btf,df->btd", h_BTF, down_DF)
