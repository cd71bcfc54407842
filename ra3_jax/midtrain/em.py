"""Rounds of E-step, annotation and M-step, each of which can be interrupted and go on exactly where it was.

    round:  estep     policy gradient only: q is trained, pi fixed
            annotate  the corpus gets its thoughts (selection under pi, or one sample of q); traces/round-K.jsonl
            mstep     pi is trained on them, from the current weights

What a run is doing is its `Position`, stored with the weights in every checkpoint; everything random is a function of
(seed, round, example). So a resumed run ends with the weights of the undisturbed one, bit for bit.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.console import Progress as Bar
from ra3_jax.core.metrics import MetricsWriter
from ra3_jax.core.rng import name_hash, named_key
from ra3_jax.core.rundir import RunDir, to_json
from ra3_jax.data.trace import AnnotatedTrace, Program, trace_from_json, trace_to_json
from ra3_jax.midtrain.annotate import AnnotationReport, annotate_corpus
from ra3_jax.midtrain.config import MidTrainConfig
from ra3_jax.midtrain.estep import EStepState, PolicyGradientEStep
from ra3_jax.midtrain.mstep import NextTokenTrainer, mstep_rows, trained_tokens
from ra3_jax.midtrain.parts import Parts
from ra3_jax.model.checkpoint import abstract_params
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.events import Events
from ra3_jax.policy.sampler import Sampler
from ra3_jax.train.loop import Progress, Stopped
from ra3_jax.train.optimizer import make_schedule
from ra3_jax.train.state import TrainState

Params = Any

# Settings that may change between an interrupted run and the one that goes on. What decides a row of the table may not:
# rows that were measured before would stand beside others of another measure.
IGNORED_ON_RESUME = (
    "out",
    "resume",
    "mesh",
    "rollout_batch",
    "tensorboard",
    "wandb",
    "vocab_chunk",
    "remat",
    "estep.rollout_batch",
)


@dataclasses.dataclass(frozen=True)
class Compute:
    """What was spent, in tokens. A unit is the forward pass of one token; its backward pass counts as two."""

    sampled: int = 0
    scored: int = 0
    trained: int = 0

    @property
    def units(self) -> int:
        return self.sampled + self.scored + 3 * self.trained

    def __add__(self, other: "Compute") -> "Compute":
        return Compute(self.sampled + other.sampled, self.scored + other.scored, self.trained + other.trained)


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run is. Plain numbers, JSON in every checkpoint."""

    round: int = 0
    phase: Literal["estep", "mstep"] = "mstep"
    updates: int = 0  # optimizer updates of all phases: the step of the checkpoint
    estep: EStepState = EStepState()
    mstep: Progress = Progress()
    annotation: AnnotationReport | None = None  # of this round, once it is annotated
    compute: Compute = Compute()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> "Position":
        return cls(
            round=d["round"],
            phase=d["phase"],
            updates=d["updates"],
            estep=EStepState(**d["estep"]),
            mstep=Progress(**d["mstep"]),
            annotation=AnnotationReport(**d["annotation"]) if d["annotation"] else None,
            compute=Compute(**d["compute"]),
        )


@dataclasses.dataclass(frozen=True)
class Bench:
    """The fixed parts of a run: what is trained, by which settings, where."""

    model: LanguageModel
    events: Events
    sampler: Sampler
    trainer: NextTokenTrainer
    estep: PolicyGradientEStep | None  # None: selection, which trains no q
    mesh: Mesh
    config: MidTrainConfig

    @classmethod
    def create(cls, model: LanguageModel, events: Events, mesh: Mesh, config: MidTrainConfig) -> "Bench":
        """Builds sampler and steps; compilation waits for the first use."""
        chunk = config.vocab_chunk
        sampler = Sampler(model, window=config.window, vocab_chunk=chunk)
        trainer = NextTokenTrainer.create(model, mesh, config.mstep, chunk=chunk)
        estep = None
        if config.estep.method == "policy_gradient":
            estep = PolicyGradientEStep.create(model, sampler, events, mesh, config.estep, chunk=chunk)
        return cls(model, events, sampler, trainer, estep, mesh, config)

    def key(self, round_: int, phase: str) -> jax.Array:
        return named_key(jax.random.key(self.config.seed), phase, round_)

    def host_seed(self, round_: int, phase: str) -> int:
        """The same for randomness on the host (the order of rows)."""
        return name_hash(f"{self.config.seed}/{phase}/{round_}") >> 1


