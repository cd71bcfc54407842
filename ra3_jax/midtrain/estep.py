r"""The policy-gradient E-step: train q to find thoughts that explain the expert's next lines, pi being fixed.

An update: G rollouts of each of some programs under q (over a window of L lines, or the whole program), one scorer pass
of the same rows under pi, line rewards r_t, return-to-go R_t over T lines, a baseline b_t that does not depend on the
rollout's own choices, and a (clipped) policy-gradient step on decision and rationale tokens with A_t = R_t - b_t.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.mesh import data_parallel_size, pin_rows, to_host
from ra3_jax.core.rng import named_key
from ra3_jax.data.pipeline import epoch_order
from ra3_jax.data.trace import Kind, Program, plain
from ra3_jax.midtrain.config import EStepConfig
from ra3_jax.midtrain.elbo import (
    LineTerms,
    complete_returns,
    horizon_weights,
    leave_one_out,
    line_rewards,
    returns_to_go,
)
from ra3_jax.midtrain.rollouts import (
    Rollouts,
    join_rollouts,
    length_buckets,
    max_lines,
    roll_out,
    score_terms,
    trace_rows,
)
from ra3_jax.model.language_model import LanguageModel, Params
from ra3_jax.policy.batch import Array, TokenBatch, place
from ra3_jax.policy.events import EventLogProbs, Events
from ra3_jax.policy.losses import PolicyGradientBatch, action_log_probs, is_kind, policy_gradient_loss
from ra3_jax.policy.plan import Widths, round_up
from ra3_jax.policy.sampler import Sampler, Samples
from ra3_jax.train.loop import NonFiniteError
from ra3_jax.train.state import TrainState
from ra3_jax.train.step import StepFn, frozen_args, put_scalar
from ra3_jax.train.trainable import Trainable


@dataclasses.dataclass(frozen=True)
class EStepState:
    """What an E-step carries besides q's TrainState; plain numbers, stored with every checkpoint."""

    update: int = 0  # updates done in this round
    ema: float = 0.0  # running mean of the line reward without thoughts (baseline ema)
    sampled_tokens: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0


