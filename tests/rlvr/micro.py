"""RLVR small enough for tests: a 16-wide model, puzzles of one block, judges that follow a rule of the test."""

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.rlvr_presets import MICRO
from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.metrics import MetricsWriter, read_metrics
from ra3_jax.core.rundir import RunDir
from ra3_jax.data import puzzles
from ra3_jax.data.codec import Codec
from ra3_jax.data.tokenizer import load_tokenizer
from ra3_jax.model.checkpoint import LoadedModel, save_model_artifacts
from ra3_jax.model.config import tiny
from ra3_jax.model.language_model import LanguageModel, Params
from ra3_jax.policy.events import Events
from ra3_jax.policy.sampler import Sampler
from ra3_jax.rlvr.config import EvaluationConfig, GRPOConfig, RLVRConfig, RolloutConfig, TasksConfig
from ra3_jax.rlvr.job import TASK_SEED, make_asker
from ra3_jax.rlvr.learner import Learner, Position
from ra3_jax.rlvr.rollout import Roller, Rollout
from ra3_jax.tasks.task import Task
from ra3_jax.tasks.training import puzzle_family
from ra3_jax.tasks.verdict import Verdict
from ra3_jax.train.config import OptimizerConfig
from ra3_jax.train.optimizer import make_schedule
from tests.model.small_models import random_params
from tests.policy.world import on_one_device

CODEC = Codec(load_tokenizer("puzzles"))
EVENTS = Events.from_sets(CODEC.sets)
MODEL = LanguageModel(tiny(CODEC.tokenizer.size, d_model=16, n_layers=1, n_heads=2))
TASKS = tuple(puzzle_family("puzzles", "mid", 12, 0, (1, 2)))
EOS = CODEC.sets.eos_id

CONFIG = RLVRConfig(
    steps=2,
    rollout=RolloutConfig(prompts=2, samples=4, max_new=12, lanes=8),
    optimizer=OptimizerConfig(learning_rate=1e5, eps=1e6, clip_norm=1e6, schedule="constant", weight_decay=0.0),
    checkpoint_every=1,
)
"""Two batches of two groups of four. Adam with an eps beside which every gradient is small, and RATE for a rate: plain
gradient descent, so that a test can read the gradient off the weights."""

RATE = CONFIG.optimizer.learning_rate / CONFIG.optimizer.eps


def with_rollout(config: RLVRConfig = CONFIG, **changes: Any) -> RLVRConfig:
    return dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **changes))


def with_grpo(config: RLVRConfig = CONFIG, **changes: Any) -> RLVRConfig:
    return dataclasses.replace(config, grpo=GRPOConfig(**changes))


@functools.cache
def talker(seed: int = 0) -> Params:
    """Random weights that end a completion now and then: all ids point a little in the direction of end-of-text."""
    with on_one_device():
        params = jax.tree.map(np.asarray, random_params(MODEL.config, seed))
    embed = params["embed"].copy()
    embed[:, 0] = 0.5
    embed[EOS, 0] = 3.2
    return {**params, "embed": embed}


# --- judges -------------------------------------------------------------------------------------------

Rule = Callable[[Task, str], Verdict]


def verdict(n_passed: int, n_tests: int = 4) -> Verdict:
    return Verdict("pass" if n_passed == n_tests else "fail", n_passed, n_tests)


INFRA = Verdict("infra", 0, 4, detail="the judge fell over")


def by_hash(task: Task, text: str) -> Verdict:
    """Arbitrary, but a function of task and text: none of the tests passed, or half of them, or all."""
    return verdict(2 * (hashlib.sha256((task.task_id + text).encode()).digest()[0] % 3))


class FakeJudge:
    """Follows a rule, at once."""

    isolation = "a rule of the test"

    def __init__(self, rule: Rule = by_hash):
        self.rule = rule
        self.seen: list[str] = []

    def submit(self, tasks: Sequence[Task], completions: Sequence[str], programs: Sequence[str]) -> Future:
        self.seen += completions
        done: Future[list[Verdict]] = Future()
        done.set_result([self.rule(task, text) for task, text in zip(tasks, completions, strict=True)])
        return done


# --- batches and learners -----------------------------------------------------------------------------


def make_roller(mesh: Mesh, config: RLVRConfig = CONFIG, judge: Any = None, **changes: Any) -> Roller:
    """`changes` are fields of the Roller."""
    sampler = Sampler(MODEL, temperature=config.rollout.temperature)
    asker = make_asker(config, LoadedModel(MODEL, {}, CODEC.tokenizer, "a test", {}), CODEC, TASKS)
    judge = FakeJudge() if judge is None else judge
    roller = Roller(sampler, EVENTS, mesh, asker, judge, config.rollout, config.reward, config.seed)
    return dataclasses.replace(roller, **changes)


def task_at(i: int) -> tuple[int, Task]:
    return i, TASKS[i % len(TASKS)]


def roll(mesh: Mesh, config: RLVRConfig = CONFIG, judge: Any = None, *, params: Any = None, **changes: Any) -> Rollout:
    """The first batch."""
    roller = make_roller(mesh, config, judge, **changes)
    return roller.batch(params or talker(), task_at, 0, 0, dynamic=config.grpo.dynamic_sampling)


@functools.cache
def _compiled(config: RLVRConfig, mesh: Mesh) -> Learner:
    nothing: Any = None
    return Learner(config, MODEL, mesh, nothing, nothing, nothing, nothing)


