"""The decoder as a thin linen shell: `self.param`, einsum, cache in and out, stacked layers.

One module serves training and decoding. What differs between them (positions, mask, memory) comes
in as a `Context` and, when decoding, one `LayerCache` per layer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ra3_jax.core.mesh import constrain
from ra3_jax.model.attention import attend_cache, attend_causal, attend_cudnn, choose_kernel
from ra3_jax.model.cache import LayerCache, write_window
from ra3_jax.model.config import ModelConfig
from ra3_jax.model.layers import apply_rope, gated_mlp, rms_norm
from ra3_jax.model.lora import A, B, adapted
from ra3_jax.model.splash import splash_attend


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer needs to know about the tokens of one call."""

    angles: tuple[jax.Array, jax.Array]
    """RoPE cos and sin, each [B, T, E/2] float32."""
    positions_BT: jax.Array
    """int32: of each token in its sequence."""
    segment_ids_BT: jax.Array | None
    """int32: what the mask is made of, for the splash kernel; None with a cache."""
    mask_BTT: jax.Array | None
    """bool: which tokens of this call a token attends to. None for splash, which masks by segment, and with a cache:
    there a token sees the slots up to its own."""
    continues_BT: jax.Array
    """bool: the token before this one belongs to the same sequence (for the key shift)."""
    n_valid_B: jax.Array
    """int32: number of leading valid tokens of each row."""
    cursor_B: jax.Array
    """int32: slot of the first token of each row."""


