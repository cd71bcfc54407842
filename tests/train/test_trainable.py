"""All weights or adapters: gradients, what stays frozen, meshes, checkpoints."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ra3_jax.core.checkpoint import CheckpointError, Checkpoints
from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.core.rundir import RunDir
from ra3_jax.data.tokenizer import load_tokenizer
from ra3_jax.model.checkpoint import load_model, save_model_artifacts
from ra3_jax.model.config import LoRAConfig
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.train.config import OptimizerConfig
from ra3_jax.train.step import frozen_args, put_batch, put_scalar
from ra3_jax.train.trainable import Trainable
from tests.model.small_models import SMALL, V, random_params
from tests.model.test_lora import explicit

CONFIG = SMALL["qwen2"]
MODEL = LanguageModel(CONFIG)
LORA = LoRAConfig(rank=4, alpha=6.0)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, clip_norm=1e3, weight_decay=0.0)


def loss_fn(params, batch: dict):
    """Next-token loss of rows that each hold one sequence."""
    tokens_BT = batch["tokens_BT"]
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    logits_BTV = MODEL.logits(params, tokens_BT, positions_BT, jnp.ones_like(tokens_BT))[:, :-1]
    logp_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[:, 1:, None], axis=2)[..., 0]
    weight = jnp.float32(logp_BT.size)
    return -jnp.sum(logp_BT), weight, {"nll": (-jnp.sum(logp_BT), weight)}


def make_batch(i: int) -> dict:
    return {"tokens_BT": np.random.default_rng(i).integers(0, V, (8, 10)).astype(np.int32)}


@functools.cache
def compiled(shape=(1, 1, 1), accumulate: int = 1, lora: LoRAConfig = LORA):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
        trainable = Trainable.create(MODEL, mesh, OPTIMIZER, lora)
        return mesh, trainable, trainable.compile(loss_fn, accumulate=accumulate)


def learn(n_steps: int, shape=(1, 1, 1), accumulate: int = 1, lora: LoRAConfig = LORA, state: Any = None):
    """(state, frozen weights, metrics of each update)."""
    mesh, trainable, step = compiled(shape, accumulate, lora)
    with jax.set_mesh(mesh):
        frozen = trainable.frozen(random_params(CONFIG))
        state = trainable.start(random_params(CONFIG), seed=5) if state is None else state
        history = []
        batch = put_batch(make_batch(0), mesh)
        for _ in range(n_steps):
            state, metrics = step(state, batch, put_scalar(1e-2, mesh), *frozen_args(frozen))
            history.append(jax.device_get(metrics))
    return state, frozen, history


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), a, b)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_only_adapters_learn():
    before = jax.tree.map(np.array, random_params(CONFIG))
    state, frozen, history = learn(6)
    same(frozen, before)
    assert set(state.params) == {"layers"} and set(state.params["layers"]) == {
        name + suffix for name in LORA.targets for suffix in ("_a", "_b")
    }
    assert all(np.abs(b).max() > 0 for name, b in state.params["layers"].items() if name.endswith("_b"))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert history[0]["loss"] == pytest.approx(float(loss_fn(before, make_batch(0))[0]) / 72, rel=1e-5)  # B is zero
    moments = jax.tree.leaves(state.opt_state[1].mu)
    assert sum(x.size for x in moments) == sum(x.size for x in jax.tree.leaves(state.params))


def test_gradients_are_those_of_merged_weights():
    """Adam from nothing moves by lr * g / (|g| + eps); its first moment is (1 - b1) g: the gradient can be read off."""
    state, _, _ = learn(2)
    adapters = jax.tree.map(np.array, state.params)
    before = jax.tree.map(np.array, state.opt_state[1].mu)
    params = random_params(CONFIG)

    @jax.jit
    def brute_force(adapters):
        layers = dict(params["layers"])
        for name in LORA.targets:
            a, b = adapters["layers"][name + "_a"], adapters["layers"][name + "_b"]
            n, rank = a.shape[:2]
            delta = jnp.einsum("nor,nri->noi", b.reshape(n, -1, rank), a.reshape(n, rank, -1))
            layers[name] = layers[name] + LORA.alpha / LORA.rank * delta.reshape(layers[name].shape)
        loss, weight, _ = loss_fn({**params, "layers": layers}, make_batch(0))
        return loss / weight

    expected = jax.grad(brute_force)(adapters)
    state, _, (metrics,) = learn(1, state=state)
    found = jax.tree.map(lambda mu, old: (mu - OPTIMIZER.b1 * old) / (1 - OPTIMIZER.b1), state.opt_state[1].mu, before)
    close(found, expected)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(expected)), rel=1e-4)
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(expected))


@pytest.mark.parametrize(("shape", "accumulate"), [((1, 1, 1), 4), ((2, 2, 2), 1), ((1, 8, 1), 1)])
def test_meshes_and_microbatches_change_nothing(shape, accumulate):
    state, _, history = learn(2)
    other, frozen, metrics = learn(2, shape, accumulate)
    close(history, metrics)
    close(state.params, other.params, atol=2e-4)  # of two updates of at most 1e-2 each
    _, trainable, _ = compiled(shape, accumulate)
    if math.prod(shape) > 1:
        assert not other.params["layers"]["w_up_a"].is_fully_replicated
    for x, s in zip(jax.tree.leaves(other), jax.tree.leaves(trainable.shardings), strict=True):
        assert x.sharding.is_equivalent_to(s, x.ndim)
    with jax.set_mesh(trainable.mesh):
        merged = trainable.plain(other.params, frozen)
    close(merged, explicit(random_params(CONFIG), jax.device_get(other.params), LORA.scale))
    assert frozen is not None and merged["layers"]["wq"].sharding == frozen["layers"]["wq"].sharding


def test_without_adapters_it_is_the_plain_step():
    state, frozen, history = learn(3, lora=LoRAConfig())
    assert frozen is None and jax.tree.structure(state.params) == jax.tree.structure(random_params(CONFIG))
    assert history[-1]["loss"] < history[0]["loss"]
    _, trainable, _ = compiled(lora=LoRAConfig())
    assert trainable.weights(state.params, frozen) is state.params is trainable.plain(state.params, frozen)
    assert set(trainable.tree(state, frozen)) == {"params", "opt_state", "step"}


def save(out, state, frozen, trainable) -> None:
    run = RunDir.at(out)
    save_model_artifacts(run, CONFIG, load_tokenizer("puzzles"))
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(2, trainable.tree(state, frozen), {"position": {}})


def test_a_checkpoint_goes_on_and_is_a_model(tmp_path, one_device_mesh):
    """In the middle of training: restored bit for bit, and loaded with its adapters merged."""
    _, trainable, _ = compiled()
    state, frozen, _ = learn(2)
    save(tmp_path, state, frozen, trainable)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        again, weights, _, _ = trainable.restore(checkpoints, 2)
        with pytest.raises(CheckpointError, match="no such array"):  # the frozen weights pass for no trained model
            checkpoints.restore_part({"params": weights})
    same(jax.device_get(again), jax.device_get(state))
    same(weights, frozen)
    merged = trainable.plain(state.params, frozen)
    same(load_model(str(tmp_path), one_device_mesh).params, merged)
    assert frozen is not None and not np.array_equal(merged["layers"]["wq"], frozen["layers"]["wq"])


def test_a_sharded_checkpoint_is_loaded_by_one_device(tmp_path, one_device_mesh):
    mesh, trainable, _ = compiled((2, 2, 2))
    state, frozen, _ = learn(2, (2, 2, 2))
    with jax.set_mesh(mesh):
        save(tmp_path, state, frozen, trainable)
        merged = jax.device_get(trainable.plain(state.params, frozen))
    close(load_model(str(tmp_path), one_device_mesh).params, merged, atol=1e-6)
