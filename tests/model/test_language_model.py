"""The packed forward pass: against a plain numpy Transformer, and invariant to how it is run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.model.config import ModelConfig
from ra3_jax.model.language_model import LanguageModel
from tests.model.small_models import (
    SMALL,
    V,
    compiled,
    one_segment,
    random_params,
    random_tokens,
)

ALL = pytest.mark.parametrize("name", SMALL)


def numpy_logits(config: ModelConfig, params, tokens_T: np.ndarray) -> np.ndarray:
    """logits_TV of one sequence, float64, one token, head and slot at a time where that is
    clearest.
    """
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

    def rotate(x_E, position):
        half = config.head_dim // 2
        out = np.empty_like(x_E)
        for i in range(half):
            frequency = config.rope_theta ** (-2 * i / config.head_dim)
            scaling = config.rope_scaling
            if scaling is not None:
                wavelength = 2 * np.pi / frequency
                low = scaling.original_max_position / scaling.low_freq_factor
                high = scaling.original_max_position / scaling.high_freq_factor
                if wavelength > low:
                    frequency /= scaling.factor
                elif wavelength > high:
                    span = scaling.high_freq_factor - scaling.low_freq_factor
                    ratio = scaling.original_max_position / wavelength
                    smooth = (ratio - scaling.low_freq_factor) / span
                    frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
            c, s = np.cos(position * frequency), np.sin(position * frequency)
            out[i] = x_E[i] * c - x_E[i + half] * s
            out[i + half] = x_E[i + half] * c + x_E[i] * s
        return out

    x_TD = w["embed"][tokens_T]
    length, group = len(tokens_T), config.n_heads // config.n_kv_heads
    for n in range(config.n_layers):
        layer = {name: value[n] for name, value in w["layers"].items()}
        h_TD = norm(x_TD, layer["attn_norm"])
        q_THE = np.einsum("td,hed->the", h_TD, layer["wq"])
        k_TKE = np.einsum("td,ked->tke", h_TD, layer["wk"])
        v_TKE = np.einsum("td,ked->tke", h_TD, layer["wv"])
        if config.key_shift:
            k_TKE[1:] += np.einsum("td,ked->tke", h_TD[:-1], layer["wk_shift"])
        if config.qkv_bias:
            q_THE, k_TKE, v_TKE = q_THE + layer["bq"], k_TKE + layer["bk"], v_TKE + layer["bv"]
        if config.qk_norm:
            q_THE, k_TKE = norm(q_THE, layer["q_norm"]), norm(k_TKE, layer["k_norm"])
        out_TD = np.zeros_like(x_TD)
        for t in range(length):
            for head in range(config.n_heads):
                q_E = rotate(q_THE[t, head], t)
                keys = [rotate(k_TKE[s, head // group], s) for s in range(t + 1)]
                scores = np.array([q_E @ k_E for k_E in keys]) / np.sqrt(config.head_dim)
                probs = np.exp(scores - scores.max())
                mixed_E = (probs / probs.sum()) @ v_TKE[: t + 1, head // group]
                out_TD[t] += layer["wo"][:, head] @ mixed_E
        x_TD = x_TD + out_TD
        h_TD = norm(x_TD, layer["mlp_norm"])
        gate_TF = h_TD @ layer["w_gate"].T
        x_TD = x_TD + (gate_TF / (1 + np.exp(-gate_TF)) * (h_TD @ layer["w_up"].T)) @ layer["w_down"].T
    head_VD = w["embed"] if config.tie_embeddings else w["lm_head"]
    return norm(x_TD, w["final_norm"]) @ head_VD.T


@ALL
def test_logits_equal_plain_numpy(name):
    config = SMALL[name]
    params, tokens_BT = random_params(config), random_tokens((2, 20))
    logits_BTV = compiled(config).logits(params, *one_segment(tokens_BT))
    assert logits_BTV.dtype == jnp.float32
    for tokens_T, logits_TV in zip(tokens_BT, logits_BTV, strict=True):
        np.testing.assert_allclose(logits_TV, numpy_logits(config, params, tokens_T), atol=2e-4)


def test_packed_equals_unpacked():
    config = SMALL["everything"]
    functions, params = compiled(config), random_params(config)
    lengths = (5, 1, 9)  # of three segments; then two slots of padding
    parts = [random_tokens((n,), seed=n) for n in lengths]
    row = np.concatenate([*parts, np.zeros(2, np.int32)])
    positions = np.concatenate([*[np.arange(n) for n in lengths], np.zeros(2, int)])
    segments = np.concatenate([np.repeat([1, 2, 3], lengths), np.zeros(2, int)])
    packed_TV = functions.logits(params, row[None], positions[None], segments[None])[0]
    assert np.isfinite(packed_TV).all()
    start = 0
    for part in parts:
        alone_TV = functions.logits(params, *one_segment(part[None]))[0]
        np.testing.assert_allclose(packed_TV[start : start + len(part)], alone_TV, atol=2e-5)
        start += len(part)


def loss_of(model: LanguageModel):
    """(mean next-token loss, logits) as a function of (params, tokens, positions, segments)."""

    def loss(params, tokens_BT, positions_BT, segment_ids_BT):
        logits_BTV = model.logits(params, tokens_BT, positions_BT, segment_ids_BT)
        logp_BTV = jax.nn.log_softmax(logits_BTV[:, :-1])
        targets_BT1 = tokens_BT[:, 1:, None]
        return -jnp.take_along_axis(logp_BTV, targets_BT1, axis=-1).mean(), logits_BTV

    return loss


def value_and_grad(model: LanguageModel, params, batch):
    """((loss, logits), gradients), jitted."""
    return jax.jit(jax.value_and_grad(loss_of(model), has_aux=True))(params, *batch)


def test_scan_and_remat_change_nothing():
    base = SMALL["everything"]
    params, batch = random_params(base), one_segment(random_tokens((2, 8)))

    def run(scan_layers, remat):
        config = dataclasses.replace(base, scan_layers=scan_layers, remat=remat)
        return value_and_grad(LanguageModel(config), params, batch)

    expected = run(False, "none")
    for scan_layers, remat in ((False, "full"), (True, "full"), (True, "dots")):
        found = run(scan_layers, remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@ALL
def test_n_params_counts_the_weights(name):
    params = jax.eval_shape(LanguageModel(SMALL[name]).init, jax.random.key(0))
    assert sum(w.size for w in jax.tree.leaves(params)) == SMALL[name].n_params
    assert {w.dtype for w in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_init_is_a_function_of_the_key():
    init = jax.jit(LanguageModel(SMALL["llama"]).init)
    a, b, c = init(jax.random.key(0)), init(jax.random.key(0)), init(jax.random.key(1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    assert not np.array_equal(a["layers"]["wq"], c["layers"]["wq"])
    assert not np.array_equal(a["layers"]["wq"][0], a["layers"]["wq"][1])  # layers differ
    wo = a["layers"]["wo"]  # fan-in is heads * head_dim
    assert abs(float(wo.std()) * np.sqrt(wo.shape[2] * wo.shape[3]) - 1) < 0.1


def test_bfloat16_is_finite_and_near_float32():
    config = dataclasses.replace(SMALL["everything"], n_layers=1)
    params, batch = random_params(config), one_segment(random_tokens((2, 16)))
    half = LanguageModel(dataclasses.replace(config, dtype="bfloat16"))
    assert jax.eval_shape(half.hidden, params, *batch).dtype == jnp.bfloat16
    (_, logits_BTV), grads = value_and_grad(half, params, batch)
    expected_BTV = compiled(config).logits(params, *batch)
    assert logits_BTV.dtype == jnp.float32
    assert np.abs(logits_BTV - expected_BTV).max() < 0.05 * np.abs(expected_BTV).max()
    for grad in jax.tree.leaves(grads):
        assert grad.dtype == jnp.float32 and np.isfinite(grad).all()


def test_unembed_takes_any_leading_axes():
    model, params = LanguageModel(SMALL["llama"]), random_params(SMALL["llama"])
    hidden_BTD = jax.random.normal(jax.random.key(0), (2, 3, 32))
    unembed = jax.jit(model.unembed)
    logits_BTV = unembed(params, hidden_BTD)
    assert logits_BTV.shape == (2, 3, V)
    np.testing.assert_allclose(unembed(params, hidden_BTD[:, 1]), logits_BTV[:, 1], atol=1e-6)
    np.testing.assert_allclose(unembed(params, hidden_BTD[1, 2]), logits_BTV[1, 2], atol=1e-6)


def test_padding_rows_have_finite_gradients():
    config = dataclasses.replace(SMALL["key_shift"], n_layers=1)
    zeros_BT = np.zeros((2, 8), np.int32)
    result = value_and_grad(LanguageModel(config), random_params(config), (zeros_BT,) * 3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
