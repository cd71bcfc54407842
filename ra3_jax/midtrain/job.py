"""The mid-training job from corpus to checkpoint, stage by stage; `experiments.midtrain` is its command line.

    prepare (tokenizer, corpus, base) -> gates -> EM rounds -> NTP baseline -> table, annotated programs, report

Each stage writes what it found before the next begins: a later failure loses nothing, and the same command goes on.
Several processes do the same in step; process 0 writes, and what only its files can tell it tells the others.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.console import Progress as Bar
from ra3_jax.core.console import print_program, print_table, say
from ra3_jax.core.distributed import check_shared, from_main, require_same
from ra3_jax.core.errors import InputError
from ra3_jax.core.mesh import data_parallel_size, make_mesh
from ra3_jax.core.metrics import MetricsWriter, Sink, TensorBoardSink, WandbSink
from ra3_jax.core.rng import named_key
from ra3_jax.core.rundir import RunDir, is_main_process, open_run, to_json
from ra3_jax.data.codec import Codec
from ra3_jax.data.tokenizer import load_tokenizer
from ra3_jax.data.trace import LATENT_KINDS, AnnotatedTrace
from ra3_jax.midtrain.annotate import annotate_corpus
from ra3_jax.midtrain.base import load_or_train_base
from ra3_jax.midtrain.config import MidTrainConfig, check_config
from ra3_jax.midtrain.em import EM, IGNORED_ON_RESUME, Bench, Compute, Params, RoundReport
from ra3_jax.midtrain.evaluate import deciles, thinking_gains
from ra3_jax.midtrain.gates import check_gates, sampled_comment_quality
from ra3_jax.midtrain.material import Material, base_rows, load_material
from ra3_jax.midtrain.measure import TABLE_COLUMNS, Row, Yardstick, table_rows
from ra3_jax.midtrain.ntp import NTPRun, plain_rows, steps_for, train_ntp
from ra3_jax.model.checkpoint import LoadedModel, load_model, save_model_artifacts
from ra3_jax.model.config import tiny
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.events import Events
from ra3_jax.train.loop import Stopped, stop_on_signal

SHOWN_PROGRAMS = 3


@dataclasses.dataclass
class Job:
    """What the stages share."""

    config: MidTrainConfig
    run: RunDir
    start: int | None  # step to go on from
    mesh: Mesh
    model: LanguageModel
    codec: Codec
    material: Material
    base: Params
    base_name: str
    bench: Bench
    yardstick: Yardstick
    should_stop: Callable[[], bool]
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # wall time by stage
    findings: dict[str, Any] = dataclasses.field(default_factory=dict)  # into summary.json
    _nested: float = 0.0  # time of the stages inside the current one

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; a stage within it counts for itself alone."""
        began, outer, self._nested = time.monotonic(), self._nested, 0.0
        yield
        whole = time.monotonic() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._nested
        self._nested = outer + whole


