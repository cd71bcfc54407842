"""Adapters in the model: the joined tree computes what the merged one does, wherever weights are read."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.model.checkpoint import abstract_params
from ra3_jax.model.config import LoRAConfig, ModelConfig
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.model.lora import N_IN, abstract_adapters, init_adapters, join, merge
from tests.model.small_models import SMALL, compiled, one_segment, random_params, random_tokens

LORA = LoRAConfig(rank=3, alpha=7.0)
NAMES = ("qwen2", "everything")


@functools.cache
def adapters_of(config: ModelConfig, lora: LoRAConfig = LORA):
    """Random ones: B too, which begins at zero, so that a forgotten adapter shows."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        shapes = abstract_adapters(abstract_params(LanguageModel(config), mesh), lora)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), shapes)


def explicit(params, adapters, scale: float):
    """W + scale B A, written out in numpy."""
    layers = dict(params["layers"])
    for name, n_in in N_IN.items():
        if name + "_a" not in adapters["layers"]:
            continue
        w_N = np.asarray(layers[name])
        n, outs = w_N.shape[0], w_N.shape[1:-n_in]
        a_NRI = np.asarray(adapters["layers"][name + "_a"]).reshape(n, -1, math.prod(w_N.shape[-n_in:]))
        b_NOR = np.asarray(adapters["layers"][name + "_b"]).reshape(n, math.prod(outs), -1)
        layers[name] = jnp.asarray(w_N + scale * (b_NOR @ a_NRI).reshape(w_N.shape))
    return {**params, "layers": layers}


