"""Splash attention (Pallas, TPU) for packed rows: no [T, T] scores in memory, forward or backward.

The kernel that ships with JAX, under `jax.shard_map`: rows over the data axes, heads over the model
axis. It skips key blocks that are not causal; segments are masked inside the blocks.
"""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding

from ra3_jax.core.mesh import RULES

BLOCK = 512  # at 4096 tokens: a third of the compile time of 1024, the same memory
LANES = 128


def fits_splash(length: int) -> bool:
    """Whether the kernel takes rows of this length. Others are short prompts, cheap without it."""
    return length % LANES == 0


def splash_attend(
    q_BTKGE: jax.Array,
    k_BKTE: jax.Array,
    v_BKTE: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`attend` under `packed_mask`: causal within a segment. Returns [B, T, K, G, E].

    `interpret` runs the kernel's Python on any device, for tests.
    """
    batch, length, kv_heads, group, head_dim = q_BTKGE.shape
    n_heads = kv_heads * group
    mesh = jax.sharding.get_abstract_mesh()
    heads, rows = RULES.spec("batch", "heads", None, None), RULES.spec("batch", None)
    kernel = _kernel(length, n_heads, mesh.shape["model"], interpret)
    kernel_specs = kernel.manual_sharding_spec(NamedSharding(mesh, RULES.spec("heads", None)))

    @jax.shard_map(in_specs=(kernel_specs, heads, heads, heads, rows), out_specs=heads, check_vma=False)
    def local(kernel, q_BHTE, k_BKTE, v_BKTE, segment_ids_BT):
        segments = splash.SegmentIds(q=segment_ids_BT, kv=segment_ids_BT)
        return jax.vmap(kernel)(q_BHTE, k_BKTE, v_BKTE, segments)

    q_BTHE = q_BTKGE.reshape(batch, length, n_heads, head_dim) * head_dim**-0.5  # it does not scale
    out_BHTE = local(kernel, q_BTHE.swapaxes(1, 2), k_BKTE, v_BKTE, segment_ids_BT)
    return out_BHTE.swapaxes(1, 2).reshape(q_BTKGE.shape)


def _kernel(length: int, n_heads: int, head_shards: int, interpret: bool):
    block = next(b for b in (BLOCK, BLOCK // 2, LANES) if length % b == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    causal = masks.MultiHeadMask([masks.CausalMask((length, length))] * n_heads)
    return splash.make_splash_mha(
        causal, block_sizes=sizes, head_shards=head_shards, q_seq_shards=1, interpret=interpret
    )