def run_job(config: MidTrainConfig) -> list[Row]:
    """Runs the whole job. Returns the rows of the final table. Raises Stopped, with all saved, on SIGTERM or Ctrl-C."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh), stop_on_signal() as should_stop:
        job = prepare(config, mesh, should_stop)
        results = Results(job.run, resumed=job.start is not None)
        rows = [results.row(job, "base", lambda: (job.base, 0, Compute(), ""))]
        check_base(job)
        if config.method == "ra3":
            params, rounds = train_ra3(job, results)
            rows += [*ntp_rows(job, results, rounds[-1]), *rounds] if config.ntp.compare else rounds
        else:
            params, row = train_ntp_alone(job, results)
            rows.append(row)
        finish(job, rows, params)
    return rows


class Results:
    """The measured rows, kept in results.json as they come, so that a resumed run does not measure them again."""

    def __init__(self, run: RunDir, resumed: bool):
        """`resumed`: under the same config, so earlier rows hold; a run that starts afresh measures all anew."""
        self._run = run
        path = run.path / "results.json"
        self._done = from_main(lambda: json.loads(path.read_text()) if resumed and path.exists() else {})

    def row(self, job: Job, name: str, make) -> Row:
        """The row of this name; `make() -> (params, updates, compute, note)` is called where it has to be measured."""
        if name in self._done:
            return Row.from_json(self._done[name])
        params, updates, compute, note = make()
        if job.should_stop():
            raise Stopped(f"stopped before {name} was measured")
        with job.stage("evaluate"):
            row = job.yardstick.measure(name, params, updates, compute, note)
        self._done[name] = row.to_json()
        self._run.write_json("results.json", self._done)
        return row


# --- stages --------------------------------------------------------------------------------------


def prepare(config: MidTrainConfig, mesh: Mesh, should_stop: Callable[[], bool] = lambda: False) -> Job:
    """Everything that can fail for a bad input happens here, before a training step is compiled.

    Raises InputError, RunDirError or CheckpointError.
    """
    check_shared(config.out)
    run, start = open_run(config.out, config, resume=config.resume, ignore=IGNORED_ON_RESUME)
    require_same(f"{config.out}: the step to go on from", start)
    began = time.monotonic()
    try:
        check_config(config, data_parallel_size(mesh))
        model, codec, loaded = load_start(config, mesh)
        material = load_material(config, codec)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    for note in material.notes:
        say(note)
    say(f"model: {model.config.n_params / 1e6:.2f} M weights, {describe_mesh(mesh)}")
    base, name = _base(config, run, codec, model, loaded, mesh, should_stop)
    save_model_artifacts(run, model.config, codec.tokenizer, loaded.hf_files if loaded else None)
    events = Events.from_sets(codec.sets)
    bench = Bench.create(model, events, mesh, config)
    yardstick = Yardstick(
        bench.sampler, codec, events, mesh, config.evaluation, config.estep.max_latent_tokens,
        material.test, material.test_tasks,
    )  # fmt: skip
    job = Job(config, run, start, mesh, model, codec, material, base, name, bench, yardstick, should_stop)
    job.seconds["prepare"] = time.monotonic() - began
    rate = codec.noncanonical_rate(material.test[:64])
    say(f"codec: {rate:.2%} of the tokens differ from the tokenizer's own encoding of the whole text")
    job.findings["codec/noncanonical_rate"] = rate
    return job


def load_start(config: MidTrainConfig, mesh: Mesh) -> tuple[LanguageModel, Codec, LoadedModel | None]:
    """The model and its codec; weights only where they are given (None: the small base is trained)."""
    if config.model == "tiny":
        codec = Codec(load_tokenizer(config.tokenizer))
        base = config.base
        model = tiny(codec.tokenizer.size, d_model=base.d_model, n_layers=base.n_layers, n_heads=base.n_heads)
        return LanguageModel(model), codec, None
    loaded = load_model(config.model, mesh, revision=config.revision, dtype=config.dtype, remat=config.remat)
    return loaded.model, Codec(loaded.tokenizer, loaded.model.config.vocab_size), loaded


def describe_mesh(mesh: Mesh) -> str:
    device = mesh.devices.flat[0]
    return f"{mesh.devices.size} x {device.device_kind} as {dict(mesh.shape)}"


def _base(
    config: MidTrainConfig,
    run: RunDir,
    codec: Codec,
    model: LanguageModel,
    loaded: LoadedModel | None,
    mesh: Mesh,
    should_stop: Callable[[], bool],
) -> tuple[Params, str]:
    """(weights, name) of what mid-training starts from."""
    if loaded is not None:
        return loaded.params, loaded.origin
    rows = base_rows(config, codec, say)
    with Bar("base", config.base.steps) as bar:
        params, name, cached = load_or_train_base(
            model, rows, config.base, codec.tokenizer.content_hash, mesh,
            on_step=lambda done, m: bar.update(done.step, loss=m["loss"], code=m["nll/code"]),
            should_stop=should_stop,
        )  # fmt: skip
    say(f"base {name}: {'from the cache' if cached else 'trained and cached'}")
    _keep_base(RunDir(run.path / "base"), model, codec, params)
    return params, name


def _keep_base(run: RunDir, model: LanguageModel, codec: Codec, params: Params) -> None:
    """The base as a run directory of its own, so that later stages can start from it like from any other."""
    save_model_artifacts(run, model.config, codec.tokenizer)
    with Checkpoints(run.checkpoints, keep=1) as checkpoints:
        if checkpoints.latest_step() is None:
            checkpoints.save(0, {"params": params}, {})


def check_base(job: Job) -> None:
    """Prints the gates (puzzles) or, elsewhere, what the base's thoughts are worth by decile."""
    config, bench = job.config, job.bench
    with job.stage("gates"):
        key = named_key(jax.random.key(config.seed), "gates")
        latent, batch = config.estep.max_latent_tokens, config.evaluation.batch
        if job.material.dev_puzzles:
            one_skill = dataclasses.replace(job.yardstick, tasks=job.material.one_skill_tasks)
            passes = one_skill.passes("one-skill tasks", job.base)
            assert passes is not None
            quality = sampled_comment_quality(
                bench.sampler, job.base, job.material.dev_puzzles, job.material.dev, job.codec, bench.events,
                key, job.mesh, max_latent_tokens=latent, batch=batch,
            )  # fmt: skip
            gates = check_gates(passes.pass_at[1], quality, config.base, config.estep.method)
            for gate in gates:
                say(str(gate))
            say(
                f"the base's comments: {quality.right:.2f} right, precision {quality.precision:.2f}, "
                f"recall {quality.recall:.2f}, think rate {quality.think_rate:.2f}"
            )
            job.findings["gates"] = [{**to_json(gate), "passed": gate.passed} for gate in gates]
            job.findings["base_comments"] = to_json(quality)
        else:
            gains = thinking_gains(
                bench.sampler, job.base, job.material.dev, bench.events, key, job.mesh,
                max_latent_tokens=latent, horizon=config.estep.horizon, batch=batch,
            )  # fmt: skip
            report_gains(job, "base", gains)


