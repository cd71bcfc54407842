"""Splash attention (Pallas, TPU) for packed rows: no [T, T] scores in memory, forward or backward.

The kernel that ships with JAX, under `jax.shard_map`: rows over the data axes, heads over the model
axis. It skips key blocks that are not causal; segments are masked inside the blocks.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding

from ra3_jax.core.mesh import RULES

BLOCK = 512  # at 4096 tokens: a third of the compile time of 1024, the same memory
LANES = 128


def fits_splash(length: int) -> bool:
    """Whether rows of this length are worth the kernel. Others are short prompts, cheap without it."""
    return length >= LANES


def block_size(length: int) -> int:
    """Tokens of a block: the most for which padding to whole blocks adds at most an eighth, else the least."""
    return next((b for b in (BLOCK, BLOCK // 2) if -length % b * 8 <= length), LANES)


def splash_attend(
    q_BTKGE: jax.Array,
    k_BKTE: jax.Array,
    v_BKTE: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`attend` under `packed_mask`: causal within a segment. Returns [B, T, K, G, E].

    Any number of rows of any length: they are padded to whole blocks at their end, where causality hides it, and in
    number to the mesh. `interpret` runs the kernel's Python on any device, for tests.
    """
    batch, length, kv_heads, group, head_dim = q_BTKGE.shape
    mesh = jax.sharding.get_abstract_mesh()
    more_rows, more_T = -batch % (mesh.shape["data"] * mesh.shape["fsdp"]), -length % block_size(length)
    if more_rows or more_T:
        padded_BTKGE = splash_attend(
            _pad(q_BTKGE, more_rows, more_T, 1),
            _pad(k_BKTE, more_rows, more_T, 2),
            _pad(v_BKTE, more_rows, more_T, 2),
            _pad(segment_ids_BT, more_rows, more_T, 1),
            interpret=interpret,
        )
        return padded_BTKGE[:batch, :length]
    n_heads = kv_heads * group
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


def _pad(x: jax.Array, rows: int, length: int, axis: int) -> jax.Array:
    """Zeros behind the rows and behind the tokens, which lie along `axis`."""
    widths = [(0, 0)] * x.ndim
    widths[0], widths[axis] = (0, rows), (0, length)
    return jnp.pad(x, widths)


def _kernel(length: int, n_heads: int, head_shards: int, interpret: bool):
    block = block_size(length)
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
