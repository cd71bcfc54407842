"""One sampler for generation, evaluation, rollouts and annotation: a state machine over the rows of a plan.

Each iteration feeds the tokens that every row has ready (up to W where the plan forces tokens, 1 where the model
writes), and the same forward yields the log-probs of those tokens and the next event of the row. Prompts are prefilled
densely, once for all rows of a group. What a row samples depends on (seed, example id, sample index, position) only.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ra3_jax.core.mesh import constrain, pin_rows
from ra3_jax.core.rng import row_keys
from ra3_jax.data.trace import Kind
from ra3_jax.model.cache import KVCache, constrain_rows
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.events import (
    EventLogProbs,
    Events,
    decision_log_probs,
    event_log_probs,
    token_log_probs,
)
from ra3_jax.policy.plan import Plan, SegmentKind


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """Finished rows, prompt included. [B, S] arrays are 0 beyond `length_B`."""

    tokens_BS: jax.Array  # int32
    kinds_BS: jax.Array  # int32, Kind
    lines_BS: jax.Array  # int32
    log_probs: EventLogProbs  # [B, S], of the policy that sampled
    length_B: jax.Array  # int32
    iterations: jax.Array  # int32 scalar: forwards of the decode loop

    def token_batch(self) -> TokenBatch:
        """One segment a row, for the scorer and the losses."""
        slots = jnp.arange(self.tokens_BS.shape[1])
        inside_BS = (slots < self.length_B[:, None]).astype(jnp.int32)
        positions_BS = slots * inside_BS
        return TokenBatch(self.tokens_BS, inside_BS, positions_BS, self.kinds_BS, self.lines_BS)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Loop state. `pending` are tokens that are written but not yet fed; a row without any is finished."""

    cache: KVCache
    samples: Samples
    pending_BW: jax.Array
    n_pending_B: jax.Array
    segment_B: jax.Array  # index of the current segment of the plan
    offset_B: jax.Array  # FORCE: tokens already written; samples: tokens already sampled
    entry_B: jax.Array  # Kind that the first token of the next forced segment will have


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Emission:
    """What the rows write in one iteration: `tokens_BW[:, :count_B]`, the first of which is an event of its own."""

    tokens_BW: jax.Array
    count_B: jax.Array
    kind_B: jax.Array  # of the first token
    line_B: jax.Array
    log_probs: EventLogProbs  # of the first token, [B]
    segment_B: jax.Array
    offset_B: jax.Array
    entry_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Static settings; `run` compiles once per plan shape.

    `window` is W. `temperature` 0 is greedy; log-probs are then those of temperature 1. `vocab_chunk` is for the scorer
    passes that go with the samples: tokens whose logits are held at once (None: whole rows). `top_p` below 1 is for
    evaluation: plain text is then drawn from the likeliest ids alone, while log-probs stay those of the whole
    distribution, which is no longer the one that samples.
    """

    model: LanguageModel
    window: int = 4
    temperature: float = 1.0
    vocab_chunk: int | None = None
    top_p: float = 1.0

    def run(self, params, plan: Plan, events: Events, key: jax.Array, *, group: int = 1) -> Samples:
        """Runs every row of the plan to its end.

        `group` consecutive rows share one prompt (not checked), which is prefilled once. `key` is the seed's key.
        """
        if plan.batch % group:
            raise ValueError(f"{plan.batch} rows are not whole groups of {group}")
        return _run(self, params, plan, events, key, group)

    # In pieces, for a caller that puts new rows in the place of finished ones. `run` is all of it in one program.

    def idle(self, batch: int, slots: int) -> State:
        """`batch` rows that are all finished."""
        return _idle(self, batch, slots)

    def admit(self, params, plan: Plan, state: State, lanes_C, source_B, fresh_B) -> State:
        """Begins the rows of the plan that are `fresh_B` (bool); the others go on as they are in `state`, which is
        used up. Prefilled are the prompts of rows `lanes_C`; a fresh row b starts from the one at source_B[b]."""
        return _admit(self, params, plan, state, lanes_C, source_B, fresh_B)

    def advance(self, params, plan: Plan, events: Events, key: jax.Array, state: State, stopped_B, most: int) -> State:
        """Up to `most` iterations, until all rows are finished; rows that are `stopped_B` (bool) are so at once.
        `state` is used up."""
        return _advance(self, params, plan, events, key, state, stopped_B, most)


@functools.partial(jax.jit, static_argnames=("sampler", "group"))
def _run(sampler: Sampler, params, plan: Plan, events: Events, key: jax.Array, group: int) -> Samples:
    params = sampler.model.folded(params)

    def spread(cache: KVCache) -> KVCache:
        return cache.repeat(group) if group > 1 else cache

    start = _start(sampler, params, plan, plan.prompt_BP[::group], plan.prompt_len_B[::group], spread)
    samples = jax.lax.while_loop(_unfinished, _iteration(sampler, params, plan, events, key), start).samples
    return pin_rows(samples)


@functools.partial(jax.jit, static_argnames=("sampler", "batch", "slots"))
def _idle(sampler: Sampler, batch: int, slots: int) -> State:
    cache = sampler.model.init_cache(batch, slots, sampler.window)
    zeros_B = jnp.zeros(batch, jnp.int32)
    zeros_BS = jnp.zeros((batch, slots), jnp.int32)
    log_probs = EventLogProbs(*(jnp.zeros((batch, slots), jnp.float32) for _ in range(3)))
    samples = Samples(zeros_BS, zeros_BS, zeros_BS, log_probs, zeros_B, jnp.int32(0))
    return _pin(
        State(cache, samples, jnp.zeros((batch, sampler.window), jnp.int32), zeros_B, zeros_B, zeros_B, zeros_B)
    )


@functools.partial(jax.jit, static_argnames="sampler", donate_argnames="state")
def _admit(sampler: Sampler, params, plan: Plan, state: State, lanes_C, source_B, fresh_B) -> State:
    new = _start(
        sampler, params, plan, plan.prompt_BP[lanes_C], plan.prompt_len_B[lanes_C], lambda cache: cache.take(source_B)
    )

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(fresh_B.reshape(-1, *[1] * (old.ndim - 1)), new, old) if old.ndim else old

    return _pin(jax.tree.map(choose, new, state))


@functools.partial(jax.jit, static_argnames="sampler", donate_argnames="state")
def _advance(sampler: Sampler, params, plan: Plan, events: Events, key, state: State, stopped_B, most) -> State:
    params = sampler.model.folded(params)
    state = dataclasses.replace(state, n_pending_B=jnp.where(stopped_B, 0, state.n_pending_B))
    last = state.samples.iterations + most

    def going(state: State) -> jax.Array:
        return _unfinished(state) & (state.samples.iterations < last)

    return _pin(jax.lax.while_loop(going, _iteration(sampler, params, plan, events, key), state))


def _pin(state: State) -> State:
    """One layout for every call, or each would be compiled once more."""
    pinned = pin_rows(dataclasses.replace(state, cache=None))  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(pinned, cache=jax.tree.map(constrain_rows, state.cache))


def _unfinished(state: State) -> jax.Array:
    return jnp.any(state.n_pending_B > 0)


def _iteration(sampler: Sampler, params, plan: Plan, events: Events, key: jax.Array) -> Callable[[State], State]:
    """The body of the loop: feeds what is pending and writes the next event of every row."""
    keys_B = row_keys(key, plan.example_id_B, plan.sample_index_B)

    def iterate(state: State) -> State:
        with jax.named_scope("decode"):
            hidden_BWD, cache = sampler.model.decode(params, state.pending_BW, state.n_pending_B, state.cache)
            logits_BWV = sampler.model.unembed(params, hidden_BWD) / (sampler.temperature or 1.0)
        last_B = jnp.maximum(state.n_pending_B - 1, 0)
        last_BV = _cut_as_logits(jnp.take_along_axis(logits_BWV, last_B[:, None, None], axis=1)[:, 0])
        samples = _score_window(state, logits_BWV)
        noise_BV, noise_B2 = (_noise(sampler, keys_B, samples.length_B, n) for n in (last_BV.shape[-1], 2))
        nucleus_BV = nucleus(last_BV, sampler.top_p) if sampler.top_p < 1.0 else None
        emission = _emit(plan, events, state, last_BV, noise_BV, noise_B2, nucleus_BV)
        return _write(state, samples, cache, emission, events)

    return iterate


def _noise(sampler: Sampler, keys_B: jax.Array, position_B: jax.Array, n: int) -> jax.Array:
    """Gumbel noise [B, n] that depends on the row's key and the position of the token to come; zeros if greedy."""
    if not sampler.temperature:
        return jnp.zeros((keys_B.shape[0], n))
    return jax.vmap(lambda k, p: jax.random.gumbel(jax.random.fold_in(k, p), (n,)))(keys_B, position_B)


