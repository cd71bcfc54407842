"""Settings of post-training with verifiable rewards. Imports nothing heavy."""

import dataclasses
from typing import Literal, get_args

from ra3_jax.core.config import MeshConfig
from ra3_jax.model.config import LoRAConfig
from ra3_jax.tasks.training import Kind
from ra3_jax.train.config import OptimizerConfig

Objective = Literal["grpo", "gspo", "cispo", "reinforce"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """From the rewards of a group to the loss. The defaults are DAPO's, without its refilled groups."""

    objective: Objective = "grpo"
    """grpo: clipped ratio of every token (arXiv 2402.03300). gspo: clipped ratio of the sequence (2507.18071).
    cispo: REINFORCE weighted with the capped ratio (2506.13585). reinforce: no ratio, for one update a batch."""
    aggregation: Aggregation = "token_mean"
    """token_mean: over all tokens of the batch (DAPO). sequence_mean: over the tokens of a sample, then over samples
    (GRPO; gspo needs it). constant: sum over tokens / (longest completion * samples) (Dr.GRPO)."""
    scale_rewards: bool = True
    """Divide advantages by the standard deviation of their group (GRPO); off: do not (Dr.GRPO)."""
    clip_low: float = 0.2
    """grpo: a token's ratio counts no lower than 1 - clip_low where the advantage is negative (TRL: epsilon)."""
    clip_high: float = 0.28
    """grpo: and no higher than 1 + clip_high where it is positive (clip-higher of DAPO; TRL: epsilon_high)."""
    gspo_clip_low: float = 3e-4
    """gspo: the same for the ratio of a sequence, which lies much closer to 1."""
    gspo_clip_high: float = 4e-4
    cispo_max_ratio: float = 5.0
    """cispo: cap of the ratio (TRL: epsilon_high with loss_type cispo; MiniMax-M1 writes it 1 + epsilon_high)."""
    beta: float = 0.0
    """Weight of the KL to the start policy (k3); 0: the start policy is not needed."""
    kl_correction: bool = False
    """Weight k3 with the token's ratio: its gradient is then that of KL(policy || start) (DeepSeek-V3.2, arXiv
    2512.02556; TRL: use_bias_correction_kl). Off, as in GRPO: on-policy, that of KL(start || policy)."""
    mask_truncated: bool = True
    """Leave samples cut by length out of the loss (overlong filtering of DAPO); off: they count with their reward."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal by groups of other prompts (DAPO)."""
    updates_per_batch: int = 1
    """Updates on one batch of samples (TRL: num_iterations)."""

    def __post_init__(self):
        if self.objective not in get_args(Objective) or self.aggregation not in get_args(Aggregation):
            raise ValueError(
                f"objective={self.objective!r} must be one of {get_args(Objective)}, "
                f"aggregation={self.aggregation!r} one of {get_args(Aggregation)}"
            )
        if not 0 < self.clip_low < 1 or not 0 < self.gspo_clip_low < 1:
            raise ValueError(
                f"clip_low={self.clip_low} and gspo_clip_low={self.gspo_clip_low} must lie between 0 and 1"
            )
        if self.clip_high <= 0 or self.gspo_clip_high <= 0:
            raise ValueError(f"clip_high={self.clip_high} and gspo_clip_high={self.gspo_clip_high} must be positive")
        if self.cispo_max_ratio < 1:
            raise ValueError(f"cispo_max_ratio={self.cispo_max_ratio} must be at least 1, the ratio on-policy")
        if self.beta < 0:
            raise ValueError(f"beta={self.beta} must not be negative")
        if self.updates_per_batch < 1:
            raise ValueError(f"updates_per_batch={self.updates_per_batch} must be at least 1")
        if self.objective == "gspo" and self.aggregation != "sequence_mean":
            raise ValueError(
                f"objective=gspo has one ratio a sequence and needs aggregation=sequence_mean, "
                f"found aggregation={self.aggregation}"
            )
        if self.objective == "reinforce" and self.updates_per_batch > 1:
            raise ValueError(
                f"objective=reinforce corrects for no change of the policy: updates_per_batch={self.updates_per_batch} "
                "must be 1, or take grpo, gspo or cispo"
            )


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """What is trained on (tasks/training.py)."""

    kinds: tuple[Kind, ...] = ("puzzles",)
    """Parts of the mixture."""
    weights: tuple[float, ...] = ()
    """Share of each part; (): equal."""
    limit: int | None = None
    """Puzzles and repairs: how many are made. Data sets: rows read of each, from the first; needed for the hub."""
    blocks: tuple[int, ...] = ()
    """Puzzles and repairs: numbers of blocks, in equal shares; (): 3 and 4."""
    data_dir: str | None = None
    """Data sets: a folder with the usual file names; may be gs://."""
    file: str | None = None
    """Data sets: a file, local or gs:// (one part only)."""
    hub: str | None = None
    """Data sets: id on the hub, instead of the usual one (one part only)."""
    revision: str | None = None
    """Branch, tag or commit of the hub's data set."""
    benchmarks: str | None = None
    """Folder (may be gs://) with HumanEval, MBPP and MBPP+, to keep them out; $RA3_BENCH_DATA if not given."""
    decontaminate: bool = True
    """Leave out tasks that overlap those benchmarks."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """At a row that is broken or has no tests: an error, or counted and left out."""
    weak_tests: Literal["drop", "keep"] = "drop"
    """Tasks whose tests a constant answer passes."""

    def __post_init__(self):
        if not self.kinds or (self.weights and len(self.weights) != len(self.kinds)):
            raise ValueError(f"kinds={self.kinds} need as many weights, or none: {self.weights}")
        if (self.file or self.hub) and len(self.kinds) > 1:
            raise ValueError("file and hub name one data set: give one kind")


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Samples of the current policy."""

    prompts: int = 16
    """P, prompts of a batch."""
    samples: int = 8
    """G, samples of each prompt: a group."""
    temperature: float = 1.0
    """Of sampling and of the log-probs that are learned from."""
    max_new: int = 224
    """Longest completion, in tokens."""
    lanes: int = 512
    """Rows that are sampled at once."""
    max_refills: int = 4
    """Dynamic sampling: how often groups without a difference are replaced before the batch is taken as it is."""

    def __post_init__(self):
        if self.prompts < 1 or self.samples < 2 or self.max_new < 1 or self.lanes < 1 or self.max_refills < 0:
            raise ValueError(f"prompts, max_new and lanes must be positive, samples at least 2: {self}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature={self.temperature} must be positive: greedy samples of a group are all equal"
            )


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What a program is worth."""

    partial: bool = False
    """Share of the tests passed, instead of 1 for all and 0 otherwise. In the sandbox a program is run up to the first
    test that it fails: the share of the tests before that one."""
    level: Literal[0, 1, 2, 3] = 1
    """Least isolation of programs that are no puzzles."""
    allow_unsandboxed: bool = False
    """Run them without isolation where this machine offers none."""
    workers: int | None = None
    """Programs that are judged at the same time (none: one for each core)."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out tasks: greedy pass@1 and sampled pass@k."""

    every: int = 20
    """Updates of the policy's batches between evaluations; 0: only before the first and after the last."""
    tasks: int = 128
    """Held-out tasks."""
    samples: int = 8
    """Samples a task, at the rollout's temperature; 0: greedy only."""

    def __post_init__(self):
        if self.tasks < 1 or self.every < 0 or self.samples < 0:
            raise ValueError(f"evaluation: tasks must be positive, every and samples not negative: {self}")


@dataclasses.dataclass(frozen=True)
class RLVRConfig:
    """`python -m experiments.rlvr`."""

    init: str = "runs/midtrain-tiny"
    """Start: a run directory (of mid-training, its base/ or ntp-*/, or an earlier RLVR run), an HF directory or id."""
    init_step: int | None = None
    """Checkpoint of the run to start from (none: the latest)."""
    revision: str | None = None
    """Branch, tag or commit of an HF id."""
    out: str = "runs/rlvr-tiny"
    """Run directory; may be gs://."""
    resume: str = "auto"
    """auto: go on from the latest checkpoint; never: refuse a directory that has some; or a step."""
    seed: int = 0
    """Of the samples and of the order of tasks."""
    steps: int = 80
    """Batches of samples to learn from."""
    tasks: TasksConfig = TasksConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    grpo: GRPOConfig = GRPOConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, schedule="constant", b2=0.99, weight_decay=0.0)
    lora: LoRAConfig = LoRAConfig()
    """Adapters beside the start's weights, instead of all weights."""
    evaluation: EvaluationConfig = EvaluationConfig()
    old_logp: Literal["sampler", "scorer"] = "sampler"
    """Whose log-probs the ratio is against: the very forward that sampled, or a parallel pass before the first update,
    in which every ratio is then exactly 1."""
    minibatch: int = 0
    """Samples of an update; 0: all of the batch in one update."""
    accumulate: int = 1
    """Microbatches an update is cut into (less memory, same gradient)."""
    checkpoint_every: int = 20
    """Batches between checkpoints."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """On a NaN or infinite gradient: stop with an error, or skip the update, count it and go on."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations (none: as the checkpoint says)."""
    remat: Literal["none", "full", "dots"] | None = None
    """What the backward pass computes again: see the model's config (none: as the checkpoint says; everything for HF
    models)."""
    mesh: MeshConfig = MeshConfig()
    vocab_chunk: int | None = None
    """Tokens whose logits a device holds at once (none: all of its rows); set it for large vocabularies."""
    tensorboard: bool = False
    """Also write event files below the run directory (extra: tensorboard)."""
    wandb: str | None = None
    """W&B project to log to (extra: wandb)."""

    def __post_init__(self):
        samples = self.rollout.prompts * self.rollout.samples
        if self.steps < 1 or self.checkpoint_every < 0:
            raise ValueError(
                f"steps={self.steps} must be positive, checkpoint_every={self.checkpoint_every} not negative"
            )
        if self.minibatch and samples % self.minibatch:
            raise ValueError(f"minibatch={self.minibatch} does not divide the batch of {samples} samples")
        if self.grpo.objective == "reinforce" and self.minibatch not in (0, samples):
            raise ValueError(f"objective=reinforce is for one update a batch: minibatch={self.minibatch} makes several")
        if (self.minibatch or samples) % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} does not divide the {self.minibatch or samples} samples of an update"
            )
