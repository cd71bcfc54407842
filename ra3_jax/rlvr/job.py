"""The RLVR job from checkpoint to better checkpoint; `experiments.rlvr` is its command line.

    prepare (weights, tasks, judge) -> score of the start -> batches, scores in between -> table, samples, report

All that can fail for a bad input fails in `prepare`, before anything is compiled.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.console import Progress as Bar
from ra3_jax.core.console import print_table, say
from ra3_jax.core.distributed import check_shared, from_main, require_same
from ra3_jax.core.errors import InputError
from ra3_jax.core.mesh import data_parallel_size, make_mesh
from ra3_jax.core.metrics import MetricsWriter, Sink, TensorBoardSink, WandbSink
from ra3_jax.core.rundir import RunDir, is_main_process, open_run, to_json
from ra3_jax.core.stats import Estimate
from ra3_jax.data.codec import Codec
from ra3_jax.model.checkpoint import LoadedModel, load_model, save_model_artifacts
from ra3_jax.policy.events import Events
from ra3_jax.policy.generate import Stops
from ra3_jax.policy.sampler import Sampler
from ra3_jax.rlvr.config import RLVRConfig, TasksConfig
from ra3_jax.rlvr.evaluate import Score, evaluate
from ra3_jax.rlvr.learner import Learner, Position
from ra3_jax.rlvr.reward import Judge, is_puzzle
from ra3_jax.rlvr.rollout import Asker, Roller, Rollout
from ra3_jax.sandbox.level import IsolationError
from ra3_jax.tasks.extract import program_of
from ra3_jax.tasks.task import Task
from ra3_jax.tasks.training import Part, TaskSource, TrainingSpec, style_of, training_tasks
from ra3_jax.train.loop import Stopped, stop_on_signal
from ra3_jax.train.optimizer import make_schedule

IGNORED_ON_RESUME = (
    "out",
    "resume",
    "mesh",
    "rollout.lanes",
    "tensorboard",
    "wandb",
    "vocab_chunk",
    "reward.workers",
    "nonfinite",
    "remat",
)
TASK_SEED = 7001  # puzzles of other seeds than those of mid-training's expert programs
EARLY = 10  # batches whose mean reward is told apart


@dataclasses.dataclass
class Job:
    """What the stages share."""

    config: RLVRConfig
    run: RunDir
    start: int | None  # step to go on from
    mesh: Mesh
    loaded: LoadedModel
    tasks: TaskSource
    held_out: tuple[Task, ...]
    roller: Roller
    scores: list[Score] = dataclasses.field(default_factory=list)

    def score(self, params, step: int, metrics: MetricsWriter) -> None:
        """Measures at a step, once: kept in results.json as it comes."""
        if any(score.step == step for score in self.scores):
            return
        score = evaluate(params, self.roller, self.held_out, step, self.config.evaluation)
        self.scores.append(score)
        self.run.write_json("results.json", [score.to_json() for score in self.scores])
        metrics.write(step, "evaluate", score_metrics(score))
        say(f"held-out after {step} batches: {describe_score(score)}")


def run_job(config: RLVRConfig) -> list[Score]:
    """Runs the whole job. Returns the scores on held-out tasks, that of the start first.

    Raises Stopped, with all saved, on SIGTERM or Ctrl-C. Of several processes, process 0 alone judges.
    """
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh), stop_on_signal() as should_stop:
        check_shared(config.out)
        run, start = open_run(config.out, config, resume=config.resume, ignore=IGNORED_ON_RESUME)
        require_same(f"{config.out}: the step to go on from", start)
        loaded, codec, tasks = load_inputs(config, mesh)
        needs_sandbox = not all(is_puzzle(task) for task in (*tasks.held_out, *_first_of_each(tasks)))
        try:
            judge = Judge(config.reward, needs_sandbox=needs_sandbox and is_main_process())
        except IsolationError as error:
            raise InputError(str(error)) from error
        with judge:
            job = prepare(config, run, start, mesh, loaded, codec, tasks, judge)
            del loaded  # `train` lets go of its weights
            train(job, should_stop)
            finish(job)
    return job.scores


# --- stages


def load_inputs(config: RLVRConfig, mesh: Mesh) -> tuple[LoadedModel, Codec, TaskSource]:
    """Raises InputError for a checkpoint, a tokenizer or a task that cannot be used."""
    check_config(config, mesh)
    try:
        loaded = load_model(
            config.init, mesh, step=config.init_step, revision=config.revision, dtype=config.dtype, remat=config.remat
        )
        codec = Codec(loaded.tokenizer, loaded.model.config.vocab_size)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"--init {config.init}: {error}") from error
    tasks = training_tasks(training_spec(config.tasks, config))
    for report in tasks.reports:
        say(str(report))
    return loaded, codec, tasks


def check_config(config: RLVRConfig, mesh: Mesh) -> None:
    """Raises InputError for sizes that the mesh cannot hold, and for a schedule that does not fit the run."""
    try:
        make_schedule(config.optimizer, config.steps)
    except ValueError as error:
        raise InputError(str(error)) from error
    shards = data_parallel_size(mesh)
    samples = config.rollout.prompts * config.rollout.samples
    rows = config.minibatch or samples
    for name, size in (("samples of a batch", samples), ("samples of a microbatch", rows // config.accumulate)):
        if size % shards:
            raise InputError(f"{name}: {size} is no multiple of the {shards} data-parallel devices")


def training_spec(tasks: TasksConfig, config: RLVRConfig) -> TrainingSpec:
    weights = tasks.weights or (1.0,) * len(tasks.kinds)
    parts = tuple(
        Part(
            kind, weight, limit=tasks.limit, blocks=tasks.blocks, file=tasks.file, data_dir=tasks.data_dir,
            hub=tasks.hub, revision=tasks.revision,
        )
        for kind, weight in zip(tasks.kinds, weights, strict=True)
    )  # fmt: skip
    return TrainingSpec(
        parts, seed=TASK_SEED + config.seed, held_out=config.evaluation.tasks, bad_rows=tasks.bad_rows,
        weak_tests=tasks.weak_tests, benchmarks=tasks.benchmarks, decontaminate=tasks.decontaminate,
    )  # fmt: skip


def prepare(
    config: RLVRConfig,
    run: RunDir,
    start: int | None,
    mesh: Mesh,
    loaded: LoadedModel,
    codec: Codec,
    tasks: TaskSource,
    judge: Judge,
) -> Job:
    model, tokenizer = loaded.model, loaded.tokenizer
    sampler = Sampler(model, temperature=config.rollout.temperature, vocab_chunk=config.vocab_chunk)
    held_out = tasks.held_out[: config.evaluation.tasks] if len(tasks.reports) == 1 else tasks.held_out
    asker = make_asker(config, loaded, codec, (*held_out, *_first_of_each(tasks)))
    roller = Roller(
        sampler, Events.from_sets(codec.sets), mesh, asker, judge, config.rollout, config.reward, config.seed
    )
    for task in held_out:
        asker.prompt_ids(task)
    save_model_artifacts(run, model.config, tokenizer, loaded.hf_files)
    job = Job(config, run, start, mesh, loaded, tasks, held_out, roller)
    results = run.path / "results.json"
    if start is not None:
        rows = from_main(lambda: json.loads(results.read_text()) if results.exists() else [])
        job.scores = [score for row in rows if (score := Score.from_json(row)).step <= start]
    say(f"start: {loaded.origin}, {model.config.n_params / 1e6:.2f} M weights; judged by: {judge.isolation}")
    say(f"{len(tasks)} tasks to train on, {len(held_out)} held out")
    return job


def make_asker(config: RLVRConfig, loaded: LoadedModel, codec: Codec, tasks: tuple[Task, ...]) -> Asker:
    """Each kind of task in its own style; a base model's form, since the start is one."""
    strings = dict.fromkeys(stop for task in tasks for stop in style_of(task.source).stops)
    return Asker(
        codec,
        program=lambda task, text: program_of(task, text, style_of(task.source), chat=False),
        prompt=lambda task: style_of(task.source).prompt(task),
        stops=Stops(tuple(strings), frozenset(loaded.tokenizer.eos_ids), codec.decode),
        max_new=config.rollout.max_new,
        max_positions=loaded.model.config.max_positions,
    )