def report_gains(job: Job, name: str, gains: np.ndarray) -> None:
    """Prints and keeps the gain of thinking over the `<act>` counterfactual, by decile."""
    parts = deciles(gains)
    job.findings[f"thinking_gain/{name}"] = parts
    if not parts:
        say(f"{name}: thought nowhere in {len(job.material.dev)} held-out programs")
        return
    what = f"gain of a thought over <act>, nats over {job.config.estep.horizon} lines, by decile of {len(gains)}"
    say(f"{name}: {what}: " + " ".join(f"{x:+.2f}" for x in parts))


def train_ra3(job: Job, results: Results) -> tuple[Params, list[Row]]:
    """The EM rounds, each measured at its end."""
    rows: list[Row] = []

    def on_round(params: Params, report: RoundReport) -> None:
        at, annotation = report.position, report.position.annotation
        assert annotation is not None
        say(
            f"round {at.round + 1}: think rate {annotation.think_rate:.3f}, mean length {annotation.mean_len:.1f}, "
            f"stitched kept {annotation.stitched_kept:.2f}, J_c {annotation.reward_sampled:.2f} sampled -> "
            f"{annotation.reward:.2f} kept, rows {report.pack_fill:.1%} full, {report.dropped} too long"
        )
        if annotation.think_rate < 0.01:
            say("warning: this E-step has all but stopped thinking; see the README on weak commenters")
        name = f"ra3 round {at.round + 1}"
        rows.append(results.row(job, name, lambda: (params, at.updates, at.compute, job.config.estep.method)))

    sinks = _sinks(job)
    checkpoints = Checkpoints(job.run.checkpoints)
    with job.stage("ra3"), MetricsWriter(job.run.metrics, resume_step=job.start, sinks=sinks) as metrics:
        em = EM(job.bench, job.material.train, job.base, job.run, checkpoints, metrics, on_round, job.should_stop)
        if not job.config.ntp.compare:
            job.base = None  # only the baselines go back to it, and it takes the devices' memory
        params, _ = em.train(job.start)
    checkpoints.close()
    done = {row.name for row in rows}
    earlier = [name for name in (f"ra3 round {r + 1}" for r in range(job.config.em.rounds)) if name not in done]
    return params, [*(results.row(job, name, _missing) for name in earlier), *rows]


def _missing():
    raise RuntimeError("results.json lost a row that an earlier session had measured; remove the run directory")


def _sinks(job: Job) -> list[Sink]:
    sinks: list[Sink] = []
    if not is_main_process():
        return sinks
    if job.config.tensorboard:
        sinks.append(TensorBoardSink(job.run.path / "tensorboard"))
    if job.config.wandb:
        sinks.append(WandbSink(job.config.wandb, job.run.path.name, to_json(job.config)))
    return sinks


def ntp_rows(job: Job, results: Results, ra3: Row) -> list[Row]:
    """The baseline at each budget, with the learning rate of the grid that does best on development data."""
    config = job.config
    packed = plain_rows(job.material.train, config.data.sequence_length)
    batch = config.mstep.loop.batch_size
    budgets = {"equal_steps": _mstep_updates(job, ra3), "equal_flops": steps_for(packed, batch, ra3.compute)}
    rows = []
    for budget in config.ntp.budgets:

        def make(budget: str = budget):
            tried = []
            for rate in config.ntp.learning_rates:
                trial = NTPRun(f"ntp-{budget}-lr{rate:g}", budgets[budget], rate)
                with job.stage("ntp"):
                    params, spent = _train_ntp(job, packed, trial)
                tried.append((_dev_score(job, trial.name, params), rate, params, spent))
            score, rate, params, spent = max(tried, key=lambda x: x[0])
            note = f"lr {rate:g} of {', '.join(f'{r:g}' for r in config.ntp.learning_rates)} (dev {score:.3f})"
            return params, budgets[budget], spent, note

        rows.append(results.row(job, f"ntp {budget.replace('_', ' ')}", make))
    return rows


