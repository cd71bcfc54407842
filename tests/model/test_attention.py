"""Attention alone: masks, rows without any slot, and the TPU kernel in interpret mode."""

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.model import transformer
from ra3_jax.model.attention import (
    attend,
    attend_cache,
    attend_causal,
    attend_cudnn,
    choose_kernel,
    continues,
    packed_mask,
)
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.model.splash import fits_splash, splash_attend
from tests.model.small_models import SMALL, V, compiled, random_params

SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 0]])


def test_packed_mask_by_definition():
    mask_TT = packed_mask(SEGMENTS)[0]
    for t in range(6):
        for s in range(6):
            assert mask_TT[t, s] == (s <= t and SEGMENTS[0, t] == SEGMENTS[0, s])
    assert continues(SEGMENTS).tolist() == [[False, True, False, True, True, False]]


@pytest.mark.parametrize("length", [40, 150])
def test_attention_by_blocks_equals_the_whole(length):
    """Packed rows in blocks of queries, a cache in blocks of slots, also with a ragged last block."""
    q_key, k_key, v_key = jax.random.split(jax.random.key(0), 3)
    q_BTKGE = jax.random.normal(q_key, (2, length, 2, 2, 8))
    k_BKTE, v_BKTE = (jax.random.normal(key, (2, 2, length, 8)) for key in (k_key, v_key))
    mask_BTT = packed_mask(jnp.ones((2, length), jnp.int32))
    expected_BTKGE = jax.jit(attend)(q_BTKGE, k_BKTE, v_BKTE, mask_BTT)
    found_BTKGE = jax.jit(attend_causal)(q_BTKGE, k_BKTE, v_BKTE, mask_BTT)
    np.testing.assert_allclose(found_BTKGE, expected_BTKGE, atol=1e-5)

    leftovers = ((0, 0), (0, 0), (0, 192 - length), (0, 0))  # slots that no position includes
    k_BKSE, v_BKSE = (jnp.pad(x, leftovers, constant_values=7.0) for x in (k_BKTE, v_BKTE))
    positions_BW = jnp.array([[length - 2, length - 1], [3, 4]])  # a long row and a short one
    rows_B1 = jnp.arange(2)[:, None]
    q_BWKGE = q_BTKGE[rows_B1, positions_BW]
    found_BWKGE = jax.jit(attend_cache)(q_BWKGE, k_BKSE, v_BKSE, positions_BW)
    np.testing.assert_allclose(found_BWKGE, expected_BTKGE[rows_B1, positions_BW], atol=1e-5)


def test_a_query_without_slots_is_finite():
    q_BTKGE, k_BKSE = jnp.ones((1, 2, 2, 2, 8)), jnp.ones((1, 2, 3, 8))
    nothing_BTS = jnp.zeros((1, 2, 3), bool)

    def total(q, k, v):
        return attend(q, k, v, nothing_BTS).sum()

    value, grads = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(q_BTKGE, k_BKSE, k_BKSE)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads)))