def _cut_as_logits(x_BV: jax.Array) -> jax.Array:
    """Keeps to the layout of `unembed` up to the draw: cut by rows, all that has the vocabulary's size would travel."""
    return constrain(x_BV, "outer_batch", "all_vocab")


def nucleus(logits_BV: jax.Array, top_p: float) -> jax.Array:
    """bool [B, V]: the fewest likeliest ids that hold `top_p` of the probability, and those that tie with the last.

    The least probability that belongs is bisected over the bits of positive floats, which are ordered as the floats
    are: 31 sums over the vocabulary, exact, and cheaper on an accelerator than to sort it.
    """
    p_BV = jax.nn.softmax(logits_BV, axis=-1)
    bits_BV = jax.lax.bitcast_convert_type(p_BV, jnp.int32)

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds  # the ids from `low` on hold enough, those from `high` on do not
        middle_B = low_B + (high_B - low_B) // 2
        held_B = jnp.sum(jnp.where(bits_BV >= middle_B[:, None], p_BV, 0.0), axis=-1)
        return jnp.where(held_B >= top_p, middle_B, low_B), jnp.where(held_B >= top_p, high_B, middle_B)

    low_B = jnp.zeros(logits_BV.shape[0], jnp.int32)
    high_B = jnp.full_like(low_B, jnp.float32(1.0).view(jnp.int32) + 1)
    least_B, _ = jax.lax.fori_loop(0, 31, halve, (low_B, high_B))
    return bits_BV >= least_B[:, None]


