"""What a row of the sampler must do: a prompt, then a list of segments.

    Force(ids)            these tokens follow, whatever the model thinks of them (they are scored)
    Decide()              act or think; on act the next segment (a thought) is skipped
    Sample(stop, max_new) the model writes: a thought up to a newline, or plain text up to end-of-text

An RA3 rollout is, for each line of the program, `Decide(), Sample("newline"), Force(line)`; plain generation is
`Sample("eos")`. Plans become arrays, so one compiled program runs any mixture of them.
"""

import dataclasses
import enum
import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from ra3_jax.data.trace import Program
from ra3_jax.policy.batch import Array


class SegmentKind(enum.IntEnum):
    DONE = 0
    FORCE = 1
    DECIDE = 2
    RATIONALE = 3  # Sample("newline")
    GENERATE = 4  # Sample("eos")


@dataclasses.dataclass(frozen=True)
class Force:
    ids: Sequence[int] | np.ndarray
    line: int = 0


@dataclasses.dataclass(frozen=True)
class Decide:
    line: int = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    stop: Literal["newline", "eos"]
    max_new: int  # tokens; the newline is not counted, end-of-text is
    line: int = 0


Segment = Force | Decide | Sample


@dataclasses.dataclass(frozen=True)
class Row:
    """The plan of one row. Randomness is a function of (seed, example_id, sample_index, position) alone."""

    prompt_ids: Sequence[int] | np.ndarray
    segments: Sequence[Segment]
    example_id: int
    sample_index: int = 0

    @property
    def n_forced(self) -> int:
        """Tokens of all forced segments."""
        return sum(len(segment.ids) for segment in self.segments if isinstance(segment, Force))

    @property
    def capacity(self) -> int:
        """Tokens that the row can reach. Never a function of what was sampled."""
        total = len(self.prompt_ids)
        for segment in self.segments:
            match segment:
                case Force(ids):
                    total += len(ids)
                case Decide():
                    total += 1
                case Sample(_, max_new):
                    total += max_new + 1
        return total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows as arrays (numpy on the host until they are placed). N segments and F forced tokens a row at most."""

    prompt_BP: Array  # int32, left-aligned
    prompt_len_B: Array  # int32, 0 marks a row that only fills the batch
    ids_BF: Array  # int32, all forced tokens of a row, one after another
    kind_BN: Array  # int32, SegmentKind
    start_BN: Array  # int32, FORCE: first token in ids_BF
    size_BN: Array  # int32, FORCE: number of tokens; samples: max_new
    line_BN: Array  # int32, line number that the tokens get
    example_id_B: Array  # int32
    sample_index_B: Array  # int32
    slots: int = dataclasses.field(metadata=dict(static=True))  # S, tokens a row can hold

    @property
    def batch(self) -> int:
        return self.prompt_BP.shape[0]


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _check(row: Row) -> None:
    """Raises ValueError for what the sampler's state machine has no meaning for."""
    where = f"example {row.example_id}"
    if not len(row.prompt_ids):
        raise ValueError(f"{where}: the prompt is empty, not even a begin-of-text id")
    for segment, thought, line in itertools.zip_longest(row.segments, row.segments[1:], row.segments[2:]):
        match segment:
            case Force(ids) if not len(ids):
                raise ValueError(f"{where}: a forced segment without tokens (line {segment.line})")
            case Sample(_, max_new) if max_new < 1:
                raise ValueError(f"{where}: max_new={max_new} must be at least 1 (line {segment.line})")
            case Decide() if not (
                isinstance(thought, Sample) and thought.stop == "newline" and isinstance(line, Force)
            ):
                raise ValueError(
                    f"{where}: Decide must be followed by Sample('newline') and Force, found {thought}, {line}"
                )


@dataclasses.dataclass(frozen=True)
class Widths:
    """Least widths of a plan's arrays: batches of one corpus then share one compiled shape."""

    prompt: int = 0  # tokens
    ids: int = 0  # forced tokens
    segments: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Widths":
        """Wide enough for each of `rows`."""
        return cls(
            prompt=max(len(row.prompt_ids) for row in rows),
            ids=max(row.n_forced for row in rows),
            segments=max(len(row.segments) for row in rows),
        )


def make_plan(
    rows: Sequence[Row], *, batch: int | None = None, slots: int | None = None, widths: Widths | None = None
) -> Plan:
    """Lays rows out as arrays, filled up to `batch` rows; sizes are rounded up so that few shapes are compiled.

    Raises ValueError for an empty prompt (there is nothing to predict the
    first token from), for a decision without a thought and a line behind it, for an empty segment, for more rows than
    `batch`, and for a row that may not fit into `slots`.
    """
    batch = batch or len(rows)
    if len(rows) > batch:
        raise ValueError(f"{len(rows)} rows do not fit into a batch of {batch}")
    for row in rows:
        _check(row)
    capacity = max(row.capacity for row in rows)
    slots = slots or round_up(capacity, 32)
    if capacity > slots:
        raise ValueError(f"a row of up to {capacity} tokens does not fit into {slots} slots")
    needed, widths = Widths.of(rows), widths or Widths()
    n_prompt = min(slots, round_up(max(needed.prompt, widths.prompt), 16))
    n_ids = round_up(max(1, needed.ids, widths.ids), 32)
    n_segments = round_up(1 + max(needed.segments, widths.segments), 8)  # one DONE at the end at least

    def ints(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int32)

    prompt_BP, ids_BF = ints(batch, n_prompt), ints(batch, n_ids)
    prompt_len_B, example_id_B, sample_index_B = ints(batch), ints(batch), ints(batch)
    kind_BN, start_BN, size_BN, line_BN = (ints(batch, n_segments) for _ in range(4))
    for b, row in enumerate(rows):
        prompt_BP[b, : len(row.prompt_ids)] = row.prompt_ids
        prompt_len_B[b] = len(row.prompt_ids)
        example_id_B[b], sample_index_B[b] = row.example_id, row.sample_index
        cursor = 0
        for n, segment in enumerate(row.segments):
            line_BN[b, n] = segment.line
            match segment:
                case Force(ids):
                    kind_BN[b, n], start_BN[b, n], size_BN[b, n] = SegmentKind.FORCE, cursor, len(ids)
                    ids_BF[b, cursor : cursor + len(ids)] = ids
                    cursor += len(ids)
                case Decide():
                    kind_BN[b, n] = SegmentKind.DECIDE
                case Sample(stop, max_new):
                    kind = SegmentKind.RATIONALE if stop == "newline" else SegmentKind.GENERATE
                    kind_BN[b, n], size_BN[b, n] = kind, max_new
    return Plan(
        prompt_BP, prompt_len_B, ids_BF, kind_BN, start_BN, size_BN, line_BN, example_id_B, sample_index_B, slots
    )  # fmt: skip


def rollout_row(
    program: Program,
    max_latent_tokens: int,
    *,
    sample_index: int = 0,
    first_line: int = 0,
    n_lines: int | None = None,
) -> Row:
    """An RA3 rollout over `n_lines` lines from `first_line` (0-based): decide, perhaps think, then the expert's line.

    Earlier lines belong to the prompt, without latents.
    """
    stop = program.n_lines if n_lines is None else min(program.n_lines, first_line + n_lines)
    prompt_ids = np.concatenate([program.prompt_ids, *program.lines[:first_line]])
    segments: list[Segment] = []
    for t in range(first_line, stop):
        segments += [
            Decide(t + 1),
            Sample("newline", max_latent_tokens, t + 1),
            Force(program.lines[t], t + 1),
        ]
    return Row(prompt_ids, segments, program.example_id, sample_index)
