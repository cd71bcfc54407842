"""Thoughts sampled along the expert's program: G rollouts a program, log-probs by line, the thoughts themselves."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.mesh import pin_rows, to_host
from ra3_jax.data.trace import AnnotatedTrace, Kind, Latent, PackedRows, Program
from ra3_jax.midtrain.elbo import LineTerms, line_terms
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.batch import TokenBatch, place
from ra3_jax.policy.events import EventLogProbs, Events
from ra3_jax.policy.plan import Widths, make_plan, rollout_row, round_up
from ra3_jax.policy.sampler import Sampler, Samples
from ra3_jax.policy.scorer import in_parts, score


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """G rollouts of each of some programs. Rows are ordered by program, then by rollout."""

    programs: tuple[Program, ...]  # the real ones; rows beyond len(programs) * group only fill the batch
    group: int
    samples: Samples
    terms: LineTerms  # [B, L] under the policy that sampled
    first_line: tuple[int, ...]  # 0-based, of each program's window
    n_lines: tuple[int, ...]  # of each program's window

    @property
    def rows(self) -> int:
        return len(self.programs) * self.group

    @property
    def reaches_end(self) -> list[bool]:
        """Per program, whether its window ends with end-of-text."""
        windows = zip(self.programs, self.first_line, self.n_lines, strict=True)
        return [first + n >= program.n_lines for program, first, n in windows]


@functools.partial(jax.jit, static_argnames="n_lines")
def sample_terms(samples: Samples, n_lines: int) -> LineTerms:
    """The sampler's own log-probs by line."""
    return line_terms(samples.log_probs, samples.kinds_BS, samples.lines_BS, n_lines)


@functools.partial(jax.jit, static_argnames=("model", "n_lines", "chunk"))
def score_terms(
    model: LanguageModel, params, batch: TokenBatch, events: Events, n_lines: int, chunk: int | None = None
) -> tuple[EventLogProbs, LineTerms]:
    """One scorer pass over rows of one trace each: log-probs by token and by line."""
    log_probs = in_parts(lambda rows: score(model, params, rows, events, chunk=chunk), chunk, batch)
    return log_probs, line_terms(log_probs, batch.kinds_BT, batch.lines_BT, n_lines)


def roll_out(
    sampler: Sampler,
    params,
    programs: Sequence[Program],
    events: Events,
    key: jax.Array,
    mesh: Mesh,
    *,
    group: int,
    max_latent_tokens: int,
    batch: int,
    slots: int | None = None,
    widths: Widths | None = None,
    n_lines: int | None = None,
    windows: Sequence[tuple[int, int]] | None = None,
) -> Rollouts:
    """Samples thoughts before the lines of each program (or of its window (first line, number of lines)).

    `batch` rows are run, filled up with empty ones; `n_lines` is L of the returned terms.
    """
    windows = windows or [(0, program.n_lines) for program in programs]
    rows = [
        rollout_row(p, max_latent_tokens, sample_index=g, first_line=first, n_lines=n)
        for p, (first, n) in zip(programs, windows, strict=True)
        for g in range(group)
    ]
    plan = place(make_plan(rows, batch=batch, slots=slots, widths=widths), mesh)
    samples = sampler.run(params, plan, events, key, group=group)
    n_lines = n_lines or max_lines(programs)
    return Rollouts(
        programs=tuple(programs),
        group=group,
        samples=samples,
        terms=sample_terms(samples, n_lines),
        first_line=tuple(first for first, _ in windows),
        n_lines=tuple(min(n, p.n_lines - first) for p, (first, n) in zip(programs, windows, strict=True)),
    )


def join_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts of several batches of one shape, whose rows are all real, as those of one batch."""
    if len(parts) == 1:
        return parts[0]
    samples, terms = _join_rows([(part.samples, part.terms) for part in parts])
    return Rollouts(
        programs=tuple(program for part in parts for program in part.programs),
        group=parts[0].group,
        samples=samples,
        terms=terms,
        first_line=tuple(first for part in parts for first in part.first_line),
        n_lines=tuple(n for part in parts for n in part.n_lines),
    )


@jax.jit
def _join_rows(trees):
    """One pytree of rows from several; scalars (iterations) are summed."""
    return pin_rows(jax.tree.map(lambda *xs: jnp.concatenate(xs) if xs[0].ndim else sum(xs), *trees))


def max_lines(programs: Sequence[Program]) -> int:
    """L for these programs, rounded up so that few shapes are compiled."""
    return round_up(max(p.n_lines for p in programs), 8)


def latents_of_rows(samples: Samples) -> list[dict[int, Latent]]:
    """The thoughts of each row, by line number (1-based)."""
    tokens_BS, kinds_BS, lines_BS = to_host((samples.tokens_BS, samples.kinds_BS, samples.lines_BS))
    ends_BS = (kinds_BS == Kind.END) | (kinds_BS == Kind.END_CUT)
    found = []
    for b in range(len(tokens_BS)):
        starts, stops = np.flatnonzero(kinds_BS[b] == Kind.MARK), np.flatnonzero(ends_BS[b])
        row = {}
        for start, stop in zip(starts, stops, strict=True):
            ids = tuple(map(int, tokens_BS[b, start + 1 : stop]))
            row[int(lines_BS[b, start])] = Latent(ids, cut=bool(kinds_BS[b, stop] == Kind.END_CUT))
        found.append(row)
    return found


def trace_rows(traces: Sequence[AnnotatedTrace], *, batch: int, length: int) -> PackedRows:
    """One trace a row (no packing), filled up to `batch` rows of `length` tokens."""
    arrays = {name: np.zeros((batch, length), np.int32) for name in ("tokens", "segments", "positions", "lines")}
    kinds = np.zeros((batch, length), np.int8)
    example = np.full((batch, length), -1, np.int32)
    for b, trace in enumerate(traces):
        n = len(trace)
        if n > length:
            raise ValueError(f"{trace.program.name}: a trace of {n} tokens does not fit into {length}")
        arrays["tokens"][b, :n] = trace.tokens_T
        arrays["segments"][b, :n] = 1
        arrays["positions"][b, :n] = np.arange(n)
        arrays["lines"][b, :n] = trace.lines_T
        kinds[b, :n], example[b, :n] = trace.kinds_T, b
    return PackedRows(arrays["tokens"], arrays["segments"], arrays["positions"], kinds, arrays["lines"], example)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Programs that share one plan shape."""

    indices: tuple[int, ...]  # into the caller's list
    slots: int
    widths: Widths


def length_buckets(
    programs: Sequence[Program], max_latent_tokens: int, *, n_buckets: int = 2, multiple: int = 64
) -> list[Bucket]:
    """Sorts programs by the tokens their rollouts may need and cuts them into at most `n_buckets` shapes.

    The attention of every decode step runs over all slots, so short programs should not pay for the longest.
    """
    rows = [rollout_row(p, max_latent_tokens) for p in programs]
    need = np.array([row.capacity for row in rows])
    order = np.argsort(need, kind="stable")
    buckets = []
    for part in np.array_split(order, n_buckets):
        if len(part):
            slots = round_up(int(need[part].max()), multiple)
            widths = Widths.of([rows[i] for i in part])
            buckets.append(Bucket(tuple(map(int, part)), slots, widths))
    return buckets


def batches(bucket: Bucket, size: int) -> Iterator[tuple[int, ...]]:
    """The bucket's indices, `size` at a time."""
    for start in range(0, len(bucket.indices), size):
        yield bucket.indices[start : start + size]
