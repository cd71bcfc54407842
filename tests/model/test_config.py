"""Model configurations: presets, JSON, and what is refused of an HF config."""

import dataclasses
import json

import pytest

from ra3_jax.model.config import PRESETS, ModelConfig
from ra3_jax.model.hf_config import (
    HFConfigError,
    config_from_hf,
    config_to_hf,
    refuse_unexportable,
)
from tests.model.small_models import SMALL

# Sizes that the model cards and the files' own indices give.
PUBLISHED = {
    "llama3.2-1b": 1_235_814_400,
    "llama3.1-8b": 8_030_261_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
}
LLAMA_3_2_1B = {  # its config.json on the Hub, as transformers 4 wrote it
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}


def test_presets_have_the_published_sizes():
    assert {name: config.n_params for name, config in PRESETS.items()} == PUBLISHED


@pytest.mark.parametrize("config", [*PRESETS.values(), *SMALL.values()])
def test_json_round_trip(config):
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_from_json_names_unknown_and_missing_fields():
    data = SMALL["llama"].to_json()
    data["d_modle"] = data.pop("d_model")
    with pytest.raises(ValueError, match=r"unknown fields \['d_modle'\], missing.*\['d_model'\]"):
        ModelConfig.from_json(data)
    data = SMALL["qwen3"].to_json()
    for later_field in ("attention", "rope_scaling"):  # as in the file of an older version
        del data[later_field]
    assert ModelConfig.from_json(data) == SMALL["qwen3"]
    data = SMALL["llama"].to_json()
    del data["rope_scaling"]["factor"]
    with pytest.raises(ValueError, match=r"rope_scaling: .*missing fields \['factor'\]"):
        ModelConfig.from_json(data)


def test_hub_config_gives_the_preset():
    found = dataclasses.replace(config_from_hf(LLAMA_3_2_1B), dtype="bfloat16", remat="full")
    assert found == PRESETS["llama3.2-1b"]


@pytest.mark.parametrize("name", PRESETS)
def test_generated_hf_config_reads_back(name):
    expected = dataclasses.replace(PRESETS[name], dtype="float32", remat="none")
    assert config_from_hf(config_to_hf(PRESETS[name])) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="mixtral"), "model_type is 'mixtral', expected one of"),
        (dict(hidden_act="gelu"), "hidden_act is 'gelu', expected 'silu'"),
        (dict(mlp_bias=True), "mlp_bias is True, expected False"),
        (dict(attention_bias=True), "attention_bias is True, expected False"),
        (dict(use_sliding_window=True), "use_sliding_window is True, expected False"),
        (dict(layer_types=["sliding_attention"]), "layer_types is .'sliding_attention'., expected"),
        (dict(quantization_config={"bits": 4}), "quantization_config is .*, expected None"),
        (dict(hidden_size=None), "hidden_size is None, expected a value of type int"),
        (dict(rope_theta=None), "rope_theta is None, expected a number"),
        (dict(rope_scaling=dict(rope_type="yarn")), "rope_scaling.rope_type is 'yarn', expected"),
        (dict(rope_scaling=dict(type="linear")), "rope_scaling.rope_type is 'linear', expected"),
        (dict(rope_scaling=dict(rope_type="llama3")), "rope_scaling.factor is None, expected"),
        (
            dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5)),
            "rope_parameters.partial_rotary_factor is 0.5, expected 1.0",
        ),
    ],
)
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(HFConfigError, match=f"some/config.json: {message}"):
        config_from_hf(LLAMA_3_2_1B | change, "some/config.json")


def test_what_hf_cannot_express_is_refused_with_the_reason():
    for name in ("llama", "qwen2", "qwen3"):
        refuse_unexportable(SMALL[name])
    with pytest.raises(ValueError, match="key_shift=True, which no HF architecture has"):
        refuse_unexportable(SMALL["key_shift"])
    with pytest.raises(ValueError, match="qkv_bias=True.*llama.*qk_norm=True"):
        refuse_unexportable(SMALL["everything"])


def test_invalid_shapes_are_refused():
    with pytest.raises(ValueError, match="n_heads=4 is not a multiple of n_kv_heads=3"):
        dataclasses.replace(SMALL["llama"], n_kv_heads=3)
    with pytest.raises(ValueError, match="head_dim=7 must be even"):
        dataclasses.replace(SMALL["llama"], head_dim=7)