def line_advantages(
    reward_BL: jax.Array,
    present_BL: jax.Array,
    reaches_end_B: jax.Array,
    baseline_BL: jax.Array | None,
    *,
    group: int,
    horizon: int,
    gamma: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(advantages, line weights, returns), each [B, L]; advantage and weight are 0 where the return is not complete.

    Without `baseline_BL` the baseline is leave-one-out over each `group` consecutive rows.
    """
    returns_BL = returns_to_go(reward_BL, horizon, gamma)
    weight_BL = complete_returns(present_BL, horizon, reaches_end_B)
    if baseline_BL is None:
        grouped = returns_BL.reshape(-1, group, returns_BL.shape[1])
        baseline_BL = leave_one_out(grouped).reshape(returns_BL.shape)
    return (returns_BL - baseline_BL) * weight_BL, weight_BL, returns_BL


def scale_to_std(advantage_BL: jax.Array, weight_BL: jax.Array, std: float) -> jax.Array:
    """Scales advantages so that their root mean square over the lines that count is `std` (0 stays 0)."""
    mean_square = jnp.sum(advantage_BL**2) / jnp.maximum(jnp.sum(weight_BL), 1.0)
    return advantage_BL * std * jax.lax.rsqrt(jnp.maximum(mean_square, 1e-12))


@functools.partial(jax.jit, static_argnames=("config", "group"))
def make_batch(
    samples: Samples,
    reference: EventLogProbs,
    pi_terms: LineTerms,
    q_terms: LineTerms,
    plain_reward_BL: jax.Array | None,
    ema: jax.Array,
    reaches_end_B: jax.Array,
    config: EStepConfig,
    group: int,
) -> tuple[PolicyGradientBatch, dict[str, jax.Array]]:
    """Rollouts and their scores under pi -> the batch of the update, and the E-step's metrics."""
    log_ratio_BL = pi_terms.latent - q_terms.latent if config.reward == "elbo" else None
    reward_BL = line_rewards(pi_terms, config.c, config.reward_norm, log_ratio_BL)
    present_BL = pi_terms.present
    advantage_BL, weight_BL, returns_BL = line_advantages(
        reward_BL,
        present_BL,
        reaches_end_B,
        _baseline(config, plain_reward_BL, ema, present_BL),
        group=group,
        horizon=config.horizon,
        gamma=config.gamma,
    )
    if config.advantage_std is not None:
        advantage_BL = scale_to_std(advantage_BL, weight_BL, config.advantage_std)
    kinds_BS = samples.kinds_BS
    acts_BS = is_kind(kinds_BS, Kind.CODE_ACT, Kind.MARK, Kind.RATIONALE, Kind.END)
    decides_BS = is_kind(kinds_BS, Kind.CODE_ACT, Kind.MARK)

    def by_token(values_BL: jax.Array) -> jax.Array:
        padded = jnp.pad(values_BL, ((0, 0), (1, 0)))  # line 0 is the prompt
        return jnp.take_along_axis(padded, samples.lines_BS, axis=1)

    batch = PolicyGradientBatch(
        rows=samples.token_batch(),
        advantages_BT=by_token(advantage_BL) * acts_BS,
        line_weight_BT=by_token(weight_BL) * decides_BS,
        behaviour_logp_BT=_actions(samples.log_probs, kinds_BS),
        reference_logp_BT=_actions(reference, kinds_BS),
    )
    lines, thoughts = jnp.sum(present_BL), jnp.sum(pi_terms.think)
    metrics = {
        "reward": jnp.sum(reward_BL) / lines,
        "return": jnp.sum(returns_BL * weight_BL) / jnp.maximum(jnp.sum(weight_BL), 1.0),
        "elbo/recon": jnp.sum(pi_terms.action) / jnp.sum(pi_terms.code_tokens),
        "elbo/penalty": config.c * thoughts / lines,
        "latent/think_rate": thoughts / lines,
        "latent/mean_len": jnp.sum(pi_terms.rationale_tokens) / jnp.maximum(thoughts, 1.0),
        "elbo/rationale_entropy": -jnp.sum(q_terms.rationale) / jnp.maximum(thoughts, 1.0),
    }
    return pin_rows(batch), metrics


def _actions(log_probs: EventLogProbs, kinds_BS: jax.Array) -> jax.Array:
    return action_log_probs(log_probs.decision, log_probs.token, kinds_BS)


def _baseline(
    config: EStepConfig, plain_reward_BL: jax.Array | None, ema: jax.Array, present_BL: jax.Array
) -> jax.Array | None:
    """b_t of the configured kind, [B, L]; None stands for leave-one-out."""
    match config.baseline:
        case "leave_one_out":
            return None
        case "none":
            return jnp.zeros_like(present_BL)
        case "ema":
            return ema * horizon_weights(present_BL, config.horizon, config.gamma)
        case "act":
            assert plain_reward_BL is not None
            return returns_to_go(plain_reward_BL * present_BL, config.horizon, config.gamma)


def draw_windows(programs: Sequence[Program], lines: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(first line, number of lines) of each rollout: a random window of `lines` lines, or all of them for 0."""
    windows = []
    for program in programs:
        latest = program.n_lines - lines
        first = int(rng.integers(latest + 1)) if lines and latest > 0 else 0
        windows.append((first, min(lines or program.n_lines, program.n_lines - first)))
    return windows


@dataclasses.dataclass(frozen=True)
class PolicyGradientEStep:
    """The E-step's fixed parts, its compiled update among them; `run` does the updates of one round."""

    model: LanguageModel
    sampler: Sampler
    events: Events
    mesh: Mesh
    config: EStepConfig
    trainable: Trainable  # of q: weights of its own, or adapters beside pi's
    step_fn: StepFn

    @classmethod
    def create(
        cls,
        model: LanguageModel,
        sampler: Sampler,
        events: Events,
        mesh: Mesh,
        config: EStepConfig,
        *,
        chunk: int | None = None,
    ) -> "PolicyGradientEStep":
        """`chunk`: tokens whose logits are held at once (None: a whole row)."""
        loss_fn = policy_gradient_loss(
            model,
            events,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            entropy_coef=config.entropy_coef,
            kl_coef=config.kl_coef,
            chunk=chunk,
        )
        trainable = Trainable.create(model, mesh, config.optimizer, config.lora)
        step_fn = trainable.compile(loss_fn, accumulate=config.accumulate, name="estep_update")
        return cls(model, sampler, events, mesh, config, trainable, step_fn)

    def weights(self, q: TrainState, pi_params) -> Params:
        """q as the model takes it."""
        return self.trainable.weights(q.params, self.trainable.frozen(pi_params))

    def rollout_shape(self, programs: Sequence[Program]) -> tuple[int, Widths]:
        """(slots, widths of the plan) that hold a rollout of any of the programs, or of any window of them."""
        config = self.config
        bucket = length_buckets(programs, config.max_latent_tokens, n_buckets=1)[0]
        if not config.window_lines:
            return bucket.slots, bucket.widths
        # Earlier lines belong to the prompt, and only the window's have a thought: its mark, its tokens, its newline.
        thought = config.max_latent_tokens + 2
        longest = max(
            len(p.prompt_ids) + p.code_tokens + min(p.n_lines, config.window_lines) * thought for p in programs
        )
        slots = min(bucket.slots, round_up(longest, 64))
        return slots, dataclasses.replace(bucket.widths, prompt=slots, segments=3 * config.window_lines)

    def run(
        self,
        pi_params,
        q: TrainState,
        programs: Sequence[Program],
        key: jax.Array,
        seed: int,
        schedule: Callable[[int], float],
        state: EStepState = EStepState(),
        *,
        on_update: Callable[[TrainState, EStepState, dict[str, float]], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[TrainState, EStepState]:
        """Updates `state.update` .. `config.updates` - 1 of a round. `q` is consumed (donated).

        Randomness is a function of (key, seed, update) alone, so a resumed round is the undisturbed one. When
        `should_stop()`, asked before each update, it returns early.
        """
        config = self.config
        order = epoch_order(len(programs), seed)
        slots, widths = self.rollout_shape(programs)
        n_lines = max_lines(programs)
        frozen = self.trainable.frozen(pi_params)
        while state.update < config.updates and not should_stop():
            first = state.update * config.programs_per_update
            part = [programs[order[first + i]] for i in range(config.programs_per_update)]
            rng = np.random.default_rng([seed, state.update])
            weights = self.weights(q, pi_params)
            windows = draw_windows(part, config.window_lines, rng)
            n = config.rows_at_once // config.group
            rollouts = join_rollouts([
                roll_out(
                    self.sampler, weights, part[i : i + n], self.events, named_key(key, "update", state.update),
                    self.mesh, group=config.group, max_latent_tokens=config.max_latent_tokens, batch=n * config.group,
                    slots=slots, widths=widths, n_lines=n_lines, windows=windows[i : i + n],
                )
                for i in range(0, len(part), n)
            ])  # fmt: skip
            batch, metrics, state = self._batch(pi_params, rollouts, slots, n_lines, state)
            lr = put_scalar(schedule(state.update), self.mesh)
            updates = {}
            for _ in range(config.updates_per_batch):
                q, updates = self.step_fn(q, batch, lr, *frozen_args(frozen))
            state = dataclasses.replace(state, update=state.update + 1)
            values = {k: float(v) for k, v in to_host({**metrics, **updates}).items()}
            if values.get("nonfinite"):
                raise NonFiniteError(f"E-step update {state.update}: loss {values['loss']}; it was not applied")
            if on_update:
                on_update(q, state, values)
        return q, state

    def _batch(
        self, pi_params, rollouts: Rollouts, slots: int, n_lines: int, state: EStepState
    ) -> tuple[PolicyGradientBatch, dict[str, jax.Array], EStepState]:
        config, samples = self.config, rollouts.samples
        rows = samples.token_batch()
        reference, pi_terms = score_terms(self.model, pi_params, rows, self.events, n_lines, self.sampler.vocab_chunk)
        tokens = int(to_host(samples.length_B).sum())
        scored, plain_reward_BL, ema = tokens, None, state.ema
        if config.baseline in ("act", "ema"):
            plain_PL, n_scored = self._plain_rewards(pi_params, rollouts.programs, slots, n_lines)
            plain_reward_BL = jnp.repeat(plain_PL.reward, config.group, axis=0)
            scored += n_scored
            decay = config.ema_decay if state.update else 0.0
            ema = decay * ema + (1 - decay) * float(to_host(plain_PL.mean))
        reaches_end_B = np.repeat(rollouts.reaches_end, config.group)
        batch, metrics = make_batch(
            samples, reference, pi_terms, rollouts.terms, plain_reward_BL, jnp.float32(ema),
            jnp.asarray(reaches_end_B), config, config.group,
        )  # fmt: skip
        state = dataclasses.replace(
            state,
            ema=ema,
            sampled_tokens=state.sampled_tokens + tokens,
            scored_tokens=state.scored_tokens + scored,
            trained_tokens=state.trained_tokens + tokens * config.updates_per_batch,
        )
        return batch, metrics, state

    def _plain_rewards(
        self, pi_params, programs: Sequence[Program], slots: int, n_lines: int
    ) -> tuple["PlainRewards", int]:
        """Line rewards under pi of the programs without thoughts, and the tokens that scoring them took."""
        traces = [plain(p) for p in programs]
        n_rows = round_up(len(traces), data_parallel_size(self.mesh))
        rows = TokenBatch.from_rows(trace_rows(traces, batch=n_rows, length=slots))
        _, terms = score_terms(
            self.model, pi_params, place(rows, self.mesh), self.events, n_lines, self.sampler.vocab_chunk
        )
        terms = jax.tree.map(lambda x: x[: len(traces)], terms)
        reward_PL = line_rewards(terms, 0.0, self.config.reward_norm)
        mean = jnp.sum(reward_PL) / jnp.sum(terms.present)
        return PlainRewards(reward_PL, mean), sum(map(len, traces))


@dataclasses.dataclass(frozen=True)
class PlainRewards:
    """What the expert's lines earn when nothing is thought."""

    reward: Array  # [programs, L]
    mean: Array  # over the lines
