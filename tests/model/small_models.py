"""Small configurations that between them use every feature of the model, and helpers that the tests
share.
"""

import dataclasses
import functools

import jax
import numpy as np

from ra3_jax.model.config import ModelConfig, RopeScaling, tiny
from ra3_jax.model.language_model import LanguageModel

V = 32

SMALL = {
    "key_shift": tiny(V, d_model=32, n_heads=2),
    "llama": ModelConfig(
        family="llama",
        vocab_size=V,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=48,
        rope_theta=1000.0,
        norm_eps=1e-5,
        tie_embeddings=False,
        max_positions=64,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
    ),
    "qwen2": ModelConfig(
        family="qwen2",
        vocab_size=V,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=48,
        rope_theta=1000.0,
        norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=64,
        qkv_bias=True,
    ),
    "qwen3": ModelConfig(
        family="qwen3",
        vocab_size=V,
        d_model=32,
        n_layers=3,
        n_heads=4,
        n_kv_heads=4,
        head_dim=16,
        d_ff=48,
        rope_theta=1000.0,
        norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=64,
        qk_norm=True,
    ),
}


SMALL["everything"] = dataclasses.replace(
    SMALL["llama"],
    qkv_bias=True,
    qk_norm=True,
    key_shift=True,
    head_dim=16,
    n_heads=4,
    n_kv_heads=2,
)


def random_params(config: ModelConfig, seed: int = 0):
    """Weights with non-trivial norms and biases: the initial ones would hide a forgotten scale."""
    rng = np.random.default_rng(seed)

    def draw(path, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = rng.normal(size=shape.shape).astype(np.float32)
        return 1 + 0.2 * scale if "norm" in path[-1].key else 0.25 * scale

    shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0))
    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A model's functions under jit, shared by the tests that use the same model."""

    model: LanguageModel

    @functools.cached_property
    def hidden(self):
        return jax.jit(self.model.hidden)

    @functools.cached_property
    def logits(self):
        return jax.jit(self.model.logits)

    @functools.cached_property
    def prefill(self):
        return jax.jit(self.model.prefill)

    @functools.cached_property
    def decode(self):
        return jax.jit(self.model.decode)


@functools.cache
def compiled(config: ModelConfig) -> Compiled:
    return Compiled(LanguageModel(config))


def random_tokens(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def one_segment(tokens_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, positions, segment ids) of rows that each hold one sequence."""
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    return tokens_BT, positions_BT, np.ones_like(tokens_BT)
