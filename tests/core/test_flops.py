import jax
import jax.numpy as jnp
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.flops import count_dot_flops
from ra3_jax.core.mesh import make_mesh

N, B, D = 5, 8, 16
ONE = 2 * B * D * D  # one [B, D] @ [D, D]
X, W = jax.ShapeDtypeStruct((B, D), jnp.float32), jax.ShapeDtypeStruct((N, D, D), jnp.float32)


def layer(h, w):
    return jnp.tanh(h @ w), None


def scanned(x, w):
    return jax.lax.scan(layer, x, w)[0].sum()


def unrolled(x, w):
    for i in range(N):
        x, _ = layer(x, w[i])
    return x.sum()


def test_scan_counts_its_trips():
    assert count_dot_flops(scanned, X, W) == count_dot_flops(unrolled, X, W) == N * ONE


@pytest.mark.parametrize("f", [scanned, unrolled])
def test_backward_is_twice_the_forward(f):
    assert count_dot_flops(jax.grad(f, argnums=(0, 1)), X, W) == 3 * N * ONE
    assert count_dot_flops(jax.jit(jax.grad(f, argnums=(0, 1))), X, W) == 3 * N * ONE


def test_recomputation_counts():
    def remat(x, w):
        return jax.lax.scan(jax.checkpoint(layer), x, w)[0].sum()

    assert count_dot_flops(jax.grad(remat, argnums=(0, 1)), X, W) == 4 * N * ONE


def test_batched_and_multi_axis_dots():
    q, k = jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 7, 4, 5))  # [b, t, h, e], [b, s, h, e]
    flops = count_dot_flops(lambda q, k: jnp.einsum("bthe,bshe->bhts", q, k), q, k)
    assert flops == 2 * (2 * 4 * 3 * 7) * 5
    assert count_dot_flops(lambda q, k: jnp.einsum("bthe,bshe->ts", q, k), q, k) == 2 * 21 * 40


def test_cond_takes_the_dearest_branch_and_while_counts_once():
    def cond(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0], lambda: x @ w[0] @ w[1])

    def loop(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w[0], x)

    assert count_dot_flops(cond, X, W) == 2 * ONE
    assert count_dot_flops(loop, X, W) == ONE


def test_shard_map_counts_all_shards():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    spec = jax.sharding.PartitionSpec(("data", "fsdp"))
    with jax.set_mesh(mesh):
        f = jax.shard_map(
            lambda x, w: x @ w[0],
            mesh=mesh,
            in_specs=(spec, jax.sharding.PartitionSpec()),
            out_specs=spec,
            axis_names={"data", "fsdp"},
        )
        assert count_dot_flops(f, X, W) == ONE
