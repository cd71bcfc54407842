"""The loop: sample, judge, learn, save; resumes exactly.

A batch is a function of (weights, seed, batch number, data position), and all of these are in every checkpoint: a run
that was killed and goes on ends with the same weights, bit for bit, as an undisturbed one.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.mesh import to_host
from ra3_jax.core.metrics import MetricsWriter
from ra3_jax.core.rng import name_hash
from ra3_jax.model.language_model import LanguageModel, Params
from ra3_jax.policy.batch import TokenBatch, place
from ra3_jax.policy.scorer import in_parts
from ra3_jax.rlvr.config import RLVRConfig
from ra3_jax.rlvr.grpo import group_advantages, sample_mask
from ra3_jax.rlvr.objective import SampleBatch, rlvr_loss, score_samples
from ra3_jax.rlvr.rollout import Roller, Rollout
from ra3_jax.tasks.task import Task
from ra3_jax.train.loop import NonFiniteError, Stopped
from ra3_jax.train.optimizer import make_schedule
from ra3_jax.train.state import TrainState
from ra3_jax.train.step import StepFn, compile_count, frozen_args, put_batch, put_scalar
from ra3_jax.train.trainable import Trainable


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run is; plain numbers, stored with every checkpoint."""

    step: int = 0
    """Batches learned from."""
    position: int = 0
    """Tasks consumed."""
    updates: int = 0
    """Updates of the weights, skipped ones included."""
    nonfinite: int = 0
    """Updates skipped because of a NaN or infinite gradient."""
    infra: int = 0
    """Samples that the machinery could not judge."""
    sampled_tokens: int = 0


