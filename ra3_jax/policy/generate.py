"""Plain generation: prompts -> completions of the language model, through the one sampler."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from ra3_jax.data.trace import Kind
from ra3_jax.policy.batch import place
from ra3_jax.policy.events import Events
from ra3_jax.policy.plan import Row, Sample, Widths, make_plan, round_up
from ra3_jax.policy.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What to continue. `example_id` names the prompt in the randomness of its samples."""

    ids: np.ndarray
    example_id: int


@dataclasses.dataclass(frozen=True)
class Completion:
    ids: tuple[int, ...]  # sampled tokens, end-of-text left out
    finished: bool  # ended by end-of-text, not by max_new
    logp: float  # log-prob of the sampled tokens


def generate(
    sampler: Sampler,
    params,
    prompts: Sequence[Prompt],
    events: Events,
    key: jax.Array,
    mesh: Mesh,
    *,
    samples: int,
    max_new: int,
    batch: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """`samples` completions of each prompt, in the order of the prompts.

    All batches share one shape. `on_progress(prompts done)` is called after each batch.
    """
    sampler = dataclasses.replace(sampler, window=1)  # nothing is forced after the prompt
    per_batch = max(1, batch // samples)
    width = round_up(max(len(prompt.ids) for prompt in prompts), 64)  # coarse: one compilation serves many sets
    segments = [Sample("eos", max_new)]
    slots = round_up(width + max_new + 1, 32)
    done: list[list[Completion]] = []
    for start in range(0, len(prompts), per_batch):
        part = prompts[start : start + per_batch]
        rows = [Row(p.ids, segments, p.example_id, k) for p in part for k in range(samples)]
        plan = place(make_plan(rows, batch=per_batch * samples, slots=slots, widths=Widths(prompt=width)), mesh)
        out = sampler.run(params, plan, events, key, group=samples)
        tokens_BS, kinds_BS, logp_BS, length_B = map(
            np.asarray, (out.tokens_BS, out.kinds_BS, out.log_probs.token, out.length_B)
        )
        rows_done = []
        for b in range(len(rows)):
            new = kinds_BS[b, : length_B[b]] == Kind.GENERATED
            ids = tokens_BS[b, : length_B[b]][new]
            finished = bool(len(ids)) and ids[-1] == events.eos_id
            logp = float(logp_BS[b, : length_B[b]][new].sum())
            rows_done.append(Completion(tuple(map(int, ids[:-1] if finished else ids)), finished, logp))
        done += [rows_done[i * samples : (i + 1) * samples] for i in range(len(part))]
        if on_progress:
            on_progress(len(part))
    return done
