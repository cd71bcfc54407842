"""The one table that relates HF's weight names and shapes to ours; import and export both read it.

Both sides put outputs before inputs, and both rotate halves in RoPE, so a weight only ever changes
shape: HF merges (heads, head_dim) into one axis and keeps each layer apart, we split the heads and
stack the layers.
"""

import dataclasses
import re

from ra3_jax.model.config import ModelConfig

# Buffers that old checkpoints carry; the angles are computed from the config.
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our weights and its HF tensors."""

    hf: str
    """HF key; `{i}` stands for the layer, and then ours has a leading layer axis."""
    path: tuple[str, ...]
    """Where it is in our params."""
    shape: tuple[int, ...]
    """Our shape of one layer."""
    merge: int | None = None
    """Axis of ours that HF merges with the next one."""

    @property
    def hf_shape(self) -> tuple[int, ...]:
        if self.merge is None:
            return self.shape
        i = self.merge
        return *self.shape[:i], self.shape[i] * self.shape[i + 1], *self.shape[i + 2 :]

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.hf

    def keys(self, n_layers: int) -> list[str]:
        """The HF keys of this weight, in the order of our layer axis."""
        return [self.hf.format(i=i) for i in range(n_layers if self.per_layer else 1)]


def weight_table(config: ModelConfig) -> list[Weight]:
    """Every weight of the model, in HF's usual order of a file."""
    d, e, h, k, f = (
        config.d_model,
        config.head_dim,
        config.n_heads,
        config.n_kv_heads,
        config.d_ff,
    )

    def layer(hf: str, name: str, shape: tuple[int, ...], merge: int | None = None) -> Weight:
        return Weight(f"model.layers.{{i}}.{hf}", ("layers", name), shape, merge)

    table = [
        Weight("model.embed_tokens.weight", ("embed",), (config.vocab_size, d)),
        layer("input_layernorm.weight", "attn_norm", (d,)),
        layer("self_attn.q_proj.weight", "wq", (h, e, d), merge=0),
        layer("self_attn.k_proj.weight", "wk", (k, e, d), merge=0),
        layer("self_attn.v_proj.weight", "wv", (k, e, d), merge=0),
        layer("self_attn.o_proj.weight", "wo", (d, h, e), merge=1),
        layer("post_attention_layernorm.weight", "mlp_norm", (d,)),
        layer("mlp.gate_proj.weight", "w_gate", (f, d)),
        layer("mlp.up_proj.weight", "w_up", (f, d)),
        layer("mlp.down_proj.weight", "w_down", (d, f)),
        Weight("model.norm.weight", ("final_norm",), (d,)),
    ]
    if config.qkv_bias:
        table += [
            layer("self_attn.q_proj.bias", "bq", (h, e), merge=0),
            layer("self_attn.k_proj.bias", "bk", (k, e), merge=0),
            layer("self_attn.v_proj.bias", "bv", (k, e), merge=0),
        ]
    if config.qk_norm:
        table += [
            layer("self_attn.q_norm.weight", "q_norm", (e,)),
            layer("self_attn.k_norm.weight", "k_norm", (e,)),
        ]
    if not config.tie_embeddings:
        table.append(Weight("lm_head.weight", ("lm_head",), (config.vocab_size, d)))
    return table
