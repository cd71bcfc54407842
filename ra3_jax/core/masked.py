"""Reductions over the selected part of an array. The only place where sums are divided by counts.

A mask is bool or a float weight, broadcastable to x. What the mask leaves out may be NaN or
infinite and changes neither value nor gradient. All sums are float32 (bfloat16 cannot count beyond
256). Sums and weights are returned apart where the caller accumulates over microbatches or devices:
a sum of sums over a sum of weights is exact, a mean of means is not.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Axis = int | tuple[int, ...] | None


def total(x: ArrayLike, mask: ArrayLike, axis: Axis = None) -> tuple[jax.Array, jax.Array]:
    """(sum of x * mask, sum of mask), float32."""
    weight = jnp.broadcast_to(mask, jnp.shape(x)).astype(jnp.float32)
    # Replaced before the multiplication: 0 * nan is nan, in the value and in the gradient.
    kept = jnp.where(weight != 0, jnp.asarray(x, jnp.float32), 0.0)
    return jnp.sum(kept * weight, axis), jnp.sum(weight, axis)


def ratio(numerator: ArrayLike, weight: ArrayLike, *, empty: float = jnp.nan) -> jax.Array:
    """numerator / weight, and `empty` where the weight is 0; gradients stay finite there."""
    some = weight != 0
    return jnp.where(some, numerator / jnp.where(some, weight, 1.0), empty)


def mean(x: ArrayLike, mask: ArrayLike, axis: Axis = None, *, empty: float = jnp.nan) -> jax.Array:
    """Weighted mean; `empty` where nothing is selected."""
    return ratio(*total(x, mask, axis), empty=empty)


def std(x: ArrayLike, mask: ArrayLike, axis: Axis = None, *, ddof: int = 0, empty: float = jnp.nan) -> jax.Array:
    """Standard deviation over a 0/1 mask, with gradient 0 at spread 0.

    `empty` where at most `ddof` values are selected.
    """
    selected = jnp.broadcast_to(mask, jnp.shape(x)) != 0
    total_x, count = total(x, selected, axis)
    center = ratio(total_x, count, empty=0.0)
    if axis is not None:
        center = jnp.expand_dims(center, axis)
    squares, _ = total(jnp.square(jnp.where(selected, x, 0.0) - center), selected, axis)
    enough = count > ddof
    variance = jnp.where(enough, squares / jnp.where(enough, count - ddof, 1.0), 0.0)
    spread = variance > 0
    root = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0)
    return jnp.where(enough, root, empty)


def maximum(x: ArrayLike, mask: ArrayLike, axis: Axis = None, *, empty: float = -jnp.inf) -> jax.Array:
    """Largest selected value; `empty` where nothing is selected."""
    selected = jnp.broadcast_to(mask, jnp.shape(x)) != 0
    return jnp.max(jnp.where(selected, x, empty), axis, initial=empty, where=selected)
