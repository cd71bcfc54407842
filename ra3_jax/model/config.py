"""What a Transformer is made of, for every family we load. Imports nothing heavy."""

import dataclasses
from typing import Any, Literal, get_args

Remat = Literal["none", "full", "dots"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (`rope_type: llama3` of the HF config)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder with RoPE, grouped-query attention and a gated feed-forward."""

    family: Literal["llama", "qwen2", "qwen3"]
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    max_positions: int
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    key_shift: bool = False
    """k_t also sees token t-1 (a learned second projection). Induction forms in minutes on a CPU
    with it; HF has no name for it, so such a model cannot be exported."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; weights are kept in float32, softmax, norms and log-probs are computed in
    float32.
    """
    attention: Literal["auto", "einsum", "splash", "cudnn"] = "auto"
    """Of packed rows and prefill. `splash` is the TPU kernel that keeps no [T, T] scores; it leaves
    rows of less than 128 tokens to the einsum. `cudnn` is NVIDIA's, for bfloat16. auto: the kernel of
    the mesh's devices where it serves, else the einsum."""
    remat: Remat = "none"
    """What the backward pass computes again instead of keeping: nothing; everything inside a layer
    (full: least memory); all but the matrix products with weights (dots: between the two)."""
    scan_layers: bool = True
    embed_init_std: float = 0.02
    """Of the embeddings of fresh weights. A small tied model learns several times faster with a
    larger one: otherwise its first layers drown the token in their own output."""

    def __post_init__(self):
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even (RoPE rotates pairs)")

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types, for checkpoint metadata; `from_json` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_json`. Raises ValueError that names unknown and missing fields.

        A field that has a default may be missing: checkpoints outlive the version that wrote them.
        """
        fields = _check_fields(cls, data, "model config")
        if isinstance(fields.get("remat"), bool):  # as it was once written
            fields["remat"] = "full" if fields["remat"] else "none"
        if fields.get("rope_scaling") is not None:
            scaling = _check_fields(RopeScaling, fields["rope_scaling"], "model config, rope_scaling")
            fields["rope_scaling"] = RopeScaling(**scaling)
        return cls(**fields)

    @property
    def n_params(self) -> int:
        """Number of weights, embeddings included."""
        d, e = self.d_model, self.head_dim
        qkv = d * e * (self.n_heads + 2 * self.n_kv_heads) + d * e * self.n_kv_heads * self.key_shift
        bias = e * (self.n_heads + 2 * self.n_kv_heads) * self.qkv_bias + 2 * e * self.qk_norm
        layer = qkv + bias + self.n_heads * e * d + 3 * d * self.d_ff + 2 * d
        return self.n_layers * layer + d + self.vocab_size * d * (1 if self.tie_embeddings else 2)

    def forward_flops(self, context: int) -> float:
        """Matmul FLOPs of one forward pass of one token that attends to `context` tokens (2 per
        multiply-add).
        """
        lookup = 0 if self.tie_embeddings else self.vocab_size * self.d_model
        attention = 2 * 2 * self.n_layers * self.n_heads * self.head_dim * context
        return 2 * (self.n_params - lookup) + attention


Adapted = Literal["wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"]


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Training of low-rank adapters beside weights that stay as they are (model/lora.py)."""

    rank: int = 0
    """r, of each adapter; 0: no adapters, all weights are trained."""
    alpha: float = 32.0
    """An adapter counts alpha / rank times."""
    targets: tuple[Adapted, ...] = get_args(Adapted)
    """Matrices that get one. What has none (embeddings, norms, biases) stays as it is."""

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora: rank={self.rank} must not be negative, alpha={self.alpha} be positive")
        unknown = sorted(set(self.targets) - set(get_args(Adapted)))
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"lora.targets={self.targets}: expected some of {get_args(Adapted)}, each once")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def _check_fields(cls: type, data: dict[str, Any], where: str) -> dict[str, Any]:
    fields = dataclasses.fields(cls)
    unknown = sorted(set(data) - {f.name for f in fields})
    missing = sorted({f.name for f in fields if f.default is dataclasses.MISSING} - set(data))
    if unknown or missing:
        raise ValueError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    return dict(data)


def tiny(vocab_size: int, *, d_model: int = 64, n_layers: int = 2, n_heads: int = 4) -> ModelConfig:
    """The base of the `tiny` preset: a Llama with a key shift, about 0.1 M weights."""
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=d_model * 8 // 3 // 16 * 16,
        rope_theta=1000.0,
        norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=1024,
        key_shift=True,
        embed_init_std=0.2,
        scan_layers=False,  # two layers compile fast, and train about 10 % faster unrolled on a CPU
    )


# The base models of the Hub (meta-llama/Llama-3.2-1B, meta-llama/Llama-3.1-8B, Qwen/Qwen2.5-0.5B,
# Qwen/Qwen2.5-1.5B, Qwen/Qwen3-0.6B), as their config.json says. With these a run can be planned
# and compiled before any download.
PRESETS: dict[str, ModelConfig] = {
    "llama3.2-1b": ModelConfig(
        family="llama",
        vocab_size=128256,
        d_model=2048,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        head_dim=64,
        d_ff=8192,
        rope_theta=500000.0,
        norm_eps=1e-5,
        tie_embeddings=True,
        max_positions=131072,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
        dtype="bfloat16",
        remat="full",
    ),
    "llama3.1-8b": ModelConfig(
        family="llama",
        vocab_size=128256,
        d_model=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        d_ff=14336,
        rope_theta=500000.0,
        norm_eps=1e-5,
        tie_embeddings=False,
        max_positions=131072,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        dtype="bfloat16",
        remat="full",
    ),
    "qwen2.5-0.5b": ModelConfig(
        family="qwen2",
        vocab_size=151936,
        d_model=896,
        n_layers=24,
        n_heads=14,
        n_kv_heads=2,
        head_dim=64,
        d_ff=4864,
        rope_theta=1000000.0,
        norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=32768,
        qkv_bias=True,
        dtype="bfloat16",
        remat="full",
    ),
    "qwen2.5-1.5b": ModelConfig(
        family="qwen2",
        vocab_size=151936,
        d_model=1536,
        n_layers=28,
        n_heads=12,
        n_kv_heads=2,
        head_dim=128,
        d_ff=8960,
        rope_theta=1000000.0,
        norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=131072,
        qkv_bias=True,
        dtype="bfloat16",
        remat="full",
    ),
    "qwen3-0.6b": ModelConfig(
        family="qwen3",
        vocab_size=151936,
        d_model=1024,
        n_layers=28,
        n_heads=16,
        n_kv_heads=8,
        head_dim=128,
        d_ff=3072,
        rope_theta=1000000.0,
        norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=40960,
        qk_norm=True,
        dtype="bfloat16",
        remat="full",
    ),
}
