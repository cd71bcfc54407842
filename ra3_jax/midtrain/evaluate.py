"""What a checkpoint is worth: bounds on held-out code, pass@k on fresh tasks, and whether its thoughts are any good.

Bounds sample thoughts from the model itself (never from a proposal that saw the code), at temperature 1, summed over
tokens: they are valid bounds on log p(code). Plain NLL of a model that thinks is not comparable; its bound is.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.mesh import data_parallel_size, to_host
from ra3_jax.core.stats import Estimate, pass_at_k
from ra3_jax.data.codec import Codec
from ra3_jax.data.trace import Latent, Program, annotate, plain
from ra3_jax.midtrain.config import EvaluationConfig
from ra3_jax.midtrain.elbo import LineTerms, decision_kl, iwae_bound, log_importance_weights, returns_to_go
from ra3_jax.midtrain.rollouts import (
    Rollouts,
    batches,
    latents_of_rows,
    length_buckets,
    max_lines,
    roll_out,
    score_terms,
    trace_rows,
)
from ra3_jax.policy.batch import TokenBatch, place
from ra3_jax.policy.events import Events
from ra3_jax.policy.generate import Prompt, generate
from ra3_jax.policy.plan import round_up
from ra3_jax.policy.sampler import Sampler
from ra3_jax.tasks.puzzle_grade import grade
from ra3_jax.tasks.task import Task

Progress = Callable[[int], None] | None


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Held-out likelihood, in nats per code token unless said otherwise; lower is better."""

    nll: Estimate  # of the code without thoughts, under the language model itself
    elbo: Estimate  # -L_1
    iwae: Estimate  # -L_K
    samples: int  # K
    best: Estimate  # min(nll, iwae): both bound -log p(code) from above
    best_per_byte: float
    think_rate: float
    mean_len: float  # tokens of a thought
    decision_kl: float  # nats per line, against Bern(alpha)
    rationale_entropy: float  # nats per thought
    mismatch_max: float  # |log p(sampler) - log p(scorer)|, over tokens
    mismatch_mean: float
    programs: int


