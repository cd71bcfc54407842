"""Settings of the method. Imports nothing heavy."""

import dataclasses
from typing import Literal

from ra3_jax.core.config import MeshConfig
from ra3_jax.data.config import DataConfig
from ra3_jax.model.config import LoRAConfig
from ra3_jax.train.config import LoopConfig, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class EStepConfig:
    """Latents that explain the program: how they are found and what they are worth."""

    method: Literal["selection", "policy_gradient"] = "selection"
    """selection: per line, the thought of the rollout with the best return (hard EM; not in the paper).
    policy_gradient: train q by REINFORCE, as the paper does; collapses unless the base comments densely and rightly."""
    group: int = 4
    """G, rollouts a program."""
    horizon: int = 3
    """T, lines whose reward a thought is credited with."""
    gamma: float = 1.0
    """Discount per line."""
    c: float = 0.0
    """Penalty of a thought, in the unit of the line reward."""
    reward_norm: Literal["token_mean", "line_sum"] = "line_sum"
    """Line reward per token of the line, or summed over them. The paper's c = 0.05 is meant for token_mean."""
    reward: Literal["line", "elbo"] = "line"
    """line: log pi(a_t) - c 1[think]. elbo: log pi(a_t) + log pi(z_t) - log q(z_t), the reported bound itself."""
    max_latent_tokens: int = 8
    """Longest thought, in tokens."""
    baseline: Literal["leave_one_out", "act", "ema", "none"] = "leave_one_out"
    """Policy gradient: mean return of the other rollouts at the same line; return of the program without thoughts;
    running mean of its line rewards; nothing."""
    window_lines: int = 0
    """L, lines of a policy-gradient rollout from a random start on; 0: the whole program."""
    updates: int = 40
    """Policy-gradient updates a round."""
    programs_per_update: int = 8
    """Programs an update sees; each is rolled out G times."""
    updates_per_batch: int = 1
    """Updates that reuse one batch of rollouts (the ratio is clipped)."""
    rollout_batch: int = 0
    """Rows sampled at once, at most; their caches are what limits it. 0: all of an update. Changes no sample."""
    accumulate: int = 1
    """Microbatches an update is cut into (less memory, same gradient)."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    entropy_coef: float = 0.0
    """Weight of the entropy of the act/think decision."""
    kl_coef: float = 0.0
    """Weight of KL(q || pi), k3 estimate."""
    advantage_std: float | None = 0.3
    """Scale advantages to this standard deviation over the batch; none: leave them."""
    ema_decay: float = 0.9
    """Of the running mean (baseline ema)."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4, schedule="constant", b2=0.95, weight_decay=0.0)
    lora: LoRAConfig = LoRAConfig()
    """Policy gradient: q is pi with adapters, fresh ones each round, instead of weights of its own."""

    @property
    def rows_at_once(self) -> int:
        """Rows of a batch of rollouts."""
        rows = self.programs_per_update * self.group
        return min(self.rollout_batch or rows, rows)

    def __post_init__(self):
        if self.group < 1 or self.horizon < 1 or self.max_latent_tokens < 1:
            raise ValueError("group, horizon and max_latent_tokens must be at least 1")
        rows = self.programs_per_update * self.group
        if rows % self.rows_at_once:
            raise ValueError(f"rollout_batch={self.rollout_batch} does not divide the {rows} rollouts of an update")
        if 0 < self.window_lines < self.horizon:
            raise ValueError(
                f"window_lines={self.window_lines} is shorter than horizon={self.horizon}: no return would be complete"
            )
        if self.method == "policy_gradient" and self.baseline == "leave_one_out" and self.group < 2:
            raise ValueError("the leave_one_out baseline needs group >= 2")


@dataclasses.dataclass(frozen=True)
class MStepConfig:
    """Next-token training on annotated (M-step) or plain (NTP) programs."""

    epochs: int = 6
    """Passes over the packed rows, a round."""
    loop: LoopConfig = LoopConfig(batch_size=16)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, warmup_steps=5, b2=0.98, weight_decay=0.01)
    lora: LoRAConfig = LoRAConfig()
    """Adapters, fresh ones each round and merged at its end, instead of all weights."""
    code_weight: float = 1.0
    """Loss weight of the expert's tokens."""
    decision_weight: float = 1.0
    """Loss weight of the mark that opens a thought."""
    rationale_weight: float = 1.0
    """Loss weight of the thought's tokens and its end."""
    ntp_lambda: float = 0.0
    """Share of the programs that are shown once more without thoughts, against drift of plain code."""
    init: Literal["continue", "base"] = "continue"
    """Start of each M-step: the current weights, or the base's."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What the final table measures, and on how much."""

    bound_programs: int = 96
    """Held-out programs for NLL, ELBO and IWAE."""
    bound_samples: int = 16
    """K of L_K."""
    bound_max_lines: int = 0
    """Longest held-out program, in lines, for the bounds (K samples say little about long ones); 0: any."""
    alpha: float = 0.9
    """Prior probability of <act> in the reported decision KL."""
    tasks: int = 192
    """Fresh tasks for pass@k."""
    dev_tasks: int = 128
    """Development tasks: they choose NTP's schedule and judge the gates."""
    samples: int = 8
    """Samples a task."""
    batch: int = 512
    """Rows that are sampled at once."""
    max_new_tokens: int = 224
    """Longest sampled program, in tokens."""