def _mstep_updates(job: Job, ra3: Row) -> int:
    """RA3's M-step updates: all of its updates but those of policy-gradient E-steps."""
    estep = job.config.estep
    per_round = estep.updates if estep.method == "policy_gradient" else 0
    return ra3.updates - per_round * job.config.em.rounds


def _train_ntp(job: Job, packed, trial: NTPRun) -> tuple[Params, Compute]:
    settings = {"mstep": to_json(job.config.mstep), "job": to_json(trial), "seed": job.config.seed}
    resume = "never" if job.config.resume == "never" else "auto"
    run, start = open_run(job.run.path / trial.name, settings, resume=resume)
    save_model_artifacts(run, job.model.config, job.codec.tokenizer)
    return train_ntp(job.bench, job.base, packed, trial, run, start=start, should_stop=job.should_stop)


def _dev_score(job: Job, name: str, params: Params) -> float:
    """What chooses NTP's schedule; higher is better: dev pass@1, or minus the dev NLL where there are no tasks."""
    with job.stage("ntp"):
        if job.material.dev_tasks:
            passes = dataclasses.replace(job.yardstick, tasks=job.material.dev_tasks).passes(f"{name} dev", params)
            assert passes is not None
            return passes.pass_at[1].mean
        return -dataclasses.replace(job.yardstick, programs=job.material.dev).bounds(f"{name} dev", params).best.mean


def train_ntp_alone(job: Job, results: Results) -> tuple[Params, Row]:
    """`--method ntp`: one training at the M-step's learning rate, its checkpoints in the run directory itself."""
    packed = plain_rows(job.material.train, job.config.data.sequence_length)
    n_steps = job.bench.trainer.n_steps(packed, job.config.ntp.epochs)
    trial = NTPRun("ntp", n_steps, job.config.mstep.optimizer.learning_rate)
    with job.stage("ntp"):
        params, spent = train_ntp(
            job.bench, job.base, packed, trial, job.run, start=job.start, should_stop=job.should_stop
        )
    return params, results.row(job, "ntp", lambda: (params, n_steps, spent, f"lr {trial.learning_rate:g}"))


# --- the end -------------------------------------------------------------------------------------


def finish(job: Job, rows: list[Row], params: Params) -> None:
    """Table, annotated programs, summary.json, report.html."""
    from ra3_jax.midtrain.report import write_report

    with job.stage("show"):
        traces, _ = annotate_corpus(
            job.bench.sampler, params, job.material.test[:SHOWN_PROGRAMS], job.bench.events,
            named_key(jax.random.key(job.config.seed), "show"), job.mesh, job.config.estep,
            select=False, batch=job.config.evaluation.batch,
        )  # fmt: skip
        if not job.material.dev_puzzles:
            gains = thinking_gains(
                job.bench.sampler, params, job.material.dev, job.bench.events,
                named_key(jax.random.key(job.config.seed), "gates"), job.mesh,
                max_latent_tokens=job.config.estep.max_latent_tokens,
                horizon=job.config.estep.horizon, batch=job.config.evaluation.batch,
            )  # fmt: skip
            report_gains(job, job.config.method, gains)
    shown = [coloured(trace, job.codec) for trace in traces]
    for pieces in shown:
        say("")
        print_program(pieces)
    say("")
    print_table("held-out likelihood (nats) and fresh tasks; ± standard error", TABLE_COLUMNS, table_rows(rows))
    for row in rows:
        if row.note:
            say(f"  {row.name}: {row.note}")
    say("wall time: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in job.seconds.items()))
    job.run.write_json(
        "summary.json",
        {"rows": [row.to_json() for row in rows], "seconds": job.seconds, "base": job.base_name, **job.findings},
    )
    if is_main_process():
        write_report(job.run, job.config, rows, shown, job.findings)
    say(f"report: {job.run.report}\ncheckpoints: {job.run.checkpoints}")


def coloured(trace: AnnotatedTrace, codec: Codec) -> list[tuple[str, bool]]:
    """(text, is a thought) pieces of an annotated program."""
    thought_T = np.isin(trace.kinds_T, LATENT_KINDS)
    cuts = np.flatnonzero(np.diff(thought_T)) + 1
    pieces = zip(np.split(trace.tokens_T, cuts), np.split(thought_T, cuts), strict=True)
    return [(codec.decode(ids), bool(thought[0])) for ids, thought in pieces]