def _start(
    sampler: Sampler,
    params,
    plan: Plan,
    prompt_CP: jax.Array,
    lengths_C: jax.Array,
    spread: Callable[[KVCache], KVCache],
) -> State:
    """Prefills all but the last token of C prompts; that one is the first pending token of the rows.

    `spread` makes the cache of the rows from that of the prompts.
    """
    B, W, S, lengths_B = plan.batch, sampler.window, plan.slots, plan.prompt_len_B
    with jax.named_scope("prefill"):
        cache = sampler.model.init_cache(prompt_CP.shape[0], S, W)
        _, cache = sampler.model.prefill(params, prompt_CP, jnp.maximum(lengths_C - 1, 0), cache)
        cache = spread(cache)
    slots = jnp.arange(S)
    prompt_BS = jnp.pad(plan.prompt_BP, ((0, 0), (0, max(0, S - plan.prompt_BP.shape[1]))))[:, :S]
    inside_BS = slots < lengths_B[:, None]
    zeros_BS = jnp.zeros((B, S), jnp.float32)
    last_B = jnp.take_along_axis(plan.prompt_BP, jnp.maximum(lengths_B - 1, 0)[:, None], 1)[:, 0]
    samples = Samples(
        tokens_BS=jnp.where(inside_BS, prompt_BS, 0),
        kinds_BS=jnp.where(inside_BS, Kind.PROMPT, Kind.PAD),
        lines_BS=jnp.zeros((B, S), jnp.int32),
        log_probs=EventLogProbs(zeros_BS, zeros_BS, zeros_BS),
        length_B=lengths_B,
        iterations=jnp.int32(0),
    )
    return State(
        cache=cache,
        samples=samples,
        pending_BW=jnp.zeros((B, W), jnp.int32).at[:, 0].set(last_B),
        n_pending_B=(lengths_B > 0).astype(jnp.int32),
        segment_B=jnp.zeros(B, jnp.int32),
        offset_B=jnp.zeros(B, jnp.int32),
        entry_B=jnp.full(B, Kind.CODE, jnp.int32),
    )