def make_learner(
    out: Path, mesh: Mesh, config: RLVRConfig = CONFIG, judge: Any = None, start: int | None = None, **changes: Any
) -> Learner:
    """A learner that writes below `out`. Those whose loss and optimizer are the same share what they compile."""
    loss = dataclasses.replace(config.grpo, mask_truncated=True, scale_rewards=True, dynamic_sampling=False)
    loss = dataclasses.replace(loss, updates_per_batch=1)
    key = dataclasses.replace(CONFIG, grpo=loss, optimizer=config.optimizer, rollout=config.rollout)
    learner = copy.copy(_compiled(key, mesh))
    run = RunDir.at(out)
    learner.config, learner.roller, learner.task_at = config, make_roller(mesh, config, judge, **changes), task_at
    learner.schedule = make_schedule(config.optimizer, config.steps)
    learner.checkpoints = Checkpoints(run.checkpoints, keep=None)
    learner.metrics = MetricsWriter(run.metrics, resume_step=start)
    return learner


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a run came to."""

    params: Any  # numpy, as all weights here
    at: Position
    lines: list[dict[str, Any]]  # of metrics.jsonl
    rollouts: list[Rollout]
    after: list[Any]  # weights after each batch


def learn(
    out: Path, mesh: Mesh, config: RLVRConfig = CONFIG, judge: Any = None, *, start: int | None = None,
    params: Any = None, stop_after: int | None = None, should_stop: Callable[[], bool] = lambda: False,
    tasks: Callable[[int], tuple[int, Task]] = task_at, **changes: Any,
) -> Learned:  # fmt: skip
    """Runs to the end, or until `stop_after` batches. The reference for the KL term is what it started from."""
    params = params or talker()
    learner = make_learner(out, mesh, config, judge, start, **changes)
    learner.task_at = tasks
    rollouts: list[Rollout] = []
    after: list[Any] = []

    def on_step(params: Any, at: Position, rollout: Rollout, values: Any) -> None:
        rollouts.append(rollout)
        after.append(to_numpy(params))

    with learner.checkpoints, learner.metrics:
        state, at = learner.start(params, start)
        state, at = learner.run(
            state, at, reference=jax.device_put(params) if config.grpo.beta else None, on_step=on_step,
            should_stop=lambda: should_stop() or (stop_after is not None and len(rollouts) >= stop_after),
        )  # fmt: skip
    return Learned(to_numpy(state.params), at, read_metrics(RunDir.at(out).metrics), rollouts, after)


def to_numpy(tree: Any) -> Any:
    """A copy: what a train state holds is overwritten by the next update."""
    return jax.tree.map(np.array, tree)


def same(a: Any, b: Any) -> bool:
    """Bitwise."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# --- a run directory to start from --------------------------------------------------------------------

JOB = dataclasses.replace(
    MICRO,
    tasks=TasksConfig(limit=2, blocks=(1,)),
    rollout=RolloutConfig(prompts=2, samples=4, max_new=32, lanes=8),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", weight_decay=0.0),
    evaluation=EvaluationConfig(every=2, tasks=4, samples=2),
)
"""Two puzzles, which `write_start` makes a model for that solves each about every other time."""


def write_start(out: Any, params: Any = None) -> Any:
    """A run directory as mid-training leaves it; without `params`, of a model that half knows the puzzles of JOB."""
    run = RunDir.at(out)
    save_model_artifacts(run, MODEL.config, CODEC.tokenizer)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(7, {"params": half_trained() if params is None else params}, {"position": {}})
    return out


@functools.cache
def half_trained() -> Params:
    """Trained on the programs of the two puzzles until a sample is right with probability 1/2 (geometric mean)."""
    family = puzzles.generate("mid", 2, TASK_SEED, ks={1: 1.0})
    programs = [CODEC.program(p.prompt, p.code, p.name) for p in family]
    tokens_BT = np.zeros((2, 64), np.int32)
    inside_BT, learned_BT = np.zeros((2, 64), np.int32), np.zeros((2, 64), bool)
    for b, program in enumerate(programs):
        ids = np.concatenate([program.prompt_ids, *program.lines])
        tokens_BT[b, : len(ids)], inside_BT[b, : len(ids)] = ids, 1
        learned_BT[b, len(program.prompt_ids) : len(ids)] = True
    rows: Any = (tokens_BT, np.arange(64, dtype=np.int32) * inside_BT, inside_BT)
    tx = optax.adam(1e-2)

    def nll(params):
        logits_BTV = MODEL.logits(params, *rows)[:, :-1]
        logp_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[:, 1:, None], 2)[..., 0]
        return -jnp.sum(jnp.where(learned_BT[:, 1:], logp_BT, 0.0)) / len(programs)

    def update(carry):
        params, moments, _ = carry
        value, grads = jax.value_and_grad(nll)(params)
        updates, moments = tx.update(grads, moments)
        return optax.apply_updates(params, updates), moments, value

    @jax.jit
    def train(params):
        return jax.lax.while_loop(lambda carry: carry[2] > np.log(2), update, (params, tx.init(params), jnp.inf))[0]

    with on_one_device():
        return jax.tree.map(np.asarray, train(talker()))


# --- a file of tasks that are no puzzles --------------------------------------------------------------


def write_rows(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def stdio_row(i: int) -> dict[str, Any]:
    """In the form of AReaL-boba-2-RL-Code."""
    tests = {"inputs": [f"{j}\n" * (j + 1) for j in range(3)], "outputs": [f"{i} {j}\n" for j in range(3)]}
    return {"id": f"p{i}", "prompt": f"Print {i} and the input.", "input_output": json.dumps(tests)}


def tasks_of_file(file: Path) -> TasksConfig:
    return TasksConfig(kinds=("areal-boba-2",), file=str(file), decontaminate=False)