class Block(nn.Module):
    """Pre-norm attention and pre-norm gated feed-forward, each added to the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, cache: LayerCache | None, context: Context, collect: bool = False
    ) -> tuple[jax.Array, LayerCache | None]:
        """Returns the stream and the new cache; `collect` makes one of this call's own tokens."""
        config = self.config
        with jax.named_scope("attention"):
            h_BTD = rms_norm(x_BTD, self._scale("attn_norm", config.d_model), config.norm_eps)
            y_BTD, cache = self._attention(h_BTD, cache, context, collect)
            x_BTD = constrain(x_BTD + y_BTD, "batch", "length", "act_embed")
        with jax.named_scope("mlp"):
            h_BTD = rms_norm(x_BTD, self._scale("mlp_norm", config.d_model), config.norm_eps)
            y_BTD = gated_mlp(
                h_BTD,
                self._matrix("w_gate", (config.d_ff, config.d_model), ("mlp", "embed")),
                self._matrix("w_up", (config.d_ff, config.d_model), ("mlp", "embed")),
                self._matrix("w_down", (config.d_model, config.d_ff), ("embed", "mlp")),
            )
            x_BTD = constrain(x_BTD + y_BTD, "batch", "length", "act_embed")
        return x_BTD, cache

    def _attention(
        self, h_BTD: jax.Array, cache: LayerCache | None, context: Context, collect: bool
    ) -> tuple[jax.Array, LayerCache | None]:
        c = self.config
        to_q = (c.n_heads, c.head_dim, c.d_model), ("heads", "head_dim", "embed")
        to_kv = (c.n_kv_heads, c.head_dim, c.d_model), ("kv_heads", "head_dim", "embed")
        q_BTHE = jnp.einsum("btd,hed->bthe", h_BTD, self._matrix("wq", *to_q))
        k_BTKE = jnp.einsum("btd,ked->btke", h_BTD, self._matrix("wk", *to_kv))
        v_BTKE = jnp.einsum("btd,ked->btke", h_BTD, self._matrix("wv", *to_kv))
        shift_BD = None
        if c.key_shift:
            before_BTD, shift_BD = shift(h_BTD, cache.shift_BD if cache else None, context)
            k_BTKE += jnp.einsum("btd,ked->btke", before_BTD, self._matrix("wk_shift", *to_kv))
        if c.qkv_bias:
            q_BTHE += self._bias("bq", (c.n_heads, c.head_dim), ("heads", "head_dim"))
            k_BTKE += self._bias("bk", (c.n_kv_heads, c.head_dim), ("kv_heads", "head_dim"))
            v_BTKE += self._bias("bv", (c.n_kv_heads, c.head_dim), ("kv_heads", "head_dim"))
        if c.qk_norm:
            q_BTHE = rms_norm(q_BTHE, self._scale("q_norm", c.head_dim), c.norm_eps)
            k_BTKE = rms_norm(k_BTKE, self._scale("k_norm", c.head_dim), c.norm_eps)
        q_BTHE = constrain(apply_rope(q_BTHE, context.angles), "batch", "length", "heads", "head_dim")
        k_BKTE = apply_rope(k_BTKE, context.angles).swapaxes(1, 2)
        v_BKTE = v_BTKE.swapaxes(1, 2)
        if cache is None:
            k_BKSE, v_BKSE = k_BKTE, v_BKTE
        else:
            k_BKSE = write_window(cache.k_BKSE, k_BKTE, context.cursor_B)
            v_BKSE = write_window(cache.v_BKSE, v_BKTE, context.cursor_B)
        k_BKSE = constrain(k_BKSE, "batch", "kv_heads", None, "head_dim")
        v_BKSE = constrain(v_BKSE, "batch", "kv_heads", None, "head_dim")

        batch, length = h_BTD.shape[:2]
        group = c.n_heads // c.n_kv_heads
        q_BTKGE = q_BTHE.reshape(batch, length, c.n_kv_heads, group, c.head_dim)
        if cache is not None:
            out_BTKGE = attend_cache(q_BTKGE, k_BKSE, v_BKSE, context.positions_BT)
        else:
            out_BTKGE = _attend_packed(c, q_BTKGE, k_BKSE, v_BKSE, context)
        out_BTHE = out_BTKGE.reshape(q_BTHE.shape)
        from_heads = (c.d_model, c.n_heads, c.head_dim), ("embed", "heads", "head_dim")
        wo_DHE = self._matrix("wo", *from_heads, n_in=2)
        new_cache = LayerCache(k_BKSE, v_BKSE, shift_BD) if cache is not None or collect else None
        return jnp.einsum("bthe,dhe->btd", out_BTHE, wo_DHE), new_cache

    def _matrix(self, name: str, shape: tuple, axes: tuple, n_in: int = 1) -> jax.Array:
        """A weight whose last `n_in` axes are contracted, in the activations' dtype; with its adapter, if it has one.

        Outputs come first, as in HF: the gradient of the einsum then needs no transpose (a third of
        the backward pass of a small model on a CPU).
        """
        in_axis, out_axis = tuple(range(-n_in, 0)), tuple(range(-len(shape), -n_in))
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis, out_axis)
        weight = parameter(self, name, fan_in, shape, axes)
        a, b = name + A, name + B
        if self.has_variable("params", a):
            weight = adapted(weight, self.get_variable("params", a), self.get_variable("params", b))
        return weight.astype(self.config.dtype)

    def _bias(self, name: str, shape: tuple, axes: tuple) -> jax.Array:
        return parameter(self, name, nn.initializers.zeros, shape, axes).astype(self.config.dtype)

    def _scale(self, name: str, width: int) -> jax.Array:
        return parameter(self, name, nn.initializers.ones, (width,), (None,))


def _attend_packed(
    config: ModelConfig, q_BTKGE: jax.Array, k_BKTE: jax.Array, v_BKTE: jax.Array, context: Context
) -> jax.Array:
    """Attention among the tokens of this call, by the kernel that serves here."""
    if context.mask_BTT is None:
        assert context.segment_ids_BT is not None
        return splash_attend(q_BTKGE, k_BKTE, v_BKTE, context.segment_ids_BT)
    cudnn = choose_kernel(config, q_BTKGE.shape[1]) == "cudnn"
    return (attend_cudnn if cudnn else attend_causal)(q_BTKGE, k_BKTE, v_BKTE, context.mask_BTT)


def rematerialized(config: ModelConfig, *, prevent_cse: bool = True) -> type[Block]:
    """The layer, computed again in the backward pass as `config.remat` says."""
    if config.remat == "none":
        return Block
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    return nn.remat(Block, policy=keep, prevent_cse=prevent_cse, static_argnums=(4,))


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple, axes: tuple) -> jax.Array:
    """A float32 weight that carries the logical names of its axes."""
    weight: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape)
    return weight