def _score_window(state: State, logits_BWV: jax.Array) -> Samples:
    """Writes the log-probs of the pending tokens after the first (which was scored when it was emitted).

    Within a window the plan forces every token after the first, so each of them is a plain CODE event.
    """
    samples, W = state.samples, state.pending_BW.shape[1]
    if W == 1:
        return samples
    logp_BX = token_log_probs(logits_BWV[:, :-1], state.pending_BW[:, 1:])
    offset_X = jnp.arange(1, W)
    slot_BX = samples.length_B[:, None] - state.n_pending_B[:, None] + offset_X
    table_BS = samples.log_probs.token
    slot_BX = jnp.where(offset_X < state.n_pending_B[:, None], slot_BX, table_BS.shape[1])
    log_probs = dataclasses.replace(samples.log_probs, token=_scatter(table_BS, slot_BX, logp_BX))
    return dataclasses.replace(samples, log_probs=log_probs)


def _emit(
    plan: Plan, events: Events, state: State, logits_BV: jax.Array, noise_BV: jax.Array, noise_B2: jax.Array,
    nucleus_BV: jax.Array | None,
) -> _Emission:  # fmt: skip
    """The next event of every row, from the logits after its last token, noise for a token and for a decision."""
    B, W = state.pending_BW.shape

    def of_plan(table_BN: jax.Array, segment_B: jax.Array) -> jax.Array:
        return jnp.take_along_axis(table_BN, segment_B[:, None], axis=1)[:, 0]

    # What the current segment asks for. A decision for <act> goes straight on to the forced line behind the thought.
    kind_B = of_plan(plan.kind_BN, state.segment_B)
    deciding_B = kind_B == SegmentKind.DECIDE
    log_act_B, log_think_B = decision_log_probs(logits_BV, events)
    chooses_think_B = log_think_B + noise_B2[:, 0] > log_act_B + noise_B2[:, 1]
    think_B, act_B = deciding_B & chooses_think_B, deciding_B & ~chooses_think_B
    segment_B = state.segment_B + 2 * act_B
    forced_B = (kind_B == SegmentKind.FORCE) | act_B
    max_new_B = of_plan(plan.size_BN, state.segment_B)
    rationale_B = kind_B == SegmentKind.RATIONALE
    cut_B = rationale_B & (state.offset_B >= max_new_B)
    generating_B = kind_B == SegmentKind.GENERATE

    # Forced tokens: as many of the segment as fit into the window.
    start_B, size_B = of_plan(plan.start_BN, segment_B), of_plan(plan.size_BN, segment_B)
    n_forced_B = jnp.minimum(size_B - state.offset_B, W)
    index_BW = (start_B + state.offset_B)[:, None] + jnp.arange(W)
    forced_BW = jnp.take_along_axis(plan.ids_BF, jnp.minimum(index_BW, plan.ids_BF.shape[1] - 1), axis=1)
    entry_B = jnp.where(act_B, Kind.CODE_ACT, state.entry_B)
    forced_kind_B = jnp.where(state.offset_B > 0, Kind.CODE, entry_B)

    # Sampled tokens: Gumbel-max over what the event allows.
    allowed_BV = ~(rationale_B[:, None] & events.banned_V)
    if nucleus_BV is not None:
        allowed_BV &= nucleus_BV | ~generating_B[:, None]
    perturbed_BV = _cut_as_logits(jnp.where(allowed_BV, logits_BV + noise_BV, -jnp.inf))
    sampled_B = constrain(jnp.argmax(perturbed_BV, axis=-1).astype(jnp.int32), "outer_batch")
    end_B = rationale_B & ~cut_B & events.newline_V[sampled_B]
    closes_B = end_B | cut_B

    token_B = jnp.select(
        [forced_B, think_B, closes_B],
        [forced_BW[:, 0], jnp.full(B, events.mark_id), jnp.full(B, events.newline_id)],
        sampled_B,
    )
    kind_out_B = jnp.select(
        [forced_B, think_B, cut_B, end_B, rationale_B, generating_B],
        [forced_kind_B, *[jnp.full(B, k) for k in _SAMPLED_KINDS]],
        Kind.PAD,
    )
    offset_B = state.offset_B + jnp.where(forced_B, n_forced_B, 1)
    generated_all_B = generating_B & ((token_B == events.eos_id) | (offset_B >= max_new_B))
    leaves_B = (forced_B & (offset_B >= size_B)) | think_B | closes_B | generated_all_B
    active_B = (state.n_pending_B > 0) & (kind_B != SegmentKind.DONE)
    return _Emission(
        tokens_BW=jnp.where(forced_B[:, None], forced_BW, token_B[:, None]),
        count_B=jnp.where(active_B, jnp.where(forced_B, n_forced_B, 1), 0),
        kind_B=kind_out_B,
        line_B=of_plan(plan.line_BN, segment_B),
        log_probs=event_log_probs(logits_BV, token_B, kind_out_B, events),
        segment_B=jnp.where(active_B, segment_B + leaves_B, state.segment_B),
        offset_B=jnp.where(leaves_B, 0, offset_B),
        entry_B=jnp.where(closes_B, Kind.CODE_AFTER, Kind.CODE).astype(jnp.int32),
    )