@pytest.mark.parametrize("name", NAMES)
def test_merged_forward_is_the_joined_one(name):
    config = SMALL[name]
    params, adapters, rows = random_params(config), adapters_of(config), one_segment(random_tokens((2, 9)))
    logits = compiled(config).logits
    joined_BTV = logits(join(params, adapters, LORA.scale), *rows)
    np.testing.assert_allclose(logits(merge(params, adapters, LORA.scale), *rows), joined_BTV, atol=1e-5)
    np.testing.assert_allclose(logits(explicit(params, adapters, 7 / 3), *rows), joined_BTV, atol=1e-5)
    assert np.abs(logits(params, *rows) - joined_BTV).max() > 0.1
    each = dataclasses.replace(config, scan_layers=not config.scan_layers)
    np.testing.assert_allclose(compiled(each).logits(join(params, adapters, LORA.scale), *rows), joined_BTV, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_cached_decode(name):
    """A prompt, then two windows of two tokens: joined, folded and merged weights give the same hidden states."""
    config = SMALL[name]
    model, adapters = LanguageModel(config), adapters_of(config)
    joined, merged = (f(random_params(config), adapters, LORA.scale) for f in (join, merge))
    tokens_BT, lengths_B, two_B = random_tokens((2, 9)), jnp.array([5, 5]), jnp.array([2, 2])
    folded = jax.jit(model.folded)(joined)
    assert jax.tree.structure(folded) == jax.tree.structure(merged)
    whole_BTD = compiled(config).hidden(merged, *one_segment(tokens_BT))
    for params in (joined, folded, merged):
        hidden_BPD, cache = compiled(config).prefill(params, tokens_BT[:, :5], lengths_B, model.init_cache(2, 16))
        parts = [hidden_BPD]
        for first in (5, 7):
            hidden_BWD, cache = compiled(config).decode(params, tokens_BT[:, first : first + 2], two_B, cache)
            parts.append(hidden_BWD)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole_BTD, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_training_begins_at_the_model_itself(name):
    config = SMALL[name]
    params, rows = random_params(config), one_segment(random_tokens((2, 9)))
    fresh = init_adapters(0, adapters_of(config))
    joined = join(params, fresh, LORA.scale)
    logits = compiled(config).logits
    np.testing.assert_array_equal(logits(joined, *rows), logits(params, *rows))
    a = fresh["layers"]["wo_a"]
    assert np.std(a) == pytest.approx(1 / math.sqrt(math.prod(a.shape[2:])), rel=0.1)
    for x, y in zip(jax.tree.leaves(fresh), jax.tree.leaves(init_adapters(0, adapters_of(config))), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(a, init_adapters(1, adapters_of(config))["layers"]["wo_a"])


def test_folded_weights_round_as_the_layers_do():
    """In bfloat16 B A is added before rounding in both: what samples is what is trained."""
    config = dataclasses.replace(SMALL["qwen2"], dtype="bfloat16")
    joined = join(random_params(config), adapters_of(config), LORA.scale)
    merged = merge(random_params(config), adapters_of(config), LORA.scale)
    folded = jax.jit(LanguageModel(config).folded)(joined)
    assert folded["layers"]["w_up"].dtype == jnp.bfloat16 and folded["embed"].dtype == jnp.float32
    for name in N_IN:
        exact, rounded = np.asarray(merged["layers"][name]), np.asarray(folded["layers"][name], np.float32)
        np.testing.assert_allclose(rounded, exact, rtol=2**-8)
    rows = one_segment(random_tokens((2, 9)))
    logits = compiled(config).logits
    np.testing.assert_allclose(logits(joined, *rows), logits(merged, *rows), atol=1e-2)


def test_full_rank_reaches_any_matrix():
    config = SMALL["qwen2"]
    lora = LoRAConfig(rank=32, alpha=8.0, targets=("w_down", "wo"))
    params = random_params(config)
    rng, adapters, wanted = np.random.default_rng(3), {"layers": {}}, {}
    for name, n_in in (("w_down", 1), ("wo", 2)):
        w_N = np.asarray(params["layers"][name])
        wanted[name] = rng.normal(size=w_N.shape).astype(np.float32)
        delta_NOI = (wanted[name] - w_N).reshape(*w_N.shape[:-n_in], -1)
        left, middle, right = np.linalg.svd(delta_NOI, full_matrices=False)
        b_NOR = left * middle[:, None, :] / lora.scale
        adapters["layers"] |= {f"{name}_a": right.reshape(w_N.shape[0], 32, *w_N.shape[-n_in:]), f"{name}_b": b_NOR}
    merged = merge(params, jax.device_put(adapters), lora.scale)
    for name, w_N in wanted.items():
        np.testing.assert_allclose(merged["layers"][name], w_N, atol=2e-5)
    assert merged["layers"]["wq"] is params["layers"]["wq"]


def test_merging_in_place():
    config = SMALL["qwen2"]
    mine = jax.tree.map(jnp.copy, random_params(config))
    kept = merge(mine, adapters_of(config), LORA.scale)
    assert not any(x.is_deleted() for x in jax.tree.leaves(mine))
    taken = merge(mine, adapters_of(config), LORA.scale, donate=True)
    assert all(mine["layers"][name].is_deleted() for name in N_IN) and not mine["embed"].is_deleted()
    jax.tree.map(np.testing.assert_array_equal, kept, taken)


def test_adapters_lie_like_their_matrices():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    config = SMALL["qwen2"]
    with jax.set_mesh(mesh):
        layers = abstract_adapters(abstract_params(LanguageModel(config), mesh), LORA)["layers"]
    assert set(layers) == {name + suffix for name in N_IN for suffix in ("_a", "_b")}
    spec = {name: tuple(x.sharding.spec) for name, x in layers.items()}
    assert layers["wo_a"].shape == (2, 3, 4, 8) and spec["wo_a"] == (None, None, "model", None)
    assert layers["wo_b"].shape == (2, 32, 3) and spec["wo_b"] == (None, "fsdp", None)
    assert layers["wk_a"].shape == (2, 3, 32) and spec["wk_a"] == (None, None, "fsdp")
    assert layers["wk_b"].shape == (2, 2, 8, 3) and spec["wk_b"] == (None, "model", None, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": -1}, "rank=-1"),
        ({"alpha": 0.0}, "alpha=0"),
        ({"targets": ("wx",)}, "wx"),
        ({"targets": ()}, "some of"),
    ],
)
def test_impossible_adapters_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        LoRAConfig(**fields)