@dataclasses.dataclass
class Learner:
    """A run in motion."""

    config: RLVRConfig
    model: LanguageModel
    mesh: Mesh
    roller: Roller
    task_at: Callable[[int], tuple[int, Task]]
    checkpoints: Checkpoints
    metrics: MetricsWriter

    def __post_init__(self):
        config, chunk = self.config, self.config.vocab_chunk
        self.trainable = Trainable.create(self.model, self.mesh, config.optimizer, config.lora)
        self.frozen: Params | None = None  # the start's weights, where adapters are trained beside them
        self.schedule = make_schedule(config.optimizer, config.steps)
        temperature = config.rollout.temperature
        loss_fn = rlvr_loss(
            self.model, config.grpo, temperature=temperature, max_new=config.rollout.max_new, chunk=chunk
        )
        self.step_fn: StepFn = self.trainable.compile(loss_fn, accumulate=config.accumulate, name="rlvr_step")

        def score(params, rows: TokenBatch) -> jax.Array:
            return score_samples(self.model, params, rows, temperature=temperature, chunk=chunk)[0]

        self.score = jax.jit(lambda params, rows: in_parts(lambda part: score(params, part), chunk, rows))

    # --- checkpoints

    def start(self, params: Params, step: int | None) -> tuple[TrainState, Position]:
        """The state of a checkpoint, or a fresh one (None): around a copy of `params`, or of adapters beside `params`
        themselves. Raises CheckpointError."""
        self._saved = step
        if step is None:
            self.frozen = self.trainable.frozen(params)
            return self.trainable.start(params, name_hash(f"{self.config.seed}/adapters")), Position()
        self.checkpoints.rewind(step)
        state, self.frozen, _, meta = self.trainable.restore(self.checkpoints, step)
        return state, Position(**meta["position"])

    def save(self, state: TrainState, at: Position) -> None:
        if at.step != self._saved:
            tree = self.trainable.tree(state, self.frozen)
            self.checkpoints.save(at.step, tree, {"position": dataclasses.asdict(at)})
            self._saved = at.step

    def weights(self, state: TrainState) -> Params:
        """The policy, as the model takes it."""
        return self.trainable.weights(state.params, self.frozen)

    # --- the loop

    def run(
        self,
        state: TrainState,
        at: Position,
        *,
        reference: Params | None,
        on_step: Callable[[Params, Position, Rollout, Mapping[str, float]], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[TrainState, Position]:
        """Batches `at.step` to `config.steps - 1`. `reference`: weights of the start policy, for the KL term.

        `on_step(params, position, rollout, metrics)` after each; it must not keep the weights. When `should_stop()`,
        asked before each batch and after each completion, it saves and returns early; a batch that was being sampled is
        sampled anew later, to the same end. Raises NonFiniteError.
        """
        config = self.config
        while at.step < config.steps and not should_stop():
            began = time.monotonic()
            try:
                rollout = self.roller.batch(
                    self.weights(state), self.task_at, at.position, at.step,
                    dynamic=config.grpo.dynamic_sampling, should_stop=should_stop,
                )  # fmt: skip
            except Stopped:
                break
            sampled = time.monotonic()
            state, values, updates, bad = self._learn(state, rollout, at, reference)
            at = Position(
                at.step + 1,
                rollout.position,
                at.updates + updates,
                at.nonfinite + bad,
                at.infra + int((~rollout.valid_PG).sum()),
                at.sampled_tokens + int(rollout.completion_NT.sum()),
            )
            values |= describe(rollout) | {
                "perf/sample_s": rollout.sample_s,
                "perf/judge_wait_s": rollout.judge_s,
                "perf/learn_s": time.monotonic() - sampled,
                "perf/tokens_per_s": float(rollout.completion_NT.sum()) / (time.monotonic() - began),
                "perf/compiles": float(compile_count(self.step_fn)),
                "nonfinite_steps": float(at.nonfinite),
                "num_tokens": float(at.sampled_tokens),
            }
            self.metrics.write(at.step, "rlvr", values)
            on_step(self.weights(state), at, rollout, values)
            if config.checkpoint_every and at.step % config.checkpoint_every == 0:
                self.save(state, at)
        self.save(state, at)
        self.checkpoints.wait()
        return state, at

    def _learn(
        self, state: TrainState, rollout: Rollout, at: Position, reference: Params | None
    ) -> tuple[TrainState, dict[str, float], int, int]:
        """(state, metrics, updates, of which skipped for a NaN) of one batch of samples."""
        config = self.config
        batch, values = self._batch(self.weights(state), rollout, reference)
        lr = self.schedule(at.step)
        size = config.minibatch or len(rollout.truncated_N)
        sums: dict[str, list[float]] = {}
        updates = bad = 0
        for epoch in range(config.grpo.updates_per_batch):
            order = np.arange(len(rollout.truncated_N))
            if config.minibatch:  # which samples share an update is drawn anew each time
                order = np.random.default_rng([config.seed, at.step, epoch]).permutation(order)
            for first in range(0, len(order), size):
                part = jax.tree.map(lambda x, i=order[first : first + size]: x[i], batch)
                if config.old_logp == "scorer" and not updates:
                    part = dataclasses.replace(part, fresh_B=np.ones_like(part.fresh_B))
                state, metrics = self.step_fn(
                    state, put_batch(part, self.mesh), put_scalar(lr, self.mesh), *frozen_args(self.frozen)
                )
                updates += 1
                for name, value in to_host(metrics).items():
                    sums.setdefault(name, []).append(float(value))
                if sums["nonfinite"][-1]:
                    bad += 1
                    if config.nonfinite == "stop":
                        raise NonFiniteError(
                            f"batch {at.step + 1}: loss {sums['loss'][-1]}, gradient norm "
                            f"{sums['grad_norm'][-1]}; the update was not applied. Go on from the last checkpoint with "
                            "--nonfinite skip, or start anew (another --out) with a lower learning rate"
                        )
        values |= {name: _mean(found) for name, found in sums.items()}
        return state, values | {"lr": lr}, updates, bad

    def _batch(
        self, params: Params, rollout: Rollout, reference: Params | None
    ) -> tuple[SampleBatch, dict[str, float]]:
        """Host arrays of an update, and what is known of the batch before it."""
        config = self.config
        advantages_PG, metrics = group_advantages(rollout.rewards_PG, rollout.valid_PG, std=config.grpo.scale_rewards)
        mask_NT = to_host(
            sample_mask(
                rollout.completion_NT, rollout.truncated_N, rollout.valid_PG.reshape(-1),
                mask_truncated=config.grpo.mask_truncated,
            )
        )  # fmt: skip
        scored_NT = np.where(rollout.completion_NT, self._scores(params, rollout.rows), 0.0)
        off_NT = np.abs(scored_NT - rollout.logp_NT)[rollout.completion_NT]
        ref_NT = self._scores(reference, rollout.rows) if reference is not None else np.zeros_like(rollout.logp_NT)
        batch = SampleBatch(
            rows=rollout.rows,
            mask_BT=mask_NT,
            advantages_B=to_host(advantages_PG).reshape(-1),
            old_logp_BT=scored_NT if config.old_logp == "scorer" else rollout.logp_NT,
            fresh_B=np.zeros(len(mask_NT), bool),
            ref_logp_BT=ref_NT,
        )
        values = {name: float(value) for name, value in to_host(metrics).items()}
        return batch, values | {"mismatch/max": float(off_NT.max()), "mismatch/mean": float(off_NT.mean())}

    def _scores(self, params: Params, rows: TokenBatch) -> np.ndarray:
        return to_host(self.score(params, place(rows, self.mesh)))


def _mean(values: list[float]) -> float:
    """Over the updates of a batch; those in which a metric has no weight are NaN and do not count."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")


def describe(rollout: Rollout) -> dict[str, float]:
    """Metrics of the samples themselves, with TRL's names where there are such."""
    lengths_N = rollout.completion_NT.sum(axis=1)
    finished_N = ~rollout.truncated_N
    statuses = [sample.verdict.status for group in rollout.groups for sample in group.samples]
    texts = [sample.text for group in rollout.groups for sample in group.samples]
    values = {
        "completions/mean_length": float(lengths_N.mean()),
        "completions/max_length": float(lengths_N.max()),
        "completions/clipped_ratio": float(rollout.truncated_N.mean()),
        "completions/mean_terminated_length": float(lengths_N[finished_N].mean()) if finished_N.any() else float("nan"),
        "latent/think_rate": float(np.mean([_think_rate(text) for text in texts])),
        "latent/double_comments": float(np.mean([_double_comments(text) for text in texts])),
        "groups/refills": float(rollout.refills),
        "groups/dropped": float(rollout.dropped),
    }
    return values | {f"verdict/{name}": statuses.count(name) / len(statuses) for name in sorted(set(statuses))}


def _lines(text: str) -> list[bool]:
    """Whether each line that is not blank is a comment."""
    return [line.lstrip().startswith("#") for line in text.split("\n") if line.strip()]


def _think_rate(text: str) -> float:
    """Comment lines for each line of code."""
    comments = _lines(text)
    return sum(comments) / max(1, len(comments) - sum(comments))


def _double_comments(text: str) -> float:
    """Comment lines that follow a comment line: the trace policy never writes such, the plain model may."""
    comments = _lines(text)
    return float(sum(a and b for a, b in zip(comments, comments[1:], strict=False)))
