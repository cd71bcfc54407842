"""`LanguageModel`: params -> hidden states -> logits, and cached decoding; all other rooms use."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ra3_jax.core.errors import InputError
from ra3_jax.core.mesh import RULES, constrain
from ra3_jax.model.attention import choose_kernel, continues, packed_mask
from ra3_jax.model.cache import KVCache, LayerCache, constrain_rows, empty_cache
from ra3_jax.model.config import ModelConfig
from ra3_jax.model.layers import rope_angles
from ra3_jax.model.lora import fold
from ra3_jax.model.transformer import Context, Transformer

Params = dict[str, Any]
"""Plain nested dict of float32 arrays: embed, layers/<name> (stacked), final_norm, lm_head if
untied; and layers/<name>_a, layers/<name>_b where a matrix has an adapter (model/lora.py)."""


# Shapes need no values, and a mesh of devices that are only described (preflight) can compute none.
ABSTRACT_KEY = jax.eval_shape(jax.random.key, 0)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model's functions; the weights are an argument of each. Hashable: may be static under jit.

    Every method runs inside `jax.set_mesh`, and the number of rows is a multiple of that mesh's
    data-parallel size. Decoding reads weights of any float dtype: a sampler on an accelerator casts
    them to the activations' dtype once, instead of at every step.
    """

    config: ModelConfig

    # --- weights ---------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        """Random weights: normal with variance 1 / fan-in (embeddings: `embed_init_std`), norms one,
        biases zero."""
        return nn.unbox(self._init_boxed(key))

    def param_specs(self) -> Any:
        """For each weight the logical names of its axes, as a PartitionSpec."""
        return nn.get_partition_spec(jax.eval_shape(self._init_boxed, ABSTRACT_KEY))

    def param_shardings(self, mesh: Mesh) -> Any:
        """For each weight its NamedSharding. Raises InputError for an axis that cannot be cut evenly.

        But a vocabulary that cannot be cut stays whole (and is padded in `unembed`): its size is the tokenizer's.
        """
        shapes = jax.eval_shape(self.init, ABSTRACT_KEY)
        whole_vocab = self.config.vocab_size % _vocab_parts(mesh.shape) != 0

        def place(path, names: P, shape: jax.ShapeDtypeStruct) -> NamedSharding:
            names = P(*[None if name == "vocab" and whole_vocab else name for name in names])
            sharding = NamedSharding(mesh, RULES.spec(*names))
            for name, axis, size in zip(names, sharding.spec, shape.shape, strict=False):
                parts = mesh.shape[axis] if axis is not None else 1
                if size % parts:
                    where = jax.tree_util.keystr(path, simple=True, separator="/")
                    raise InputError(
                        f"weight {where}: its axis {name!r} has size {size}, which cannot be cut over the"
                        f" {parts} devices of mesh axis {axis!r}: choose a --mesh whose {axis} divides it"
                    )
            return sharding

        return jax.tree_util.tree_map_with_path(place, self.param_specs(), shapes, is_leaf=lambda x: isinstance(x, P))

    def _init_boxed(self, key: jax.Array) -> Params:
        # One row per device, the smallest batch that can be cut on any mesh. Under jit nothing of
        # this forward pass is computed.
        tokens_BT = jnp.zeros((max(1, jax.sharding.get_abstract_mesh().size), 1), jnp.int32)
        context = self._packed_context(tokens_BT, tokens_BT)
        variables: Any = Transformer(self.config).init(key, tokens_BT, context)
        return variables["params"]

    # --- whole sequences -------------------------------------------------------------------------

    def hidden(
        self,
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
    ) -> jax.Array:
        """hidden_BTD of packed rows, final norm applied; a token sees its segment up to itself."""
        context = self._packed_context(positions_BT, segment_ids_BT)
        return self._apply(params, tokens_BT, context)[0]

    def unembed(self, params: Params, hidden_XD: jax.Array) -> jax.Array:
        """logits_XV in float32; X stands for any leading axes, rows first.

        Every device takes its part of the vocabulary for all rows of its data axis. So the table is never whole on a
        device, nor its gradient, which each sums up for its own part; what travels is hidden states.
        """
        head_VD = params["embed" if self.config.tie_embeddings else "lm_head"].astype(hidden_XD.dtype)
        vocab = head_VD.shape[0]
        if surplus := -vocab % _vocab_parts(jax.sharding.get_abstract_mesh().shape):
            # Parts of one size, or the compiler could not cut what `model` has cut once more over `fsdp`.
            head_VD = constrain(jnp.pad(head_VD, ((0, surplus), (0, 0))), "vocab", "embed")
        middle = [None] * (hidden_XD.ndim - 2)
        rows = ["outer_batch", *middle] if hidden_XD.ndim > 1 else []
        logits_XV = jnp.einsum(
            "...d,vd->...v",
            constrain(hidden_XD, *rows, None),
            constrain(head_VD, "all_vocab", None),
            preferred_element_type=jnp.float32,
        )
        logits_XV = constrain(logits_XV, *rows, "all_vocab")
        return constrain(logits_XV[..., :vocab], *rows, "all_vocab") if surplus else logits_XV

    def logits(
        self,
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
    ) -> jax.Array:
        """logits_BTV float32 of packed rows: `unembed` of `hidden`."""
        hidden_BTD = self.hidden(params, tokens_BT, positions_BT, segment_ids_BT)
        return self.unembed(params, hidden_BTD)

    def folded(self, params: Params) -> Params:
        """Weights for a loop: adapters, if there are any (model/lora.py), are added in here instead of in each pass."""
        return fold(params, self.config.dtype)

    # --- decoding --------------------------------------------------------------------------------

    def init_cache(self, batch: int, length: int, window: int = 8) -> KVCache:
        """An empty cache for rows of at most `length` tokens, at most `window` of them a step."""
        return empty_cache(self.config, batch, length, window)

    def prefill(
        self, params: Params, tokens_BP: jax.Array, lengths_B: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Fills an empty cache with left-aligned rows of `lengths_B` tokens.

        Returns (hidden_BPD, cache). Hidden states beyond a row's length mean nothing.
        """
        batch, width = tokens_BP.shape
        if width > cache.slots:
            raise ValueError(f"prompts are {width} wide, the cache has {cache.slots} slots")
        positions_BP = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
        valid_BP = (positions_BP < lengths_B[:, None]).astype(jnp.int32)
        context = self._packed_context(positions_BP, valid_BP, lengths_B)
        hidden_BPD, new = self._apply(params, tokens_BP, context, collect=True)

        def fill(slots: jax.Array, first: jax.Array) -> jax.Array:
            return constrain_rows(jax.lax.dynamic_update_slice(slots, first, (0,) * slots.ndim))

        layers = jax.tree.map(fill, cache.layers, new)
        cursor_B = constrain_rows(lengths_B.astype(jnp.int32))
        return hidden_BPD, KVCache(layers, cursor_B, cache.window)

    def decode(
        self, params: Params, tokens_BW: jax.Array, n_valid_B: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Appends the first `n_valid_B` (0..W) tokens of each row's window.

        Returns (hidden_BWD, cache). Positions are cursor + 0..W-1. The cursor moves by n_valid:
        what the rest of the window wrote is overwritten later, and never read before. Hidden states
        of invalid window slots mean nothing. Raises ValueError when W exceeds the cache's window.
        """
        window = tokens_BW.shape[1]
        if window > cache.window:
            raise ValueError(f"window of {window} tokens on a cache made for at most {cache.window} a step")
        positions_BW = cache.cursor_B[:, None] + jnp.arange(window, dtype=jnp.int32)
        context = Context(
            angles=rope_angles(self.config, positions_BW),
            positions_BT=positions_BW,
            segment_ids_BT=None,
            mask_BTT=None,
            continues_BT=positions_BW > 0,
            n_valid_B=n_valid_B,
            cursor_B=cache.cursor_B,
        )
        hidden_BWD, layers = self._apply(params, tokens_BW, context, caches=cache.layers)
        return hidden_BWD, KVCache(layers, cache.cursor_B + n_valid_B, cache.window)

    # --- shared ----------------------------------------------------------------------------------

    def _packed_context(
        self,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        n_valid_B: jax.Array | None = None,
    ) -> Context:
        zeros_B = jnp.zeros(positions_BT.shape[0], jnp.int32)
        splash = choose_kernel(self.config, positions_BT.shape[1]) == "splash"
        return Context(
            angles=rope_angles(self.config, positions_BT),
            positions_BT=positions_BT,
            segment_ids_BT=segment_ids_BT,
            mask_BTT=None if splash else packed_mask(segment_ids_BT),
            continues_BT=continues(segment_ids_BT),
            n_valid_B=zeros_B if n_valid_B is None else n_valid_B,
            cursor_B=zeros_B,
        )

    def _apply(
        self,
        params: Params,
        tokens_BT: jax.Array,
        context: Context,
        caches: tuple[LayerCache, ...] | None = None,
        collect: bool = False,
    ) -> tuple[jax.Array, Any]:
        return Transformer(self.config).apply({"params": params}, tokens_BT, context, caches=caches, collect=collect)


def _vocab_parts(mesh_sizes: Mapping[str, int]) -> int:
    """Devices over which `unembed` cuts the vocabulary."""
    return math.prod(mesh_sizes[axis] for axis in RULES.all_vocab or ())