def _first_of_each(tasks: TaskSource) -> list[Task]:
    return [part.train[0] for part in tasks.sets if len(part.train)]


def train(job: Job, should_stop: Callable[[], bool]) -> None:
    """Raises Stopped, with all saved, when `should_stop()`."""
    config = job.config
    sinks = _sinks(job)
    every = config.evaluation.every
    with (
        Checkpoints(job.run.checkpoints) as checkpoints,
        MetricsWriter(job.run.metrics, resume_step=job.start, sinks=sinks) as metrics,
    ):
        learner = Learner(
            config, job.loaded.model, job.mesh, job.roller, lambda i: (i, job.tasks.at(i)), checkpoints, metrics
        )
        state, at = learner.start(job.loaded.params, job.start)
        reference = job.loaded.params if config.grpo.beta else None
        job.loaded = dataclasses.replace(job.loaded, params={})  # as large as the model, and only a KL term needs them
        if at.step == 0:
            job.score(learner.weights(state), 0, metrics)
        with Bar("RLVR", config.steps, unit="batch", start=at.step) as bar:

            def on_step(params, at: Position, rollout: Rollout, values: Mapping[str, float]) -> None:
                bar.update(at.step, reward=values["reward"], entropy=values["entropy"])
                if at.step == min(EARLY, config.steps):
                    say(f"mean reward of batch {at.step}: {values['reward']:.3f}")
                if at.step == config.steps or (every and at.step % every == 0):
                    job.score(params, at.step, metrics)
                if at.step == config.steps:
                    job.run.write_json("samples.json", shown_samples(rollout))

            state, at = learner.run(state, at, reference=reference, on_step=on_step, should_stop=should_stop)
        if at.step == config.steps:
            job.score(learner.weights(state), at.step, metrics)  # where results.json was lost after the end
    if at.step < config.steps:
        raise Stopped(f"stopped after {at.step} of {config.steps} batches")