@dataclasses.dataclass(frozen=True)
class PuzzleConfig:
    """The built-in corpus (`data.corpus = "puzzles"`)."""

    programs: int = 512
    """Expert programs to mid-train on: scarce on purpose, see the README."""


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """The small base that `--model tiny` trains first, on code in which people comment."""

    habits: Literal["S", "C"] = "C"
    """Puzzles: how its writers comment. C: densely and rightly (policy gradient works from it); S: less, 12 % stale."""
    steps: int = 1200
    """Updates."""
    programs: int = 20000
    """Puzzles: commented programs to train on."""
    rows: int = 12
    """Packed rows an update."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=6e-3, warmup_steps=20, b2=0.98, weight_decay=0.01)
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    seed: int = 0
    gate_one_skill: float = 0.85
    """Puzzles: least pass@1 on one-skill tasks before an E-step makes sense."""
    gate_comments: float = 0.6
    """Puzzles: least share of right comments for selection."""
    gate_comments_pg: float = 0.75
    """Puzzles: least share of right comments for the plain policy gradient."""
    gate_recall_pg: float = 0.9
    """Puzzles: least share of blocks that get a comment for the plain policy gradient."""


@dataclasses.dataclass(frozen=True)
class NTPConfig:
    """The baseline: plain next-token training on the same programs, with the best schedule of a small grid."""

    compare: bool = True
    """Train the baseline rows beside RA3."""
    learning_rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    """Peaks to try at each budget; the best on development tasks (or held-out NLL) is reported."""
    budgets: tuple[Literal["equal_steps", "equal_flops"], ...] = ("equal_steps", "equal_flops")
    """As many updates as RA3's M-steps; as much compute as all of RA3."""
    epochs: int = 24
    """`--method ntp` alone: passes over the programs."""


@dataclasses.dataclass(frozen=True)
class EMConfig:
    """Rounds of E-step, annotation and M-step."""

    rounds: int = 3
    q_init: Literal["pi", "keep"] = "pi"
    """Policy gradient: each round's q starts from pi, or keeps its own weights."""


@dataclasses.dataclass(frozen=True)
class MidTrainConfig:
    """`python -m experiments.midtrain`."""

    out: str = "runs/midtrain-tiny"
    """Run directory; may be gs://."""
    resume: str = "auto"
    """auto: go on from the latest checkpoint; never: refuse a directory that has some; or a step."""
    seed: int = 0
    """Of the puzzle corpus, the thoughts and the order of rows; base and test tasks never depend on it."""
    method: Literal["ra3", "ntp"] = "ra3"
    """ra3: EM rounds, with the NTP baseline beside them; ntp: the baseline alone."""
    model: str = "tiny"
    """"tiny" trains a small base first; else an HF id or directory (Llama-3.x, Qwen2.5, Qwen3), or a run directory."""
    revision: str | None = None
    """Branch, tag or commit of an HF id."""
    tokenizer: str = "puzzles"
    """Of the tiny base: puzzles or stdlib. HF models bring their own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations (HF models); weights stay float32."""
    remat: Literal["none", "full", "dots"] | None = None
    """What the backward pass computes again: see the model's config (none: everything for HF models, as saved for
    runs)."""
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig(sequence_length=288)
    puzzles: PuzzleConfig = PuzzleConfig()
    base: BaseConfig = BaseConfig()
    em: EMConfig = EMConfig()
    estep: EStepConfig = EStepConfig()
    mstep: MStepConfig = MStepConfig()
    ntp: NTPConfig = NTPConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    window: int = 4
    """W, tokens a row consumes per decode step where the program is forced."""
    rollout_batch: int = 512
    """Rows that are rolled out at once when the corpus is annotated. Changes no sample."""
    vocab_chunk: int | None = None
    """Tokens whose logits a device holds at once (none: all of its rows); set it for large vocabularies."""
    tensorboard: bool = False
    """Also write event files below the run directory (extra: tensorboard)."""
    wandb: str | None = None
    """W&B project to log to (extra: wandb)."""


def check_config(config: MidTrainConfig, shards: int) -> None:
    """Raises ValueError for settings that would fail, or mean nothing, once the run is under way.

    `shards`: data-parallel devices, over which every batch is cut.
    """
    if config.data.comments == "keep":
        raise ValueError("data.comments=keep: an action cannot begin with the mark; use strip or observe")
    if config.estep.lora.rank and config.em.q_init == "keep":
        raise ValueError(
            "em.q_init=keep with estep.lora.rank: q is pi with adapters, and the next round has another pi; take pi"
        )
    e, group = config.evaluation, config.estep.group
    batches = {
        "mstep.loop.batch_size": (config.mstep.loop.batch_size, config.mstep.loop.accumulate),
        "rollout_batch": (config.rollout_batch, group),
        "evaluation.batch, for evaluation.bound_samples": (
            e.batch // e.bound_samples * e.bound_samples,
            e.bound_samples,
        ),
        "evaluation.batch, for evaluation.samples": (e.batch // e.samples * e.samples, e.samples),
        "evaluation.batch": (e.batch, 1),
    }
    if config.model == "tiny":
        batches["base.rows"] = (config.base.rows, 1)
    if config.estep.method == "policy_gradient":
        batches["estep.programs_per_update * estep.group"] = (config.estep.programs_per_update * group, group)
        if config.estep.rollout_batch:
            batches["estep.rollout_batch"] = (config.estep.rows_at_once, group)
    for name, (size, unit) in batches.items():
        if size < 1 or size % unit or size % shards:
            raise ValueError(f"{name} is {size}: it must be a positive multiple of {unit}, and of {shards} devices")
    updates = {"mstep.loop": (config.mstep.loop.batch_size, config.mstep.loop.accumulate)}
    if config.estep.method == "policy_gradient":
        updates["estep"] = (config.estep.programs_per_update * group, config.estep.accumulate)
    for name, (rows, accumulate) in updates.items():
        if rows % (accumulate * shards):
            raise ValueError(
                f"{name}.accumulate is {accumulate}: {rows} rows cannot be cut into as many microbatches over {shards} "
                "devices"
            )
