"""The same numbers on every mesh, and every weight where the rules put it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.errors import InputError
from ra3_jax.core.mesh import batch_sharding, make_mesh
from ra3_jax.model.language_model import LanguageModel
from tests.model.small_models import SMALL, one_segment, random_params, random_tokens
from tests.model.test_language_model import value_and_grad

MESHES = (MeshConfig(2, 2, 2), MeshConfig(8, 1, 1))


def put(params, model, mesh):
    return jax.device_put(params, model.param_shardings(mesh))


def test_logits_loss_and_gradients_equal_one_device():
    config = SMALL["everything"]
    model, params = LanguageModel(config), random_params(config)
    batch = one_segment(random_tokens((8, 12)))
    expected = jax.device_get(value_and_grad(model, params, batch))
    for mesh in map(make_mesh, MESHES):
        with jax.set_mesh(mesh):
            batch = jax.device_put(batch, batch_sharding(mesh))
            found = jax.device_get(value_and_grad(model, put(params, model, mesh), batch))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_decoding_equals_one_device():
    config = SMALL["everything"]
    model, params = LanguageModel(config), random_params(config)
    tokens_BT, lengths_B = random_tokens((8, 12)), np.arange(8, dtype=np.int32)

    def run(params, tokens_BT, lengths_B):
        _, cache = model.prefill(params, tokens_BT[:, :8], lengths_B, model.init_cache(8, 12))
        cache = cache.take(jnp.array([0, 0, 1, 2, 3, 5, 6, 7]))
        hidden_BWD, cache = model.decode(params, tokens_BT[:, 8:], lengths_B % 5, cache)
        return model.unembed(params, hidden_BWD), cache

    expected, _ = jax.jit(run)(params, tokens_BT, lengths_B)
    mesh = make_mesh(MESHES[0])
    with jax.set_mesh(mesh):
        found, cache = jax.jit(run)(put(params, model, mesh), tokens_BT, lengths_B)
        k_BKSE = cache.layers[0].k_BKSE
        rows_and_heads = jax.sharding.NamedSharding(mesh, P(("data", "fsdp"), "model"))
        assert k_BKSE.sharding.is_equivalent_to(rows_and_heads, 4)
    np.testing.assert_allclose(jax.device_get(found), jax.device_get(expected), atol=1e-5)


def test_params_are_where_the_rules_say():
    mesh = make_mesh(MESHES[0])
    with jax.set_mesh(mesh):
        model = LanguageModel(SMALL["llama"])
        assert model.param_specs()["layers"]["wq"] == P("layers", "heads", "head_dim", "embed")
        params = jax.jit(model.init, out_shardings=model.param_shardings(mesh))(jax.random.key(0))
    expected = {
        "embed": P("model", "fsdp"),
        "lm_head": P("model", "fsdp"),
        "final_norm": P(None),
        "attn_norm": P(None, None),
        "mlp_norm": P(None, None),
        "wq": P(None, "model", None, "fsdp"),
        "wk": P(None, "model", None, "fsdp"),
        "wv": P(None, "model", None, "fsdp"),
        "wo": P(None, "fsdp", "model", None),
        "w_gate": P(None, "model", "fsdp"),
        "w_up": P(None, "model", "fsdp"),
        "w_down": P(None, "fsdp", "model"),
    }
    weights = {k: v for k, v in params.items() if k != "layers"} | params["layers"]
    assert {name: w.sharding.spec for name, w in weights.items()} == expected
    one_device = jax.jit(model.init)(jax.random.key(0))  # the key decides, not the mesh
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(one_device))


def test_an_axis_that_cannot_be_cut_is_named():
    model = LanguageModel(SMALL["llama"])  # two key/value heads
    with pytest.raises(InputError, match=r"weight layers/wk: its axis 'kv_heads' has size 2.*4 devices.*--mesh"):
        model.param_shardings(make_mesh(MeshConfig(1, 2, 4)))


@pytest.mark.parametrize(("vocab", "spec"), [(33, P(None, "fsdp")), (34, P(None, "fsdp")), (36, P("model", "fsdp"))])
def test_a_vocabulary_that_cannot_be_cut_stays_whole(vocab: int, spec: P):
    """Two parts of 17 would not be halved either: `unembed` cuts over both axes."""
    model = LanguageModel(dataclasses.replace(SMALL["llama"], vocab_size=vocab))
    shardings = model.param_shardings(make_mesh(MESHES[0]))
    assert shardings["embed"].spec == shardings["lm_head"].spec == spec