def evaluate_bounds(
    sampler: Sampler,
    params,
    programs: Sequence[Program],
    events: Events,
    key: jax.Array,
    mesh: Mesh,
    config: EvaluationConfig,
    max_latent_tokens: int,
    on_progress: Progress = None,
) -> Bounds:
    """NLL, ELBO and IWAE bound of `programs`, and how the model thinks on them."""
    K = config.bound_samples
    n_lines = max_lines(programs)
    nll_P, elbo_P, iwae_P = (np.zeros(len(programs)) for _ in range(3))
    think = lines = thought_tokens = kl = entropy = 0.0
    mismatch = []
    for bucket in length_buckets(programs, max_latent_tokens, n_buckets=1):
        for indices in batches(bucket, max(1, config.batch // K)):
            part = [programs[i] for i in indices]
            rollouts = roll_out(
                sampler, params, part, events, key, mesh, group=K, max_latent_tokens=max_latent_tokens,
                batch=max(1, config.batch // K) * K, slots=bucket.slots, widths=bucket.widths, n_lines=n_lines,
            )  # fmt: skip
            where = list(indices)
            found = to_host(bound_terms(rollouts.terms, K, config.alpha))
            iwae_P[where], elbo_P[where] = found.iwae_P[: len(part)], found.elbo_P[: len(part)]
            nll_P[where] = plain_nll(sampler, params, part, events, mesh, rollouts)
            think, lines = think + found.think, lines + found.lines
            thought_tokens, kl, entropy = thought_tokens + found.tokens, kl + found.kl, entropy + found.entropy
            if not mismatch:
                mismatch = _mismatch(sampler, params, rollouts, events, n_lines)
            if on_progress:
                on_progress(len(part))
    tokens_P = np.array([program.code_tokens for program in programs])
    best_P = nll_P if nll_P.sum() <= iwae_P.sum() else iwae_P
    return Bounds(
        nll=_per_token(nll_P, tokens_P),
        elbo=_per_token(elbo_P, tokens_P),
        iwae=_per_token(iwae_P, tokens_P),
        samples=K,
        best=_per_token(best_P, tokens_P),
        best_per_byte=float(best_P.sum() / sum(program.code_bytes for program in programs)),
        think_rate=float(think / lines),
        mean_len=float(thought_tokens / max(1.0, think)),
        decision_kl=float(kl / lines),
        rationale_entropy=float(entropy / max(1.0, think)),
        mismatch_max=mismatch[0],
        mismatch_mean=mismatch[1],
        programs=len(programs),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BoundTerms:
    """Of one batch of rollouts: bounds by program in nats, and sums over its lines (filler rows add nothing)."""

    elbo_P: jax.Array
    iwae_P: jax.Array
    think: jax.Array  # thoughts
    lines: jax.Array
    tokens: jax.Array  # of thoughts
    kl: jax.Array  # decision KL
    entropy: jax.Array  # -log-prob of the thoughts


@functools.partial(jax.jit, static_argnames=("K", "alpha"))
def bound_terms(terms: LineTerms, K: int, alpha: float) -> BoundTerms:
    """-L_1 and -L_K of each program, from K consecutive rows each."""
    log_w_PK = log_importance_weights(terms).reshape(-1, K)
    return BoundTerms(
        elbo_P=-jnp.mean(log_w_PK, axis=1),
        iwae_P=-iwae_bound(log_w_PK),
        think=jnp.sum(terms.think),
        lines=jnp.sum(terms.present),
        tokens=jnp.sum(terms.rationale_tokens),
        kl=jnp.sum(decision_kl(terms.log_act, alpha) * terms.present),
        entropy=-jnp.sum(terms.rationale),
    )


def plain_nll(
    sampler: Sampler, params, programs: Sequence[Program], events: Events, mesh: Mesh, like: Rollouts
) -> np.ndarray:
    """-log p(code) of each program without thoughts [programs], in the shape of a batch of rollouts."""
    slots = like.samples.tokens_BS.shape[1]
    n_rows = round_up(like.samples.tokens_BS.shape[0] // like.group, data_parallel_size(mesh))
    rows = trace_rows([plain(p) for p in programs], batch=n_rows, length=slots)
    batch = place(TokenBatch.from_rows(rows), mesh)
    _, terms = score_terms(sampler.model, params, batch, events, like.terms.action.shape[1], sampler.vocab_chunk)
    action_PL, decision_PL = to_host((terms.action, terms.decision))
    return -(action_PL + decision_PL).sum(axis=1)[: len(programs)]


def _per_token(nats_P: np.ndarray, tokens_P: np.ndarray) -> Estimate:
    """Sum over sum, with the standard error of that ratio over programs (delta method)."""
    mean = nats_P.sum() / tokens_P.sum()
    residual_P = nats_P - mean * tokens_P
    n = len(nats_P)
    stderr = np.sqrt((residual_P**2).sum() / max(1, n - 1) / n) / tokens_P.mean()
    return Estimate(float(mean), float(stderr), n)


def _mismatch(sampler: Sampler, params, rollouts: Rollouts, events: Events, n_lines: int) -> tuple[float, float]:
    """(max, mean) absolute difference between the sampler's and the scorer's log-probs of the same tokens."""
    samples = rollouts.samples
    scores, _ = score_terms(sampler.model, params, samples.token_batch(), events, n_lines, sampler.vocab_chunk)
    scores, sampled, length_B = to_host((scores, samples.log_probs, samples.length_B))
    difference_BS = np.abs(scores.token - sampled.token) + np.abs(scores.decision - sampled.decision)
    return float(difference_BS.max()), float(difference_BS.sum() / length_B.sum())


@dataclasses.dataclass(frozen=True)
class PassRates:
    """pass@k by running the sampled programs, standard errors over tasks."""

    pass_at: dict[int, Estimate]
    tasks: int
    samples: int
    unfinished: float  # share of samples cut by length
    tokens_per_sample: float
    invalid: int  # samples that the machinery failed to judge; left out of the rates
    examples: tuple[str, ...]  # a few sampled programs, prompt included


def evaluate_pass(
    sampler: Sampler,
    params,
    tasks: Sequence[Task],
    codec: Codec,
    events: Events,
    key: jax.Array,
    mesh: Mesh,
    config: EvaluationConfig,
    on_progress: Progress = None,
) -> PassRates:
    """Samples `config.samples` programs a task with the plain language model and runs them.

    Raises RuntimeError when nothing at all could be judged.
    """
    ids = [codec.prompt_ids(task.prompt) for task in tasks]
    prompts = [Prompt(prompt_ids, example_id) for example_id, prompt_ids in enumerate(ids)]
    completions = generate(
        sampler, params, prompts, events, key, mesh,
        samples=config.samples, max_new=config.max_new_tokens, batch=config.batch, on_progress=on_progress,
    )  # fmt: skip
    flat = [(task, c) for task, group in zip(tasks, completions, strict=True) for c in group]
    texts = [codec.decode(c.ids) for _, c in flat]
    verdicts = grade([task for task, _ in flat], texts)
    passed_NK = np.array([v.passed for v in verdicts]).reshape(len(tasks), config.samples)
    judged_NK = np.array([v.valid for v in verdicts]).reshape(passed_NK.shape)
    if not judged_NK.any():
        raise RuntimeError(f"none of {judged_NK.size} samples could be judged: {verdicts[0]}")
    ks = sorted({1, min(4, config.samples), config.samples})
    n_N, c_N = judged_NK.sum(axis=1), (passed_NK & judged_NK).sum(axis=1)
    return PassRates(
        pass_at={k: _pass_at(n_N, c_N, k) for k in ks},
        tasks=len(tasks),
        samples=config.samples,
        unfinished=float(np.mean([not c.finished for _, c in flat])),
        tokens_per_sample=float(np.mean([len(c.ids) for _, c in flat])),
        invalid=int((~judged_NK).sum()),
        examples=tuple(task.prompt + texts[i * config.samples] for i, task in enumerate(tasks[:4])),
    )


def _pass_at(n_N: np.ndarray, c_N: np.ndarray, k: int) -> Estimate:
    """pass@k over the tasks with at least k judged samples; NaN where there is no such task."""
    enough_N = n_N >= k
    return pass_at_k(n_N[enough_N], c_N[enough_N], k) if enough_N.any() else Estimate(float("nan"), float("nan"), 0)


def thinking_gains(
    sampler: Sampler,
    params,
    programs: Sequence[Program],
    events: Events,
    key: jax.Array,
    mesh: Mesh,
    *,
    max_latent_tokens: int,
    horizon: int,
    batch: int,
) -> np.ndarray:
    """What each sampled thought is worth: the T-line log-likelihood with it minus without it (`<act>`), in nats.

    One rollout a program; each thought is taken out in turn, all others staying, and the trace is scored again.
    """
    gains: list[float] = []
    n_lines = max_lines(programs)
    for bucket in length_buckets(programs, max_latent_tokens, n_buckets=1):
        for indices in batches(bucket, batch):
            rollouts = roll_out(
                sampler, params, [programs[i] for i in indices], events, key, mesh, group=1,
                max_latent_tokens=max_latent_tokens, batch=batch, slots=bucket.slots, widths=bucket.widths,
                n_lines=n_lines,
            )  # fmt: skip
            for row in rollout_gains(sampler, params, rollouts, events, mesh, horizon=horizon):
                gains += row.values()
    return np.array(gains)


def rollout_gains(
    sampler: Sampler, params, rollouts: Rollouts, events: Events, mesh: Mesh, *, horizon: int
) -> list[dict[int, float]]:
    """For each rollout, {line (1-based) with a thought: T-line log-likelihood with it minus without it}, in nats.

    Each thought is taken out in turn, all others staying, and the trace is scored again, as many traces at once as
    there are rollouts.
    """
    batch, slots = rollouts.samples.tokens_BS.shape
    n_lines = rollouts.terms.action.shape[1]
    with_BL = to_host(returns_to_go(rollouts.terms.action, horizon))
    thoughts = latents_of_rows(rollouts.samples)[: rollouts.rows]
    gains: list[dict[int, float]] = [{} for _ in thoughts]
    cases = [(b, t) for b, row in enumerate(thoughts) for t in row]
    for start in range(0, len(cases), batch):
        chunk = cases[start : start + batch]
        traces = [_without(rollouts.programs[b // rollouts.group], thoughts[b], t, events) for b, t in chunk]
        rows = place(TokenBatch.from_rows(trace_rows(traces, batch=batch, length=slots)), mesh)
        _, terms = score_terms(sampler.model, params, rows, events, n_lines, sampler.vocab_chunk)
        without_BL = to_host(returns_to_go(terms.action, horizon))
        for i, (b, t) in enumerate(chunk):
            gains[b][t] = float(with_BL[b, t - 1] - without_BL[i, t - 1])
    return gains


def _without(program: Program, latents: dict[int, Latent], line: int, events: Events):
    """The trace with all of `latents` but the one before `line`."""
    kept = [latents.get(t) if t != line else None for t in range(1, program.n_lines + 1)]
    return annotate(program, kept, mark_id=events.mark_id, newline_id=events.newline_id)


def deciles(gains: np.ndarray) -> list[float]:
    """Mean gain within each tenth of the thoughts, from the worst to the best; empty without thoughts."""
    if not len(gains):
        return []
    return [float(part.mean()) if len(part) else float("nan") for part in np.array_split(np.sort(gains), 10)]