@dataclasses.dataclass(frozen=True)
class RoundReport:
    """What a round did."""

    position: Position  # at the end of its M-step; holds the annotation's report
    pack_fill: float
    dropped: int  # traces longer than a row
    mstep: Mapping[str, float]  # metrics of the last update


@dataclasses.dataclass
class EM:
    """A run in motion: weights of pi (and q), position, and where all of it is written."""

    bench: Bench
    programs: Sequence[Program]
    base: Params | None
    """As large as the model: let go (and with adapters merged into in place) as soon as nothing can go back to it."""
    run: RunDir
    checkpoints: Checkpoints
    metrics: MetricsWriter
    on_round: Callable[[Params, RoundReport], None] | None = None
    should_stop: Callable[[], bool] = lambda: False

    def train(self, start: int | None) -> tuple[Params, Position]:
        """Runs all rounds from the checkpoint of step `start` (None: from the base). Returns pi's weights.

        Raises Stopped, with all saved, when `should_stop()`: it is asked before every update and every batch of
        programs that are annotated.
        """
        config = self.bench.config
        self._saved = start
        params, q_params, state, position = self._restore(start)
        if config.mstep.init == "continue" and not config.ntp.compare:
            self.base = None
        trainable = self.bench.trainer.trainable
        while position.round < config.em.rounds:
            if state is None:  # not in the middle of an M-step
                if config.estep.method == "policy_gradient":
                    q_params, position = self._estep(params, q_params, position)
                traces, position = self._annotate(params, q_params, position)
            else:
                traces = self._load_traces(position.round)
            if config.em.q_init == "pi":
                q_params = None
            begins, donate = state is None, True
            if state is None:
                origin = self.base if config.mstep.init == "base" else params
                assert origin is not None
                state = trainable.start(origin, self.bench.host_seed(position.round, "mstep adapters"))
                params, donate = trainable.frozen(origin), origin is not self.base
                del origin
            # From here on `params` are the weights beside adapters, or None: then no others lie beside the M-step's.
            params, position = self._mstep(state, params, donate, begins, q_params, traces, position)
            self.checkpoints.wait()
            self._parts(position.round - 1).remove()
            state = None
        self.checkpoints.wait()
        return params, position

    # --- phases ----------------------------------------------------------------------------------

    def _estep(self, params: Params, q: TrainState | Params | None, position: Position) -> tuple[Params, Position]:
        """Trains q; `q` is its TrainState in the middle of a round, its weights or nothing at the start of one."""
        bench, config = self.bench, self.bench.config.estep
        assert bench.estep is not None
        if not isinstance(q, TrainState):
            q = bench.estep.trainable.start(
                params if q is None else q, bench.host_seed(position.round, "estep adapters")
            )
            position = dataclasses.replace(position, phase="estep", estep=EStepState())
        before = position
        every = bench.config.mstep.loop.checkpoint_every
        with Bar(f"E-step {position.round + 1}", config.updates, unit="update", start=position.estep.update) as bar:

            def on_update(q: TrainState, done: EStepState, values: dict[str, float]) -> None:
                at = _after_estep(before, done)
                bar.update(done.update, think=values["latent/think_rate"], reward=values["reward"])
                self.metrics.write(at.updates, "estep", {**values, "round": at.round})
                if every and done.update % every == 0 and done.update < config.updates:
                    self._save(at, {"params": params, "q": q})

            q, done = bench.estep.run(
                params, q, self.programs, bench.key(position.round, "estep"), bench.host_seed(position.round, "estep"),
                make_schedule(config.optimizer, config.updates), position.estep, on_update=on_update,
                should_stop=self.should_stop,
            )  # fmt: skip
        position = _after_estep(before, done)
        self._save(position, {"params": params, "q": q})
        self._stop_before_the_end(done.update, config.updates, "E-step", position.round)
        return bench.estep.weights(q, params), position

    def _annotate(
        self, params: Params, q_params: Params | None, position: Position
    ) -> tuple[list[AnnotatedTrace], Position]:
        bench, config = self.bench, self.bench.config
        with Bar(f"annotate {position.round + 1}", len(self.programs), unit="program") as bar:
            done = 0

            def on_progress(n: int) -> None:
                nonlocal done
                done += n
                bar.update(done)

            parts = self._parts(position.round)
            earlier, totals = parts.load(self.programs)
            try:
                traces, report = annotate_corpus(
                    bench.sampler, params if q_params is None else q_params, self.programs, bench.events,
                    bench.key(position.round, "annotate"), bench.mesh, config.estep,
                    select=config.estep.method == "selection", batch=config.rollout_batch, on_progress=on_progress,
                    done=earlier, totals=totals, on_batch=parts.add, should_stop=self.should_stop,
                )  # fmt: skip
            finally:
                parts.flush()
        lines = [json.dumps(trace_to_json(trace)) + "\n" for trace in traces]
        self.run.write(_traces_file(position.round), "".join(lines))
        spent = Compute(sampled=report.sampled_tokens, scored=report.scored_tokens)
        position = dataclasses.replace(position, annotation=report, compute=position.compute + spent)
        # At the first update that learns from it: a resumed run keeps this line just when it does not annotate again.
        self.metrics.write(position.updates + 1, "annotate", {
            "round": position.round,
            "latent/think_rate": report.think_rate,
            "latent/mean_len": report.mean_len,
            "estep/stitched_kept": report.stitched_kept,
            "reward": report.reward,
            "reward_sampled": report.reward_sampled,
        })  # fmt: skip
        return traces, position

    def _mstep(
        self,
        state: TrainState,
        frozen: Params | None,
        donate: bool,
        begins: bool,
        q_params: Params | None,
        traces: Sequence[AnnotatedTrace],
        position: Position,
    ) -> tuple[Params, Position]:
        bench, config, trainer = self.bench, self.bench.config, self.bench.trainer
        seed = bench.host_seed(position.round, "mstep")
        length = config.data.sequence_length
        rows, dropped = mstep_rows(traces, length, ntp_lambda=config.mstep.ntp_lambda, seed=seed)
        n_steps = trainer.n_steps(rows)
        if begins:
            spent = Compute(trained=trained_tokens(rows, n_steps, config.mstep.loop.batch_size))
            position = dataclasses.replace(position, phase="mstep", mstep=Progress(), compute=position.compute + spent)
        before = dataclasses.replace(position, updates=position.updates - position.mstep.step)
        keep_q = {"q_params": q_params} if config.em.q_init == "keep" and q_params is not None else {}
        last: dict[str, float] = {}
        with Bar(f"M-step {position.round + 1}", n_steps, start=position.mstep.step) as bar:

            def on_step(done: Progress, values: dict[str, float]) -> None:
                last.update(values)
                bar.update(done.step, loss=values["loss"], code=values["nll/code"])

            def on_log(done: Progress, values: dict[str, float]) -> None:
                at = before.updates + done.step
                self.metrics.write(at, "mstep", {**values, "round": before.round, "perf/pack_fill": rows.fill})

            def on_checkpoint(state: TrainState, done: Progress) -> None:
                self._save(_after_mstep(before, done), {**trainer.trainable.tree(state, frozen), **keep_q})

            state, done = trainer.run(
                state, rows, frozen, seed=seed, n_steps=n_steps, progress=position.mstep,
                on_step=on_step, on_log=on_log, on_checkpoint=on_checkpoint, should_stop=self.should_stop,
            )  # fmt: skip
        finished = _after_mstep(before, done)
        self._stop_before_the_end(done.step, n_steps, "M-step", before.round)
        params = trainer.trainable.plain(state.params, frozen, donate=donate)
        if self.on_round:
            self.on_round(params, RoundReport(finished, rows.fill, dropped, last))
        following = dataclasses.replace(
            finished, round=finished.round + 1, estep=EStepState(), mstep=Progress(), annotation=None
        )
        return params, following

    def _stop_before_the_end(self, done: int, wanted: int, phase: str, round_: int) -> None:
        """Raises Stopped where a phase ended early: nothing but `should_stop` makes it."""
        if done < wanted:
            self.checkpoints.wait()
            raise Stopped(f"stopped after {done} of {wanted} updates of {phase} {round_ + 1}")

    # --- checkpoints -----------------------------------------------------------------------------

    def _save(self, position: Position, tree: Mapping[str, Any]) -> None:
        if position.updates == self._saved:
            return  # resumed from this very step
        self.checkpoints.save(position.updates, dict(tree), {"position": position.to_json()})
        self._saved = position.updates

    def _restore(self, start: int | None) -> tuple[Params, TrainState | Params | None, TrainState | None, Position]:
        """(pi's weights, q, the M-step's state where one is under way, position).

        Of an M-step under way the weights are those that it keeps beside its adapters, if it trains such.
        """
        if start is None:
            return self.base, None, None, Position()
        self.checkpoints.rewind(start)
        position = Position.from_json(self.checkpoints.read_meta(start)["position"])
        abstract = abstract_params(self.bench.model, self.bench.mesh)
        if position.phase == "estep":
            assert self.bench.estep is not None  # the config is that of the saved run
            wanted = {"params": abstract, "q": self.bench.estep.trainable.abstract()}
            tree, _ = self.checkpoints.restore(wanted, start)
            return tree["params"], tree["q"], None, position
        has_q = any(name.startswith("q_params.") for name in self.checkpoints.shapes(start))
        state, frozen, tree, _ = self.bench.trainer.trainable.restore(
            self.checkpoints, start, {"q_params": abstract} if has_q else None
        )
        return frozen, tree.get("q_params"), state, position

    def _parts(self, round_: int) -> Parts:
        config = {k: v for k, v in to_json(self.bench.config).items() if k not in IGNORED_ON_RESUME}
        identity = hashlib.sha256(json.dumps([config, round_], sort_keys=True).encode()).hexdigest()
        return Parts(self.run, round_, identity)

    def _load_traces(self, round_: int) -> list[AnnotatedTrace]:
        lines = self.run.artifact(_traces_file(round_)).decode().splitlines()
        if len(lines) != len(self.programs):
            raise ValueError(
                f"{self.run.path / _traces_file(round_)}: {len(lines)} traces for {len(self.programs)} programs"
            )
        return [trace_from_json(json.loads(x), p) for x, p in zip(lines, self.programs, strict=True)]


def _traces_file(round_: int) -> str:
    return f"traces/round-{round_ + 1}.jsonl"


def _after_estep(before: Position, done: EStepState) -> Position:
    """The position after `done.update` updates of an E-step that stood at `before`."""
    earlier = before.estep
    spent = Compute(
        sampled=done.sampled_tokens - earlier.sampled_tokens,
        scored=done.scored_tokens - earlier.scored_tokens,
        trained=done.trained_tokens - earlier.trained_tokens,
    )
    return dataclasses.replace(
        before,
        estep=done,
        updates=before.updates + done.update - earlier.update,
        compute=before.compute + spent,
    )


def _after_mstep(before: Position, done: Progress) -> Position:
    """The position after `done.step` updates of an M-step; `before.updates` counts none of them."""
    return dataclasses.replace(before, mstep=done, updates=before.updates + done.step)
