"""HF `config.json` <-> `ModelConfig`, for the families we can compute: Llama 3, Qwen 2.5, Qwen 3.

Whatever our Transformer does not do (sliding windows, experts, other rotary scalings, biases
elsewhere) is refused here, before any weight is read: a model that loads is a model whose logits
are HF's.
"""

from typing import Any

from ra3_jax.model.config import ModelConfig, RopeScaling

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


class HFConfigError(ValueError):
    """A field of an HF config that we cannot honour."""

    def __init__(self, where: str, field: str, found: Any, expected: str):
        super().__init__(f"{where}: {field} is {found!r}, expected {expected}")


def config_from_hf(data: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """The architecture that a parsed `config.json` describes; activations are float32 until the
    caller says otherwise.

    Raises HFConfigError with the field, what was found and what was expected. `where` names the
    file in messages.
    """

    def need(field: str, kind: type) -> Any:
        value = data.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise HFConfigError(where, field, value, f"a value of type {kind.__name__}")
        return value

    def only(field: str, allowed: tuple, default: Any) -> None:
        if data.get(field, default) not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise HFConfigError(where, field, data[field], expected)

    family = data.get("model_type")
    if family not in ARCHITECTURES:
        raise HFConfigError(where, "model_type", family, f"one of {sorted(ARCHITECTURES)}")
    only("hidden_act", ("silu",), "silu")
    only("mlp_bias", (False, None), False)
    only("use_sliding_window", (False, None), False)
    only("quantization_config", (None,), None)
    if family != "qwen2":  # Qwen 2 has its q, k, v biases always, and never says so
        only("attention_bias", (False, None), False)
    layer_types = set(data.get("layer_types") or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise HFConfigError(where, "layer_types", sorted(layer_types), "only 'full_attention'")

    d_model, n_heads = need("hidden_size", int), need("num_attention_heads", int)
    theta, scaling = _rope(data, where)
    return ModelConfig(
        family=family,
        vocab_size=need("vocab_size", int),
        d_model=d_model,
        n_layers=need("num_hidden_layers", int),
        n_heads=n_heads,
        n_kv_heads=data.get("num_key_value_heads") or n_heads,
        head_dim=data.get("head_dim") or (128 if family == "qwen3" else d_model // n_heads),
        d_ff=need("intermediate_size", int),
        rope_theta=theta,
        norm_eps=need("rms_norm_eps", float),
        tie_embeddings=bool(data.get("tie_word_embeddings", False)),
        max_positions=need("max_position_embeddings", int),
        rope_scaling=scaling,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def _rope(data: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """(theta, scaling), from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`
    (before).
    """
    field = "rope_parameters" if data.get("rope_parameters") else "rope_scaling"
    rope = data.get(field) or {}
    theta = rope.get("rope_theta", data.get("rope_theta"))
    if not isinstance(theta, int | float):
        raise HFConfigError(where, "rope_theta", theta, "a number")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found = rope["partial_rotary_factor"]
        raise HFConfigError(where, f"{field}.partial_rotary_factor", found, "1.0")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise HFConfigError(where, f"{field}.rope_type", kind, "'default' or 'llama3'")
    numbers = []
    for name in (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ):
        if not isinstance(rope.get(name), int | float):
            raise HFConfigError(where, f"{field}.{name}", rope.get(name), "a number")
        numbers.append(rope[name])
    factor, low, high, original = numbers
    return float(theta), RopeScaling(float(factor), float(low), float(high), int(original))


def config_to_hf(
    config: ModelConfig, *, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> dict[str, Any]:
    """A `config.json` for a model that did not come from HF, in the spelling that old and new
    transformers read.
    """
    data: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "attention_dropout": 0.0,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "initializer_range": 0.02,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.family != "qwen2":
        data["attention_bias"] = False
    else:
        data["use_sliding_window"] = False
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        data["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return data


def refuse_unexportable(config: ModelConfig) -> None:
    """Raises ValueError with the reason when HF has no architecture that computes this model."""
    reasons = []
    if config.key_shift:
        reasons.append("key_shift=True, which no HF architecture has")
    if config.qkv_bias != (config.family == "qwen2"):
        reasons.append(f"qkv_bias={config.qkv_bias}, which family {config.family!r} has not")
    if config.qk_norm != (config.family == "qwen3"):
        reasons.append(f"qk_norm={config.qk_norm}, which family {config.family!r} has not")
    if config.family == "qwen2" and config.head_dim * config.n_heads != config.d_model:
        reasons.append("head_dim * n_heads != d_model, which qwen2 cannot say")
    if reasons:
        raise ValueError("this model cannot be exported to HF: " + "; ".join(reasons))
