"""What decoding remembers of each row: keys, values, the key shift's input, how far it has come."""

import dataclasses

import jax
import jax.numpy as jnp

from ra3_jax.core.mesh import constrain
from ra3_jax.model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer's part, in the activations' dtype. The key/value heads are cut as the weights are."""

    k_BKSE: jax.Array
    """Keys after RoPE."""
    v_BKSE: jax.Array
    shift_BD: jax.Array | None
    """Normed input of the row's last valid token, zero in an empty row; None without key shift."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """The cache of all layers.

    Layers are a tuple and not one stacked array: each array is then updated in place by the loop
    that decodes, where a scan over a stacked cache would copy all of it at every step.
    """

    layers: tuple[LayerCache, ...]
    cursor_B: jax.Array
    """int32: number of valid tokens of each row, and so the slot of its next one."""
    window: int = dataclasses.field(metadata=dict(static=True))
    """Slack: slots beyond the longest row, and so the most tokens that one step may append."""

    @property
    def slots(self) -> int:
        return self.layers[0].k_BKSE.shape[2]

    def take(self, indices_B: jax.Array) -> "KVCache":
        """Row i of the result is row indices_B[i] (shared prefixes, resampling); any number of rows."""
        return jax.tree.map(lambda x: constrain_rows(jnp.take(x, indices_B, axis=0)), self)

    def repeat(self, times: int) -> "KVCache":
        """Each row `times` times in a row. Unlike with `take`, no row has to be gathered to be chosen."""
        return jax.tree.map(lambda x: constrain_rows(jnp.repeat(x, times, axis=0)), self)


def constrain_rows(x: jax.Array) -> jax.Array:
    """Pins the layout of any leaf of a cache, which its rank tells."""
    match x.ndim:
        case 4:
            return constrain(x, "batch", "kv_heads", None, "head_dim")
        case 2:
            return constrain(x, "batch", "act_embed")
        case _:
            return constrain(x, "batch")


def empty_cache(config: ModelConfig, batch: int, length: int, window: int) -> KVCache:
    """A cache of zeros for `batch` rows of at most `length` tokens, at most `window` a step."""
    # The window of a full row must fit as well: XLA would move it back, over valid slots.
    slots = length + window
    shape_BKSE = (batch, config.n_kv_heads, slots, config.head_dim)
    dtype = jnp.dtype(config.dtype)

    def layer() -> LayerCache:
        shift_BD = jnp.zeros((batch, config.d_model), dtype) if config.key_shift else None
        return LayerCache(jnp.zeros(shape_BKSE, dtype), jnp.zeros(shape_BKSE, dtype), shift_BD)

    layers = tuple(layer() for _ in range(config.n_layers))
    cache = KVCache(layers, jnp.zeros(batch, jnp.int32), window)
    return jax.tree.map(constrain_rows, cache)


def write_window(slots_BKSE: jax.Array, window_BKWE: jax.Array, cursor_B: jax.Array) -> jax.Array:
    """Writes each row's window at its own cursor. The window must fit (`KVCache.window`)."""

    def write(slots_KSE, window_KWE, cursor):
        return jax.lax.dynamic_update_slice(slots_KSE, window_KWE, (0, cursor, 0))

    return jax.vmap(write)(slots_BKSE, window_BKWE, cursor_B)
