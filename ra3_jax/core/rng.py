"""Random keys by name and number, never by order of use.

Whatever is sampled for a row is a function of (seed, example id, sample index, position): not of
the batch it sits in, of the bucket, or of the mesh. So a resumed, re-batched or multi-host run
draws the same numbers.
"""

import hashlib

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def name_hash(name: str) -> int:
    """32 bits of SHA-256: stable over processes and versions, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def named_key(key: jax.Array, *parts: str | int | jax.Array) -> jax.Array:
    """`named_key(key, "estep", round)`: folds in names and (traced) numbers in 0 ... 2**32 - 1."""
    for part in parts:
        key = jax.random.fold_in(key, name_hash(part) if isinstance(part, str) else part)
    return key


def row_keys(key: jax.Array, example_id_B: ArrayLike, sample_index_B: ArrayLike) -> jax.Array:
    """One key a row [B]; the position of a token is folded in by whoever samples it."""

    def one(example_id: jax.Array, sample_index: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, example_id), sample_index)

    return jax.vmap(one)(jnp.asarray(example_id_B), jnp.asarray(sample_index_B))
