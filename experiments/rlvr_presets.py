"""The presets of `experiments.rlvr`. Imports nothing heavy.

micro   every phase in seconds, for tests; no claim of quality
tiny    puzzles on a CPU, minutes: from the tiny base, NTP and RA3 checkpoints of `experiments.midtrain`
qwen2.5-1.5b, llama3.2-1b, llama3.1-8b   DeepCoder-like, as far as that is known. NOT RUN YET by us: no weights here.
qwen2.5-0.5b, qwen2.5-1.5b-lora          the same on one chip of 16 GB: all weights, or adapters of rank 16

known (DeepCoder's report)   GRPO with clip-higher and without KL or entropy bonus, samples cut by length masked, batch
                             32 x 8, T = 0.6, lr 1e-6, at most 15 tests a task, reward 1 if all of them pass, else 0
ours                         gradient clipped at 1.0, completions of at most 2,048 tokens (these are base models, whose
                             thoughts are comments, not chains of 16 k tokens), the mixture, everything about memory
"""

import dataclasses

from ra3_jax.core.config import MeshConfig
from ra3_jax.model.config import LoRAConfig
from ra3_jax.rlvr.config import EvaluationConfig, GRPOConfig, RLVRConfig, RolloutConfig, TasksConfig
from ra3_jax.train.config import OptimizerConfig

TINY = RLVRConfig()

MICRO = dataclasses.replace(
    TINY,
    init="runs/midtrain-micro",
    out="runs/rlvr-micro",
    steps=4,
    tasks=TasksConfig(limit=16, blocks=(1, 2)),
    rollout=RolloutConfig(prompts=4, samples=2, max_new=64, lanes=8),
    evaluation=EvaluationConfig(every=2, tasks=4, samples=2),
    checkpoint_every=1,
)


def _large(name: str, init: str, *, accumulate: int, lanes: int = 256) -> RLVRConfig:
    """Meant for a v5e-8 / v5p-4 slice (1 to 1.5 B) or a v5e-16 / v5p-8 slice (8 B), float32 masters sharded by fsdp."""
    return RLVRConfig(
        init=init,
        out=f"runs/rlvr-{name}",
        steps=200,
        tasks=TasksConfig(kinds=("leetcode", "codecontests"), limit=20_000),
        rollout=RolloutConfig(prompts=32, samples=8, temperature=0.6, max_new=2048, lanes=lanes),
        grpo=GRPOConfig(aggregation="token_mean", clip_low=0.2, clip_high=0.28, mask_truncated=True),
        optimizer=OptimizerConfig(learning_rate=1e-6, schedule="constant", weight_decay=0.0, clip_norm=1.0),
        evaluation=EvaluationConfig(every=20, tasks=128, samples=4),
        accumulate=accumulate,
        dtype="bfloat16",
        mesh=MeshConfig(data=1, fsdp=-1, model=1),
        vocab_chunk=512,
    )


def _one_chip(
    name: str, init: str, *, lanes: int, accumulate: int, optimizer: OptimizerConfig, rank: int = 0
) -> RLVRConfig:
    """For one chip of 16 GB (v5e:1x1). Fewer samples at a time, in more microbatches; the batch stays."""
    large = _large(name, init, accumulate=accumulate)
    return dataclasses.replace(
        large,
        rollout=dataclasses.replace(large.rollout, lanes=lanes),
        optimizer=optimizer,
        lora=LoRAConfig(rank=rank),
    )


_RATE = OptimizerConfig(learning_rate=1e-6, schedule="constant", weight_decay=0.0, moment_dtype="bfloat16")

PRESETS: dict[str, RLVRConfig] = {
    "micro": MICRO,
    "tiny": TINY,
    "qwen2.5-1.5b": _large("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", accumulate=8),
    "llama3.2-1b": _large("llama3.2-1b", "meta-llama/Llama-3.2-1B", accumulate=8),
    "llama3.1-8b": _large("llama3.1-8b", "meta-llama/Llama-3.1-8B", accumulate=16, lanes=128),
    "qwen2.5-0.5b": _one_chip("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", lanes=64, accumulate=32, optimizer=_RATE),
    # Adapters begin at zero and take larger rates than weights do; how much larger is our choice, not measured.
    "qwen2.5-1.5b-lora": _one_chip(
        "qwen2.5-1.5b-lora", "Qwen/Qwen2.5-1.5B", lanes=32, accumulate=32, rank=16,
        optimizer=dataclasses.replace(_RATE, learning_rate=2e-5, moment_dtype="float32"),
    ),
}  # fmt: skip
