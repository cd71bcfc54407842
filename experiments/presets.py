"""The presets of `experiments.midtrain`: `--preset NAME` picks one, flags override it. Imports nothing heavy.

micro      every phase in seconds, for tests; no claim of quality
tiny       the method's effects in minutes on a CPU: puzzles, scarce data, a small base of our own
tiny-pg    the same with the paper's E-step, policy gradient
stdlib     real human code: the functions of the running Python's standard library, a small base of our own
llama3.2-1b, qwen2.5-1.5b, llama3.1-8b   the paper's base models. NOT RUN YET by us: no weights, no TPU here.
qwen2.5-0.5b, qwen2.5-1.5b-lora          on one chip of 16 GB: selection, and all weights or adapters of rank 16

What the paper (arXiv 2509.25810) says of its mid-training, and what it leaves open:

known      base models (Llama-3.2-1B, Llama-3.1-8B, Qwen2.5-1.5B), a Python corpus of the size of continued training,
           c = 0.05 (0.01 thinks nearly everywhere, 0.2 hardly ever), the E-step's reward converges within few updates,
           the M-step is next-token prediction on annotated code
unknown    optimizer and learning rates, batch, sequence length, horizon T, rollouts a program, length of a thought,
           number of EM rounds: the values below are ours
"""

import dataclasses
from typing import Literal

from ra3_jax.core.config import MeshConfig
from ra3_jax.data.config import DataConfig
from ra3_jax.midtrain.config import (
    BaseConfig,
    EMConfig,
    EStepConfig,
    EvaluationConfig,
    MidTrainConfig,
    MStepConfig,
    NTPConfig,
    PuzzleConfig,
)
from ra3_jax.model.config import LoRAConfig
from ra3_jax.train.config import LoopConfig, OptimizerConfig

_TINY_OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=10, b2=0.98, weight_decay=0.01)

TINY = MidTrainConfig(
    out="runs/midtrain-tiny",
    estep=EStepConfig(method="selection", group=4, horizon=3, c=0.0, reward_norm="line_sum", max_latent_tokens=8),
    mstep=MStepConfig(epochs=6, loop=LoopConfig(batch_size=14), optimizer=_TINY_OPTIMIZER),
)

# The paper's E-step, from a base whose comments are dense and right enough for it.
TINY_PG = dataclasses.replace(
    TINY,
    out="runs/midtrain-tiny-pg",
    estep=EStepConfig(
        method="policy_gradient", group=8, horizon=3, c=0.01, reward_norm="token_mean", max_latent_tokens=8,
        updates=40, programs_per_update=8,
    ),
)  # fmt: skip

MICRO = dataclasses.replace(
    TINY,
    out="runs/midtrain-micro",
    puzzles=PuzzleConfig(programs=24),
    base=BaseConfig(
        steps=12, programs=64, rows=8, d_model=16, n_layers=1, n_heads=2,
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=2, b2=0.98, weight_decay=0.01),
    ),
    em=EMConfig(rounds=2),
    estep=dataclasses.replace(TINY.estep, group=2, updates=3, programs_per_update=4, max_latent_tokens=4),
    mstep=MStepConfig(epochs=1, loop=LoopConfig(batch_size=8, log_every=1), optimizer=_TINY_OPTIMIZER),
    ntp=NTPConfig(learning_rates=(1e-3,), budgets=("equal_steps",), epochs=2),
    evaluation=EvaluationConfig(
        bound_programs=8, bound_samples=2, tasks=4, dev_tasks=4, samples=2, batch=16, max_new_tokens=32
    ),
    rollout_batch=16,
)  # fmt: skip

STDLIB = MidTrainConfig(
    out="runs/midtrain-stdlib",
    tokenizer="stdlib",
    data=DataConfig(corpus="stdlib", sequence_length=384, min_lines=3, max_lines=30, held_out=0.1),
    base=BaseConfig(
        steps=800, rows=4, d_model=128, n_layers=3, n_heads=4,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50, b2=0.98, weight_decay=0.1),
    ),
    em=EMConfig(rounds=1),
    estep=EStepConfig(method="selection", group=4, horizon=3, c=0.0, reward_norm="line_sum", max_latent_tokens=12),
    mstep=MStepConfig(
        epochs=2,
        loop=LoopConfig(batch_size=4),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, b2=0.98, weight_decay=0.1),
    ),
    ntp=NTPConfig(learning_rates=(5e-4, 1e-3), budgets=("equal_steps", "equal_flops"), epochs=4),
    evaluation=EvaluationConfig(bound_programs=96, bound_samples=16, bound_max_lines=20, batch=128),
    rollout_batch=128,
    vocab_chunk=256,
)  # fmt: skip