def shown_samples(rollout: Rollout, groups: int = 4, samples: int = 3) -> list[dict[str, Any]]:
    """Some samples with their verdicts, for the report."""
    rows = []
    for group in rollout.groups[:groups]:
        for sample in group.samples[:samples]:
            verdict = sample.verdict
            rows.append({
                "task_id": group.task.task_id, "prompt": group.task.prompt, "completion": sample.text,
                "status": verdict.status, "detail": verdict.detail, "reward": sample.reward,
            })  # fmt: skip
    return rows


def _sinks(job: Job) -> list[Sink]:
    sinks: list[Sink] = []
    if not is_main_process():
        return sinks
    if job.config.tensorboard:
        sinks.append(TensorBoardSink(job.run.path / "tensorboard"))
    if job.config.wandb:
        sinks.append(WandbSink(job.config.wandb, job.run.path.name, to_json(job.config)))
    return sinks


def score_metrics(score: Score) -> dict[str, float]:
    values = {"eval/pass@1_greedy": score.greedy.mean, "eval/pass@1_greedy_se": score.greedy.se}
    for k, estimate in score.pass_at.items():
        values |= {f"eval/pass@{k}": estimate.mean, f"eval/pass@{k}_se": estimate.se}
    return values | {"eval/mean_length": score.length, "eval/invalid": float(score.invalid)}


def describe_score(score: Score) -> str:
    parts = [f"greedy pass@1 {_shown(score.greedy)}"]
    parts += [f"pass@{k} {_shown(estimate)}" for k, estimate in score.pass_at.items()]
    return ", ".join([*parts, f"{score.length:.0f} tokens"])


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} ± {estimate.se:.3f}"


def finish(job: Job) -> None:
    """Table, summary.json, report.html."""
    from ra3_jax.rlvr.report import write_report

    scores = sorted(job.scores, key=lambda score: score.step)
    ks = list(scores[0].pass_at)
    columns = ["batches", "greedy pass@1", *(f"pass@{k}" for k in ks), "tokens"]
    rows = [
        [str(s.step), _shown(s.greedy), *(_shown(s.pass_at[k]) for k in ks), f"{s.length:.0f}"]
        for s in (scores[0], max(scores, key=lambda s: s.greedy.mean), scores[-1])
    ]
    rows = [[name, *row] for name, row in zip(("start", "best", "end"), rows, strict=True)]
    print_table("held-out tasks; ± standard error over tasks", ["", *columns], rows)
    job.run.write_json(
        "summary.json",
        {
            "start": job.loaded.origin,
            "judge": job.roller.judge.isolation,
            "tasks": [to_json(report) for report in job.tasks.reports],
            "scores": [{k: v for k, v in s.to_json().items() if k != "examples"} for s in scores],
        },
    )
    if is_main_process():
        write_report(job.run, job.config, scores)
    say(f"report: {job.run.report}\ncheckpoints: {job.run.checkpoints}")
