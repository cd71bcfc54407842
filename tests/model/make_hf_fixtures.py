"""Makes the small HF checkpoints and reference numbers under `fixtures/`. Needs torch and
transformers.

python -m tests.model.make_hf_fixtures
"""

from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
COMMON: dict[str, Any] = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=0,
    eos_token_id=1,
    initializer_range=0.2,
)
BATCH, LENGTH, PROMPT, NEW = 2, 40, 8, 24


def family_config(family: str):
    """Each family with all it adds: Llama's rotary scaling and own head, Qwen 2.5's biases, Qwen
    3's head norms.
    """
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    match family:
        case "llama":  # original context 16, so that LENGTH tokens see kept, blended and stretched frequencies
            rope = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0)
            rope |= dict(high_freq_factor=4.0, original_max_position_embeddings=16)
            return LlamaConfig(**COMMON, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=rope)
        case "qwen2":
            rope = dict(rope_type="default", rope_theta=1e6)
            return Qwen2Config(**COMMON, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters=rope)
        case "qwen3":  # head_dim is not hidden_size / heads
            rope = dict(rope_type="default", rope_theta=1e6)
            return Qwen3Config(
                **COMMON,
                rms_norm_eps=1e-6,
                tie_word_embeddings=True,
                head_dim=16,
                rope_parameters=rope,
            )
    raise ValueError(family)


def make_model(family: str):
    """A random model whose norms and biases are not their trivial initial values."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family_config(family)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.2 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.3)
    return model


def reference(model) -> dict[str, np.ndarray]:
    """Logits, mean next-token loss, global gradient norm and greedy continuations of random tokens."""
    import torch

    tokens_BT = np.random.default_rng(0).integers(2, COMMON["vocab_size"], (BATCH, LENGTH))
    ids = torch.from_numpy(tokens_BT)
    model.zero_grad()
    logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    grads = [w.grad.square().sum() for w in model.parameters()]
    with torch.no_grad():
        greedy = ids[:, :PROMPT]
        for _ in range(NEW):
            greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(-1)], dim=1)
    return {
        "tokens_BT": tokens_BT.astype(np.int32),
        "logits_BTV": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
        "grad_norm": torch.stack(grads).sum().sqrt().numpy(),
        "greedy_BT": greedy.numpy().astype(np.int32),
    }


def main() -> None:
    for family in ("llama", "qwen2", "qwen3"):
        model = make_model(family)
        shards = {"max_shard_size": "40KB"} if family == "qwen2" else {}
        model.save_pretrained(FIXTURES / family, **shards)
        np.savez_compressed(FIXTURES / family / "reference.npz", **reference(model))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
