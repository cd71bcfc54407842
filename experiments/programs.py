"""The compiled programs of both jobs with abstract arguments: the very functions the jobs call, in their shapes.

Shapes that depend on data are those of a program as long as a row may be (`Shapes`). Each step has a knob: the setting
that makes it smaller without changing what is learned or sampled.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.aot import Program, Work, abstract, bytes_per_device
from ra3_jax.core.mesh import data_parallel_size, replicated, sharding
from ra3_jax.data.trace import Program as CodeProgram
from ra3_jax.midtrain.config import MidTrainConfig
from ra3_jax.midtrain.estep import PolicyGradientEStep
from ra3_jax.midtrain.mstep import NextTokenTrainer
from ra3_jax.midtrain.rollouts import length_buckets, max_lines, score_terms
from ra3_jax.model.cache import KVCache
from ra3_jax.model.checkpoint import abstract_params
from ra3_jax.model.language_model import ABSTRACT_KEY, LanguageModel
from ra3_jax.policy import sampler as sampling
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.events import Events
from ra3_jax.policy.generate import REFILL
from ra3_jax.policy.losses import PolicyGradientBatch
from ra3_jax.policy.plan import Plan, Row, Sample, Widths, make_plan, rollout_row, round_up
from ra3_jax.policy.sampler import Sampler, State
from ra3_jax.rlvr.config import RLVRConfig
from ra3_jax.rlvr.learner import Learner
from ra3_jax.rlvr.objective import SampleBatch
from ra3_jax.train.step import frozen_args
from ra3_jax.train.trainable import Trainable


@dataclasses.dataclass(frozen=True)
class Step:
    """One row of the table."""

    name: str
    job: str
    unit: str
    knob: str
    """The flag of the job that makes it smaller."""
    choices: tuple[int, ...]
    """Values of the knob, the configured one first, then ever smaller programs."""
    rows: Callable[[int], int]
    """Rows that one device holds at once, for a value of the knob."""
    build: Callable[[LanguageModel, int], Program]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Lengths that the corpus and the tasks decide, at their largest."""

    line_tokens: int = 10
    """Tokens of a line of code, for the number of lines of a program that fills a row."""
    prompt: int = 1024
    """RLVR: longest prompt, in tokens."""

    def longest_program(self, tokens: int) -> CodeProgram:
        """A program of `tokens` tokens, the longest that a corpus with such rows holds."""
        n_lines = max(1, (tokens - 1) // self.line_tokens)
        lines = tuple(np.zeros(self.line_tokens, np.int32) for _ in range(n_lines))
        return CodeProgram(0, "longest", np.zeros(1, np.int32), lines, code_bytes=tokens)


class Programs:
    """The steps of a mid-training and an RLVR job of one model on one mesh. Used inside `jax.set_mesh(mesh)`."""

    def __init__(self, mesh: Mesh, midtrain: MidTrainConfig, rlvr: RLVRConfig, shapes: Shapes):
        self.mesh, self.midtrain, self.rlvr, self.shapes = mesh, midtrain, rlvr, shapes
        self.shards = data_parallel_size(mesh)

    def steps(self) -> list[Step]:
        """All programs of both jobs, in the order in which the jobs meet them."""
        selection = self.midtrain.estep.method == "selection"
        return [
            *([] if selection else [self._rollouts()]),
            self._scorer(),
            *([] if selection else [self._estep()]),
            self._annotation(),
            self._mstep(),
            self._prefill(),
            self._decode(),
            self._rlvr_scorer(),
            self._grpo(),
        ]

    # --- mid-training

    @property
    def _pi_beside_q(self) -> int:
        """Whether pi's weights are others than those that q is made of."""
        return int(not self.midtrain.estep.lora.rank)

    @property
    def _base_copies(self) -> int:
        """Whether the base's weights stay on the devices beside those of pi and q."""
        return int(self.midtrain.ntp.compare or self.midtrain.mstep.init == "base")

    def _mstep(self) -> Step:
        config = self.midtrain.mstep
        batch, length = config.loop.batch_size, self.midtrain.data.sequence_length

        def build(model: LanguageModel, accumulate: int) -> Program:
            loop = dataclasses.replace(config.loop, accumulate=accumulate)
            trainer = NextTokenTrainer.create(
                model, self.mesh, dataclasses.replace(config, loop=loop), chunk=self.midtrain.vocab_chunk
            )
            keeps_q = self.midtrain.em.q_init == "keep" and self.midtrain.estep.method == "policy_gradient"
            kept = self._base_copies + keeps_q
            return self._update(model, trainer.step_fn, trainer.trainable, self._rows(batch, length), kept)

        return self._learning("M-step / NTP update", "midtrain", "mstep.loop.accumulate", batch,
                              config.loop.accumulate, build)  # fmt: skip

    def _estep(self) -> Step:
        config = self.midtrain.estep
        batch = config.programs_per_update * config.group

        def build(model: LanguageModel, accumulate: int) -> Program:
            estep = self._estep_of(model, accumulate)
            slots, _ = estep.rollout_shape([self._longest()])
            floats = self._floats(batch, slots)
            update = PolicyGradientBatch(self._rows(batch, slots), floats, floats, floats, floats)
            kept = self._base_copies + self._pi_beside_q
            return self._update(model, estep.step_fn, estep.trainable, update, kept)

        return self._learning("E-step update", "midtrain", "estep.accumulate", batch, config.accumulate, build)

    def _estep_of(self, model: LanguageModel, accumulate: int = 1) -> PolicyGradientEStep:
        config = dataclasses.replace(self.midtrain.estep, accumulate=accumulate)
        chunk = self.midtrain.vocab_chunk
        sampler = Sampler(model, window=self.midtrain.window, vocab_chunk=chunk)
        return PolicyGradientEStep.create(model, sampler, self._events(model, np.zeros), self.mesh, config, chunk=chunk)

    def _rollouts(self) -> Step:
        config = self.midtrain.estep
        rows = config.rows_at_once

        def build(model: LanguageModel, rows: int) -> Program:
            estep = self._estep_of(model)
            slots, widths = estep.rollout_shape([self._longest()])
            return self._run(
                model, rows, slots, widths, config.window_lines or None,
                weights=_policy(estep.trainable), beside=_moments(estep.trainable), copies=self._pi_beside_q,
            )  # fmt: skip

        choices = [n for n in _halves(rows) if n % config.group == 0 and n % self.shards == 0]
        return Step("rollouts (sampler.run)", "midtrain", "iteration", "estep.rollout_batch", tuple(choices),
                    lambda rows: rows // self.shards, build)  # fmt: skip

    def _annotation(self) -> Step:
        config = self.midtrain.estep
        select = config.method == "selection"
        unit = config.group if select else 1

        def build(model: LanguageModel, batch: int) -> Program:
            bucket = length_buckets([self._longest()], config.max_latent_tokens)[0]
            weights = abstract_params(model, self.mesh) if select else _policy(self._estep_of(model).trainable)
            copies = 0 if select else self._pi_beside_q
            return self._run(
                model, batch, bucket.slots, bucket.widths, None, group=unit, weights=weights, copies=copies
            )

        choices = [n for n in _halves(self.midtrain.rollout_batch) if n % unit == 0 and n % self.shards == 0]
        return Step("annotation (sampler.run)", "midtrain", "iteration", "rollout_batch", tuple(choices),
                    lambda batch: batch // self.shards, build)  # fmt: skip

    def _run(
        self, model: LanguageModel, batch: int, slots: int, widths: Widths, lines: int | None, *,
        weights: Any, copies: int, beside: int = 0, group: int | None = None,
    ) -> Program:  # fmt: skip
        """A rollout by `weights`; beside it lie `copies` of the model's weights, those of the base, and more bytes."""
        sampler = Sampler(model, window=self.midtrain.window, vocab_chunk=self.midtrain.vocab_chunk)
        row = rollout_row(self._longest(), self.midtrain.estep.max_latent_tokens, n_lines=lines)
        plan = make_plan([row], batch=batch, slots=slots, widths=widths)
        plan = abstract(plan, self.mesh, "batch")
        events = self._events(model)
        group = group or self.midtrain.estep.group
        work = Work(sampling._run, (sampler, weights, plan, events, ABSTRACT_KEY, group))
        state = self._state(sampler, batch, slots)
        beside += (self._base_copies + copies) * bytes_per_device(abstract_params(model, self.mesh))
        return Program(
            work, (), beside, self._iterations(sampler, weights, plan, events, state),
            self._reads(model, state), batch,
        )  # fmt: skip

    def _scorer(self) -> Step:
        config = self.midtrain.estep
        selection = config.method == "selection"
        # Selection scores one annotated program for every group of rollouts; the policy gradient scores each rollout.
        if selection:
            knob, configured = "rollout_batch", self.midtrain.rollout_batch
        else:
            knob, configured = "estep.programs_per_update", config.programs_per_update

        def rows(value: int) -> int:
            return round_up(value // config.group if selection else value * config.group, self.shards)

        def build(model: LanguageModel, value: int) -> Program:
            program = self._longest()
            if selection:
                slots = length_buckets([program], config.max_latent_tokens)[0].slots
            else:
                slots, _ = self._estep_of(model).rollout_shape([program])
            weights = abstract_params(model, self.mesh)
            args = (model, weights, self._rows(rows(value), slots), self._events(model), max_lines([program]))
            work = Work(score_terms, (*args, self.midtrain.vocab_chunk))
            beside = self._base_copies * bytes_per_device(weights)
            if not selection:  # q
                q = self._estep_of(model).trainable.abstract()
                beside += bytes_per_device((q.params, q.opt_state))
            return Program(work, (), beside, work, self._weight_bytes(model), rows(value) * slots)

        choices = tuple(n for n in _halves(configured) if not selection or n % config.group == 0)
        return Step("scorer", "midtrain", "pass", knob, choices, lambda value: rows(value) // self.shards, build)

    # --- post-training

    @property
    def _sample_length(self) -> int:
        return round_up(self.shapes.prompt + self.rlvr.rollout.max_new, 64)

    def _learner(self, model: LanguageModel, accumulate: int) -> Learner:
        elsewhere: Any = None  # what the compiled parts do not read
        config = dataclasses.replace(self.rlvr, accumulate=accumulate)
        return Learner(config, model, self.mesh, elsewhere, elsewhere, elsewhere, elsewhere)

    def _grpo(self) -> Step:
        config, length = self.rlvr, self._sample_length
        batch = config.minibatch or config.rollout.prompts * config.rollout.samples

        def build(model: LanguageModel, accumulate: int) -> Program:
            learner = self._learner(model, accumulate)
            floats = self._floats(batch, length)
            update = SampleBatch(
                rows=self._rows(batch, length),
                mask_BT=self._array((batch, length), jnp.bool),
                advantages_B=self._array((batch,), jnp.float32),
                old_logp_BT=floats,
                fresh_B=self._array((batch,), jnp.bool),
                ref_logp_BT=floats,
            )
            return self._update(model, learner.step_fn, learner.trainable, update, self._start_copies)

        return self._learning(f"{config.grpo.objective} update", "rlvr", "accumulate", batch, config.accumulate, build)

    def _rlvr_scorer(self) -> Step:
        config, length = self.rlvr, self._sample_length

        def build(model: LanguageModel, rows: int) -> Program:
            learner = self._learner(model, 1)
            work = Work(learner.score, (_policy(learner.trainable), self._rows(rows, length)))
            return Program(work, (), self._beside_policy(learner), work, self._weight_bytes(model), rows * length)

        choices = _halves(config.rollout.prompts * config.rollout.samples)
        return Step("scorer", "rlvr", "pass", "rollout.prompts", tuple(n for n in choices if n % self.shards == 0),
                    lambda rows: rows // self.shards, build)  # fmt: skip

    @property
    def _start_copies(self) -> int:
        """Whether the start's weights stay, for the KL term, and are not those beside which adapters are trained."""
        return int(self.rlvr.grpo.beta > 0 and not self.rlvr.lora.rank)

    def _beside_policy(self, learner: Learner) -> int:
        """Bytes on each device while the policy samples or scores."""
        start = self._start_copies * bytes_per_device(abstract_params(learner.model, self.mesh))
        return _moments(learner.trainable) + start

    def _lanes(self) -> tuple[int, ...]:
        rollout = self.rlvr.rollout
        lanes = round_up(min(rollout.lanes, rollout.prompts * rollout.samples), self.shards)
        return tuple(n for n in _halves(lanes) if n % self.shards == 0)

    def _lane_state(self, model: LanguageModel, lanes: int) -> tuple[Sampler, Plan, State]:
        sampler = Sampler(model, window=1, temperature=self.rlvr.rollout.temperature, vocab_chunk=self.rlvr.vocab_chunk)
        width, new = round_up(self.shapes.prompt, 64), self.rlvr.rollout.max_new
        slots = round_up(width + new + 1, 32)
        row = Row(np.zeros(width, np.int32), [Sample("eos", new)], 0)
        plan = make_plan([row], batch=lanes, slots=slots, widths=Widths(prompt=width))
        return sampler, abstract(plan, self.mesh, "batch"), self._state(sampler, lanes, slots)

    def _prefill(self) -> Step:
        def build(model: LanguageModel, lanes: int) -> Program:
            sampler, plan, state = self._lane_state(model, lanes)
            entries = round_up(max(1, int(REFILL * lanes / self.rlvr.rollout.samples)), self.shards)
            learner = self._learner(model, 1)
            weights = _policy(learner.trainable)
            lanes_C, source_B = self._array((entries,), jnp.int32), self._array((lanes,), jnp.int32)
            fresh_B = self._array((lanes,), jnp.bool)
            work = Work(sampling._admit, (sampler, weights, plan, state, lanes_C, source_B, fresh_B))
            tokens = entries * plan.prompt_BP.shape[1]
            return Program(work, state, self._beside_policy(learner), work, self._weight_bytes(model), tokens)

        return Step("prefill (sampler.admit)", "rlvr", "call", "rollout.lanes", self._lanes(),
                    lambda lanes: lanes // self.shards, build)  # fmt: skip

    def _decode(self) -> Step:
        def build(model: LanguageModel, lanes: int) -> Program:
            sampler, plan, state = self._lane_state(model, lanes)
            learner = self._learner(model, 1)
            work = self._iterations(sampler, _policy(learner.trainable), plan, self._events(model), state)
            return Program(work, state, self._beside_policy(learner), work, self._reads(model, state), lanes)

        return Step("decode (sampler.advance)", "rlvr", "iteration", "rollout.lanes", self._lanes(),
                    lambda lanes: lanes // self.shards, build)  # fmt: skip

    # --- shared

    def _learning(
        self, name: str, job: str, knob: str, batch: int, accumulate: int,
        build: Callable[[LanguageModel, int], Program],
    ) -> Step:  # fmt: skip
        each = batch // self.shards
        choices = [n for n in range(accumulate, each + 1) if each % n == 0]
        return Step(name, job, "update", knob, tuple(choices), lambda n: each // n, build)

    def _update(self, model: LanguageModel, step_fn: Any, trainable: Trainable, batch: Any, copies: int) -> Program:
        """Reads its state and writes it anew, and reads what is frozen; the gradient may stay where it is made.
        Beside it lie `copies` of the model's weights."""
        rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(self.mesh))
        state, frozen = trainable.abstract(), trainable.abstract_frozen()
        work = Work(step_fn, (state, batch, rate, *frozen_args(frozen)))
        weights = bytes_per_device(abstract_params(model, self.mesh))
        moved = 2 * bytes_per_device(state) + bytes_per_device(frozen)
        rows = jax.tree.leaves(batch)[0].shape
        return Program(work, state, copies * weights, work, moved, rows[0] * rows[1])

    def _iterations(self, sampler: Sampler, weights: Any, plan: Plan, events: Events, state: State) -> Work:
        stopped_B = self._array((plan.batch,), jnp.bool)
        most = jax.ShapeDtypeStruct((), jnp.int32, weak_type=True)
        return Work(sampling._advance, (sampler, weights, plan, events, ABSTRACT_KEY, state, stopped_B, most))

    def _state(self, sampler: Sampler, batch: int, slots: int) -> State:
        shapes = jax.eval_shape(lambda: sampling._idle(sampler, batch, slots))
        names = {4: ("batch", "kv_heads", None, "head_dim"), 2: ("batch", "act_embed")}

        def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            axes = names.get(len(x.shape), ("batch",))[: len(x.shape)]
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(self.mesh, *axes))

        return jax.tree.map(place, shapes)

    def _weight_bytes(self, model: LanguageModel) -> int:
        """The weights in the activations' dtype, on one device."""
        width = jnp.dtype(model.config.dtype).itemsize / jnp.dtype(jnp.float32).itemsize
        return int(bytes_per_device(abstract_params(model, self.mesh)) * width)

    def _reads(self, model: LanguageModel, state: State) -> int:
        """What an iteration of decoding reads: weights and cache."""
        cache: KVCache = state.cache
        return self._weight_bytes(model) + bytes_per_device(cache)

    def _rows(self, batch: int, length: int) -> TokenBatch:
        ints = self._array((batch, length), jnp.int32)
        return TokenBatch(ints, ints, ints, ints, ints)

    def _floats(self, batch: int, length: int) -> jax.ShapeDtypeStruct:
        return self._array((batch, length), jnp.float32)

    def _array(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(self.mesh, "batch"))

    def _events(self, model: LanguageModel, make: Callable[..., Any] | None = None) -> Events:
        """The masks of the vocabulary: abstract, or made by `make` where a step holds them as constants."""
        shape = (model.config.vocab_size,)
        mask: Any = make(shape, bool) if make else jax.ShapeDtypeStruct(shape, jnp.bool, sharding=replicated(self.mesh))
        return Events(mask, mask, mask, mark_id=2, newline_id=198, eos_id=1, pad_id=0)

    def _longest(self) -> CodeProgram:
        return self.shapes.longest_program(self.midtrain.data.sequence_length)


def _policy(trainable: Trainable) -> Any:
    """Abstract weights of what is trained, as the model takes them."""
    state, frozen = trainable.abstract(), trainable.abstract_frozen()
    if frozen is None:
        return state.params
    return {**frozen, "layers": {**frozen["layers"], **state.params["layers"]}}


def _moments(trainable: Trainable) -> int:
    """Bytes of the optimizer's state on each device."""
    return bytes_per_device(trainable.abstract().opt_state)


def _halves(n: int) -> Sequence[int]:
    """n, n / 2, ... as long as that is whole."""
    found = [n]
    while found[-1] % 2 == 0 and found[-1] > 1:
        found.append(found[-1] // 2)
    return found
