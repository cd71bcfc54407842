"""Optimizers that remember less: Adafactor's sums in place of moments, a first moment in bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh, sharding
from ra3_jax.train.config import OptimizerConfig
from ra3_jax.train.optimizer import make_optimizer
from ra3_jax.train.state import abstract_state, state_from_params, state_shardings
from ra3_jax.train.step import make_train_step, put_batch, put_scalar
from tests.train import toy

ADAMW = OptimizerConfig(clip_norm=1e3, weight_decay=0.0)
ADAFACTOR = dataclasses.replace(ADAMW, kind="adafactor")
N, F, D = 2, 256, 128


def wide_params() -> dict:
    """Stacked matrices that are factored, heads that are too narrow for it, a square one, a vector."""
    rng = np.random.default_rng(0)
    shapes = {"up": (N, F, D), "wq": (N, 4, 32, D), "square": (N, D, D), "norm": (N, D)}
    return {"layers": {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}}


def wide_shardings(mesh) -> dict:
    axes = {"up": ("mlp", "embed"), "wq": ("heads", "head_dim", "embed"), "square": ("mlp", "embed"), "norm": (None,)}
    return {"layers": {name: sharding(mesh, "layers", *names) for name, names in axes.items()}}


def wide_loss(params: dict, batch: dict):
    """Distance of every weight to a target of its own; gradients differ by row, column and layer."""
    weights = params["layers"]
    targets = {name: jnp.sin(jnp.arange(x.size).reshape(x.shape) * 0.1) for name, x in weights.items()}
    loss = sum(jnp.sum(jnp.square(x - targets[name])) for name, x in weights.items())
    rows = jnp.float32(batch["x_B"].shape[0])
    return loss * rows, rows, {}


def learn(config: OptimizerConfig, shape=(1, 1, 1), n_steps: int = 3):
    """(mesh, state, losses) of a few steps on the wide weights."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    tx = make_optimizer(config)
    with jax.set_mesh(mesh):
        shardings = state_shardings(wide_params(), tx, wide_shardings(mesh), mesh)
        step = make_train_step(wide_loss, tx, mesh, shardings)
        state, losses = state_from_params(wide_params(), tx, shardings), []
        for _ in range(n_steps):
            state, metrics = step(state, put_batch({"x_B": np.zeros(8)}, mesh), put_scalar(0.05, mesh))
            losses.append(float(metrics["loss"]))
    return mesh, state, losses


def factored(state):
    """The second moments of Adafactor's state: (rows, columns, whole)."""
    rms = state.opt_state[1][0]
    return rms.v_row["layers"], rms.v_col["layers"], rms.v["layers"]


def test_adafactor_keeps_sums_layer_by_layer():
    _, state, losses = learn(ADAFACTOR)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.95 * losses[0]
    rows, columns, whole = factored(state)
    assert {rows["up"].shape, columns["up"].shape} == {(N, F), (N, D)} and whole["up"].size == 1
    assert rows["square"].shape == columns["square"].shape == (N, D) and whole["square"].size == 1
    assert whole["wq"].shape == (N, 4, 32, D) and whole["norm"].shape == (N, D)  # axes of 32 and N are not factored
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert moments < 0.4 * sum(x.size for x in jax.tree.leaves(state.params))


def test_adafactors_first_update_by_hand():
    """t = 1: the decay is 0, so v is g^2 itself; its rank-1 form and the clipped root mean square, in numpy."""
    _, state, _ = learn(ADAFACTOR, n_steps=1)
    for name in ("up", "square"):
        before = wide_params()["layers"][name]
        g = 2 * (before - np.sin(np.arange(before.size).reshape(before.shape) * 0.1)).astype(np.float32)
        v = g**2
        rank_1 = v.mean(2, keepdims=True) * v.mean(1, keepdims=True) / v.mean((1, 2), keepdims=True)
        u = g / np.sqrt(rank_1)
        u /= max(1.0, np.sqrt(np.mean(u**2)))
        np.testing.assert_allclose(state.params["layers"][name], before - 0.05 * u, rtol=1e-4, atol=1e-4)


def test_adafactor_sharded_equals_one_device_and_is_restored(tmp_path):
    _, one, _ = learn(ADAFACTOR)
    mesh, state, _ = learn(ADAFACTOR, (2, 2, 2))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), one, jax.device_get(state))
    rows, columns, whole = factored(state)
    assert all(x.sharding.is_fully_replicated for x in (rows["up"], columns["up"], rows["square"], columns["square"]))
    assert not whole["wq"].sharding.is_fully_replicated
    tx = make_optimizer(ADAFACTOR)
    shardings = state_shardings(wide_params(), tx, wide_shardings(mesh), mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        again, _ = checkpoints.restore(abstract_state(wide_params(), tx, shardings))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))
    for x, s in zip(jax.tree.leaves(again), jax.tree.leaves(shardings), strict=True):
        assert x.sharding.is_equivalent_to(s, x.ndim)


@pytest.mark.parametrize("config", [ADAFACTOR, dataclasses.replace(ADAMW, moment_dtype="bfloat16")])
def test_the_toy_learns_in_place(config):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    tx = make_optimizer(config)
    params = jax.device_get(jax.jit(toy.init_params)(jax.random.key(0)))
    shardings = state_shardings(params, tx, toy.param_shardings(mesh), mesh)
    step = make_train_step(toy.loss_fn, tx, mesh, shardings)
    first = state = state_from_params(params, tx, shardings)
    losses = []
    for _ in range(30):
        state, metrics = step(state, toy.make_batch(0, 16), np.float32(1e-2))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert all(x.is_deleted() for x in jax.tree.leaves(first))  # donated, sums and all
    bad = toy.make_batch(0, 16)
    bad["y_BD"][0, 0] = np.nan
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, bad, np.float32(1e-2))
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.opt_state), (state.params, state.opt_state))


def test_the_first_moment_in_bfloat16():
    _, exact, _ = learn(ADAMW)
    _, state, _ = learn(dataclasses.replace(ADAMW, moment_dtype="bfloat16"))
    adam, of_exact = state.opt_state[1], exact.opt_state[1]
    assert {x.dtype for x in jax.tree.leaves(adam.mu)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves((adam.nu, of_exact.mu))} == {jnp.dtype("float32")}
    start = wide_params()
    for a, b, w in zip(*(jax.tree.leaves(x) for x in (state.params, exact.params, start)), strict=True):
        moved = np.asarray(b) - w
        np.testing.assert_allclose(np.asarray(a) - w, moved, atol=0.02 * np.abs(moved).max())
        assert not np.array_equal(a, b)
