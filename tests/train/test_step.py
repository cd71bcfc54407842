import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.train.config import OptimizerConfig
from ra3_jax.train.optimizer import decay_mask, make_optimizer
from ra3_jax.train.state import abstract_state, init_state, state_from_params, state_shardings
from ra3_jax.train.step import compile_count, make_train_step, put_batch, put_scalar
from tests.train import toy

CONFIG = OptimizerConfig(learning_rate=1e-2, clip_norm=0.5)
TX = make_optimizer(CONFIG)


@functools.cache
def initial_params():
    return jax.device_get(jax.jit(toy.init_params)(jax.random.key(0)))


@functools.cache
def compiled(shape=(1, 1, 1), accumulate=1):
    """(mesh, shardings, step): one compilation for all tests that use it."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
        shardings = state_shardings(initial_params(), TX, toy.param_shardings(mesh), mesh)
        step = make_train_step(toy.loss_fn, TX, mesh, shardings, accumulate=accumulate)
    return mesh, shardings, step


@functools.cache
def run(shape=(1, 1, 1), accumulate=1, n_steps=3):
    """Final state and the metrics of each step, every one with another learning rate."""
    mesh, shardings, step = compiled(shape, accumulate)
    with jax.set_mesh(mesh):
        state = state_from_params(initial_params(), TX, shardings)
        history = []
        for i in range(n_steps):
            batch = put_batch(toy.make_batch(i, 16), mesh)
            state, metrics = step(state, batch, put_scalar(1e-2 / (i + 1), mesh))
            history.append(jax.device_get(metrics))
    return state, history


def fresh(shape=(1, 1, 1), accumulate=1):
    """A fresh state and the step that takes it."""
    _, shardings, step = compiled(shape, accumulate)
    return state_from_params(initial_params(), TX, shardings), step


def assert_close(a, b, rtol=2e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def snapshot(tree):
    """A copy that shares no memory with device buffers (`device_get` may)."""
    return jax.tree.map(np.array, tree)


def test_step_is_clipped_adamw():
    state, history = run(n_steps=4)
    adamw = optax.chain(
        optax.clip_by_global_norm(CONFIG.clip_norm),
        optax.adamw(
            learning_rate=lambda count: 1e-2 / (count + 1),
            b1=CONFIG.b1,
            b2=CONFIG.b2,
            eps=CONFIG.eps,
            weight_decay=CONFIG.weight_decay,
            mask=decay_mask,
        ),
    )
    params = initial_params()
    opt_state = adamw.init(params)

    @jax.jit
    def reference(params, opt_state, batch):
        def mean_loss(params):
            loss, weight, _ = toy.loss_fn(params, batch)
            return loss / weight

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = adamw.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(grads)

    for i in range(4):
        params, opt_state, loss, norm = reference(params, opt_state, toy.make_batch(i, 16))
        np.testing.assert_allclose(history[i]["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(history[i]["grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(history[i]["error"], loss, rtol=1e-5)
        assert norm > CONFIG.clip_norm  # or the clipping was not tested
    assert_close(state.params, params)
    assert int(state.step) == 4


def test_accumulated_equals_single_batch():
    one, one_metrics = run()
    many, many_metrics = run(accumulate=4)
    assert_close(one.params, many.params)
    assert_close(one_metrics, many_metrics, rtol=1e-5)


@pytest.mark.parametrize("shape,accumulate", [((8, 1, 1), 1), ((2, 2, 2), 1), ((2, 2, 2), 4)])
def test_sharded_equals_one_device(shape, accumulate):
    one, one_metrics = run()
    state, metrics = run(shape, accumulate)
    _, shardings, step = compiled(shape, accumulate)
    assert_close(one.params, state.params)
    assert_close(one.opt_state, state.opt_state)
    assert_close(one_metrics, metrics, rtol=1e-5)
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings)
    assert all(jax.tree.leaves(same))
    assert compile_count(step) == 1  # over steps and learning rates


def test_fresh_states_lie_as_asked():
    mesh, shardings, _ = compiled((2, 2, 2))
    up = shardings.params["layers"]["up"]
    assert not up.is_fully_replicated
    with jax.set_mesh(mesh):
        random = init_state(toy.init_params, jax.random.key(0), TX, shardings)
        on_one_device = jax.jit(toy.init_params)(jax.random.key(0))
        copied = state_from_params(on_one_device, TX, shardings)
    for state in (random, copied):
        for tree in (state.params, state.opt_state[1].mu, state.opt_state[1].nu):
            assert tree["layers"]["up"].sharding.is_equivalent_to(up, 3)
        assert state.opt_state[1].count.sharding.is_fully_replicated
        assert_close(state.params, initial_params())
        assert not any(x.any() for x in jax.tree.leaves(snapshot(state.opt_state)))
        assert int(state.step) == 0
    moments = (random.opt_state[1].mu, random.opt_state[1].nu)
    assert {x.dtype for x in jax.tree.leaves(moments)} == {jnp.dtype("float32")}
    shapes = jax.eval_shape(lambda: initial_params())
    abstract = abstract_state(shapes, TX, shardings)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), random
    )


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_update_is_not_applied(bad, accumulate):
    state, step = fresh(accumulate=accumulate)
    before = snapshot(state)
    batch = toy.make_batch(0, 16)
    batch["y_BD"][3, 2] = bad
    state, metrics = step(state, batch, np.float32(1e-2))
    assert metrics["nonfinite"] == metrics["skipped"] == 1
    assert int(state.step) == 1
    assert_same(before.params, state.params)
    assert_same(before.opt_state, state.opt_state)


def test_batch_without_weight_changes_nothing():
    state, step = fresh()
    state, _ = step(state, toy.make_batch(0, 16), np.float32(1e-2))  # moments are not zero
    before = snapshot(state)
    batch = toy.make_batch(1, 16) | {"weight_B": np.zeros(16, np.float32)}
    state, metrics = step(state, batch, np.float32(1e-2))
    assert metrics["skipped"] == 1 and metrics["nonfinite"] == 0 and metrics["weight"] == 0
    assert np.isnan(metrics["loss"]) and np.isnan(metrics["error"])
    assert_same(before.params, state.params)
    assert_same(before.opt_state, state.opt_state)


@pytest.mark.parametrize("on_host", [False, True])
def test_donation_spares_the_callers_params(on_host):
    _, shardings, step = compiled()
    params = jax.tree.map(jnp.asarray, initial_params())
    params = snapshot(params) if on_host else params
    before = snapshot(params)
    first = state = state_from_params(params, TX, shardings)
    for i in range(2):
        state, _ = step(state, toy.make_batch(i, 16), np.float32(1e-2))
    assert first.params["layers"]["up"].is_deleted()  # the state itself was donated
    assert_same(params, before)
    assert not np.array_equal(state.params["layers"]["up"], before["layers"]["up"])


def test_state_is_updated_in_place():
    state, step = fresh()
    program = step.lower(state, toy.make_batch(0, 16), np.float32(0)).compile()
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= state_bytes


def test_rows_that_cannot_be_cut_are_refused():
    state, step = fresh(accumulate=4)
    with pytest.raises(ValueError, match="10 rows cannot be cut into accumulate=4"):
        step(state, toy.make_batch(0, 10), np.float32(0))
    with pytest.raises(ValueError, match=r"as many as batch.*weight_B.* of shape \(15,\)"):
        step(state, toy.make_batch(0, 16) | {"weight_B": np.ones(15, np.float32)}, np.float32(0))
    with pytest.raises(ValueError, match="6 rows cannot be cut .* over 4 data-parallel devices"):
        put_batch(toy.make_batch(0, 6), compiled((2, 2, 2))[0])