def shift(h_BTD: jax.Array, state_BD: jax.Array | None, context: Context) -> tuple[jax.Array, jax.Array]:
    """(h of the token before each token, h of each row's last valid token).

    The first token of a sequence has zeros before it; `state_BD` is what stood before this call's
    first tokens.
    """
    if state_BD is None:
        state_BD = jnp.zeros_like(h_BTD[:, 0])
    history_BTD = jnp.concatenate([state_BD[:, None], h_BTD], axis=1)  # T + 1 tokens
    before_BTD = jnp.where(context.continues_BT[..., None], history_BTD[:, :-1], 0)
    last_BD = jnp.take_along_axis(history_BTD, context.n_valid_B[:, None, None], axis=1)[:, 0]
    return before_BTD, last_BD


class Transformer(nn.Module):
    """Embedding, blocks, final norm. The unembedding is a function of the weights, elsewhere."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        context: Context,
        caches: tuple[LayerCache, ...] | None = None,
        collect: bool = False,
    ) -> tuple[jax.Array, tuple[LayerCache, ...] | None]:
        """Returns hidden_BTD and the new caches, one per layer, if there are any or `collect`."""
        c = self.config
        normal, table = nn.initializers.normal(c.embed_init_std), (c.vocab_size, c.d_model)
        embed_VD = parameter(self, "embed", normal, table, ("vocab", "embed"))
        if not c.tie_embeddings:  # read by `LanguageModel.unembed`
            parameter(self, "lm_head", nn.initializers.normal(0.02), table, ("vocab", "embed"))
        # Each device looks up its part of the width for the tokens of all rows, and they exchange the results: neither
        # the table nor its gradient is ever whole anywhere, and the gradient is summed in float32.
        x_BTD = embed_VD[constrain(tokens_BT, "outer_batch", "length")].astype(c.dtype)
        x_BTD = constrain(x_BTD, "outer_batch", "length", "embed")
        x_BTD = constrain(x_BTD, "batch", "length", "act_embed")

        if caches is None and (c.scan_layers or self.is_initializing()):
            block = rematerialized(c, prevent_cse=False)  # a scan separates the two computations anyway
            shared: Any = (nn.broadcast,) * 3  # no slice a layer, but the same for all
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=c.n_layers,
                in_axes=shared,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x_BTD, stacked = stack(c, name="layers")(x_BTD, None, context, collect)
            new_caches = tuple(jax.tree.map(lambda x_N, i=i: x_N[i], stacked) for i in range(c.n_layers))
        else:
            x_BTD, new_caches = self._unrolled(x_BTD, context, caches, collect)

        scale_D = parameter(self, "final_norm", nn.initializers.ones, (c.d_model,), (None,))
        return rms_norm(x_BTD, scale_D, c.norm_eps), new_caches if caches or collect else None

    def _unrolled(
        self,
        x_BTD: jax.Array,
        context: Context,
        caches: tuple[LayerCache, ...] | None,
        collect: bool,
    ) -> tuple[jax.Array, tuple]:
        """A Python loop over the same stacked weights: for decoding, few layers, and debugging."""
        layers = self.variables["params"]["layers"]
        block = rematerialized(self.config)
        new_caches = []
        # Where each device holds a part of every weight, the compiler gathers as many layers ahead as fill the memory,
        # and the job's other arrays, of which it knows nothing, have no place. So it may gather one layer ahead.
        gathered = jax.sharding.get_abstract_mesh().shape["fsdp"] > 1
        earlier_BTD = x_BTD
        for i in range(self.config.n_layers):
            weights = jax.tree.map(lambda w_N, i=i: w_N[i], layers)
            if gathered:
                weights, _ = jax.lax.optimization_barrier((weights, earlier_BTD))
                earlier_BTD = x_BTD
            module = block(self.config, parent=None)
            cache = caches[i] if caches else None
            x_BTD, new_cache = module.apply({"params": weights}, x_BTD, cache, context, collect)
            new_caches.append(new_cache)
        return x_BTD, tuple(new_caches)