_SAMPLED_KINDS = (Kind.MARK, Kind.END_CUT, Kind.END, Kind.RATIONALE, Kind.GENERATED)


def _write(state: State, samples: Samples, cache: KVCache, emission: _Emission, events: Events) -> State:
    """Appends the emission to the rows and makes it pending."""
    S, W = samples.tokens_BS.shape[1], emission.tokens_BW.shape[1]
    inside_BW = jnp.arange(W) < emission.count_B[:, None]
    slot_BW = jnp.where(inside_BW, samples.length_B[:, None] + jnp.arange(W), S)  # S: dropped
    kinds_BW = jnp.where(jnp.arange(W) == 0, emission.kind_B[:, None], Kind.CODE)
    lines_BW = jnp.broadcast_to(emission.line_B[:, None], kinds_BW.shape)
    first_B1 = slot_BW[:, :1]
    samples = dataclasses.replace(
        samples,
        tokens_BS=_scatter(samples.tokens_BS, slot_BW, emission.tokens_BW),
        kinds_BS=_scatter(samples.kinds_BS, slot_BW, kinds_BW),
        lines_BS=_scatter(samples.lines_BS, slot_BW, lines_BW),
        log_probs=jax.tree.map(
            lambda table_BS, event_B: _scatter(table_BS, first_B1, event_B[:, None]),
            samples.log_probs,
            emission.log_probs,
        ),
        length_B=samples.length_B + emission.count_B,
        iterations=samples.iterations + 1,
    )
    return State(
        cache=cache,
        samples=samples,
        pending_BW=constrain(jnp.where(inside_BW, emission.tokens_BW, events.pad_id), "batch", None),
        n_pending_B=emission.count_B,
        segment_B=emission.segment_B,
        offset_B=emission.offset_B,
        entry_B=emission.entry_B,
    )


def _scatter(table_BS: jax.Array, slot_BX: jax.Array, values_BX: jax.Array) -> jax.Array:
    """table[b, slot[b, x]] = values[b, x]; slots beyond the table are dropped."""
    rows = jnp.arange(table_BS.shape[0])[:, None]
    return table_BS.at[rows, slot_BX].set(values_BX.astype(table_BS.dtype), mode="drop")


def to_host(samples: Samples) -> Samples:
    """The same samples as numpy arrays."""
    return jax.tree.map(np.asarray, samples)