@pytest.mark.parametrize("shape", [MeshConfig(1, 1, 1), MeshConfig(2, 2, 2)])
def test_splash_equals_einsum(shape):
    """Values and gradients, grouped heads, several segments a row."""
    rng = np.random.default_rng(0)
    q_BTKGE, weight_BTKGE = rng.normal(size=(2, 4, 128, 2, 2, 64)).astype(np.float32)
    k_BKTE, v_BKTE = rng.normal(size=(2, 4, 2, 128, 64)).astype(np.float32)
    segment_ids_BT = np.sort(rng.integers(0, 4, (4, 128)), axis=-1).astype(np.int32)

    def splash(q, k, v, segment_ids_BT):
        return (splash_attend(q, k, v, segment_ids_BT, interpret=True) * weight_BTKGE).sum()

    def einsum(q, k, v, segment_ids_BT):
        return (attend(q, k, v, packed_mask(segment_ids_BT)) * weight_BTKGE).sum()

    inputs = (q_BTKGE, k_BKTE, v_BKTE, segment_ids_BT)
    expected = jax.jit(jax.value_and_grad(einsum, (0, 1, 2)))(*inputs)
    n_devices = shape.data * shape.fsdp * shape.model
    with jax.set_mesh(make_mesh(shape, jax.devices()[:n_devices])):
        found = jax.jit(jax.value_and_grad(splash, (0, 1, 2)))(*inputs)
    for a, b in zip(jax.device_get(jax.tree.leaves(found)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-4)


def test_a_model_with_splash(monkeypatch):
    interpreted = functools.partial(splash_attend, interpret=True)
    monkeypatch.setattr(transformer, "splash_attend", interpreted)
    config = SMALL["everything"]
    model = LanguageModel(dataclasses.replace(config, attention="splash"))
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(0, V, (1, 128)).astype(np.int32)
    segment_ids_BT = np.repeat([1, 2], [50, 78])[None].astype(np.int32)
    positions_BT = np.concatenate([np.arange(50), np.arange(78)])[None].astype(np.int32)
    batch = (random_params(config), tokens_BT, positions_BT, segment_ids_BT)
    found = jax.jit(model.logits)(*batch)
    np.testing.assert_allclose(found, compiled(config).logits(*batch), atol=1e-4)
    assert "pallas_call" in str(jax.make_jaxpr(model.logits)(*batch))
    assert fits_splash(128) and not fits_splash(100)


def test_cudnn_gets_the_same_problem():
    """Layout, scale, groups and mask that cuDNN is called with, computed by XLA; forward and backward."""
    q_key, k_key, v_key = jax.random.split(jax.random.key(1), 3)
    q_BTKGE = jax.random.normal(q_key, (2, 24, 2, 3, 8))
    k_BKTE, v_BKTE = (jax.random.normal(key, (2, 2, 24, 8)) for key in (k_key, v_key))
    segment_ids_BT = jnp.repeat(jnp.array([[1, 2, 3], [4, 4, 5]]), 8, axis=1)
    mask_BTT = packed_mask(segment_ids_BT)

    def loss(attend, q, k, v):
        return jnp.mean(jnp.sin(attend(q, k, v, mask_BTT)))

    inputs = (q_BTKGE, k_BKTE, v_BKTE)
    expected = jax.jit(jax.value_and_grad(functools.partial(loss, attend), (0, 1, 2)))(*inputs)
    by_xla = functools.partial(attend_cudnn, implementation="xla")
    found = jax.jit(jax.value_and_grad(functools.partial(loss, by_xla), (0, 1, 2)))(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_a_gpu_takes_cudnn_where_it_serves():
    fields = len(inspect.signature(jax.sharding.AbstractDevice).parameters)  # two before jax 0.10.1
    described: Any = ("NVIDIA H200", None, "gpu")[:fields]
    gpu = jax.sharding.AbstractDevice(*described)
    half = dataclasses.replace(SMALL["llama"], dtype="bfloat16")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=gpu)):
        assert choose_kernel(half, 128) == "cudnn"
        assert choose_kernel(half, 129) == "einsum" and choose_kernel(SMALL["llama"], 128) == "einsum"
        assert choose_kernel(dataclasses.replace(half, attention="einsum"), 128) == "einsum"
    assert choose_kernel(half, 128) == "einsum"  # on a CPU


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
def test_cudnn_equals_einsum():
    q_BTKGE = jax.random.normal(jax.random.key(1), (2, 256, 2, 3, 64), jnp.bfloat16)
    k_BKTE, v_BKTE = (jax.random.normal(jax.random.key(i), (2, 2, 256, 64), jnp.bfloat16) for i in (2, 3))
    mask_BTT = packed_mask(jnp.repeat(jnp.array([[1, 2, 3, 4], [4, 4, 5, 0]]), 64, axis=1))
    found, expected = (jax.jit(f)(q_BTKGE, k_BKTE, v_BKTE, mask_BTT) for f in (attend_cudnn, attend))
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=2e-2)