def _paper(
    name: str,
    model: str,
    *,
    learning_rate: float,
    accumulate: int,
    estep_accumulate: int,
    estep_rollouts: int,
    rollout_batch: int,
) -> MidTrainConfig:
    """A model of the paper. Known: model, kind and size of the corpus, c. The rest is ours (see above).

    What is cut for memory is as `experiments.preflight` found to fit the smallest slice that docs/preflight.md claims:
    v5e:2x4 for 1 to 1.5 B, v5e:4x4 for 8 B.
    """
    optimizer = OptimizerConfig(learning_rate=learning_rate, schedule="wsd", warmup_steps=100, weight_decay=0.1)
    return MidTrainConfig(
        out=f"runs/midtrain-{name}",
        model=model,
        dtype="bfloat16",
        mesh=MeshConfig(data=1, fsdp=-1, model=1),
        # The paper's corpus is a Python part of a continued-pre-training set; ids could not be tried offline.
        data=DataConfig(
            corpus="hf:bigcode/the-stack-dedup", hf_data_dir="data/python", unit="file",
            sequence_length=4096, max_documents=1_000_000, held_out=0.001,
        ),
        em=EMConfig(rounds=4),
        estep=EStepConfig(
            method="policy_gradient", group=8, horizon=8, c=0.05, reward_norm="token_mean", max_latent_tokens=32,
            window_lines=32, updates=40, programs_per_update=32,
            accumulate=estep_accumulate, rollout_batch=estep_rollouts,
            optimizer=OptimizerConfig(learning_rate=1e-6, schedule="constant", weight_decay=0.0),
        ),
        mstep=MStepConfig(
            epochs=1,
            loop=LoopConfig(batch_size=128, accumulate=accumulate, checkpoint_every=500, log_every=10),
            optimizer=optimizer,
        ),
        ntp=NTPConfig(compare=False),
        evaluation=EvaluationConfig(bound_programs=256, bound_max_lines=20, batch=256),
        window=8,
        rollout_batch=rollout_batch,
        vocab_chunk=512,
    )  # fmt: skip


def _one_chip(
    name: str, model: str, *, learning_rate: float, accumulate: int, rollout_batch: int,
    moment_dtype: Literal["float32", "bfloat16"] = "float32", rank: int = 0,
) -> MidTrainConfig:  # fmt: skip
    """For one chip of 16 GB (v5e:1x1): selection, which needs one copy of the weights; shorter rows and thoughts.

    `accumulate` and `rollout_batch` are what `experiments.preflight` found to fit.
    """
    paper = _paper(
        name, model, learning_rate=learning_rate, accumulate=accumulate, estep_accumulate=1,
        estep_rollouts=rollout_batch, rollout_batch=rollout_batch,
    )  # fmt: skip
    optimizer = dataclasses.replace(paper.mstep.optimizer, moment_dtype=moment_dtype)
    return dataclasses.replace(
        paper,
        data=dataclasses.replace(paper.data, sequence_length=2048, max_documents=50_000, held_out=0.01),
        estep=dataclasses.replace(
            paper.estep, method="selection", group=4, c=0.0, reward_norm="line_sum", max_latent_tokens=16
        ),
        mstep=dataclasses.replace(
            paper.mstep,
            optimizer=optimizer,
            loop=dataclasses.replace(paper.mstep.loop, batch_size=64),
            lora=LoRAConfig(rank=rank),
        ),
        evaluation=dataclasses.replace(paper.evaluation, batch=rollout_batch, samples=4, bound_samples=8),
    )


PRESETS: dict[str, MidTrainConfig] = {
    "micro": MICRO,
    "tiny": TINY,
    "tiny-pg": TINY_PG,
    "stdlib": STDLIB,
    "llama3.2-1b": _paper(
        "llama3.2-1b", "meta-llama/Llama-3.2-1B", learning_rate=2e-5,
        accumulate=4, estep_accumulate=8, estep_rollouts=256, rollout_batch=64,
    ),
    "qwen2.5-1.5b": _paper(
        "qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", learning_rate=2e-5,
        accumulate=4, estep_accumulate=8, estep_rollouts=256, rollout_batch=64,
    ),
    "llama3.1-8b": _paper(
        "llama3.1-8b", "meta-llama/Llama-3.1-8B", learning_rate=1e-5,
        accumulate=4, estep_accumulate=16, estep_rollouts=128, rollout_batch=32,
    ),
    "qwen2.5-0.5b": _one_chip(
        "qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", learning_rate=2e-5, accumulate=4, rollout_batch=64,
        moment_dtype="bfloat16",
    ),
    "qwen2.5-1.5b-lora": _one_chip(
        "qwen2.5-1.5b-lora", "Qwen/Qwen2.5-1.5B", learning_rate=2e-4, accumulate=8, rollout_batch=32, rank=16,
    ),
}  # fmt: skip

ARCHITECTURES = {"qwen2.5-1.5b-lora": "qwen2.5-1.5b"}
"""Presets that are not named like their model in `ra3_jax.model.config.PRESETS`."""
