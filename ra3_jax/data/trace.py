"""Programs and annotated traces in id space: the currency between data, policy and midtrain.

A program is a prompt and its actions (logical lines, each with its newline; the last action is end-of-text). A trace is
the program with a latent before some of the lines. Each token has a `Kind`, which alone says by which event of the
trace policy (design: act / think / token / end) it came to be, and a line number. Traces are concatenations of spans
and are never decoded and encoded again.
"""

import dataclasses
import enum
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Kind(enum.IntEnum):
    """How a token came to be. Scoring needs nothing else."""

    PAD = 0
    PROMPT = 1  # context, never scored
    CODE = 2  # a token of an action, after its first one
    CODE_ACT = 3  # first token of an action under <act>: two events, the decision and the token given no mark
    CODE_AFTER = 4  # first token of an action after a rationale: the mark is masked
    MARK = 5  # <think>: the canonical "#"
    RATIONALE = 6
    END = 7  # the newline written by a sampled end event
    END_CUT = 8  # the newline given for free at max_latent_tokens: no event
    GENERATED = 9  # sampled by plain generation


CODE_KINDS = (Kind.CODE, Kind.CODE_ACT, Kind.CODE_AFTER)
LATENT_KINDS = (Kind.MARK, Kind.RATIONALE, Kind.END, Kind.END_CUT)


@dataclasses.dataclass(frozen=True)
class Latent:
    """One thought: the ids between the mark and the newline. `cut`: it was ended by the length limit."""

    ids: tuple[int, ...]
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """An expert program in id space.

    `prompt_ids` starts with the begin-of-text id. `lines[t]` are the ids of action t; the last one is [end-of-text].
    `observed[t]` is the corpus's own comment before line t where comments are taken as observed latents, else None.
    """

    example_id: int  # stable 31-bit hash of the content; randomness and the held-out split depend on it alone
    name: str  # where it came from, for people
    prompt_ids: np.ndarray
    lines: tuple[np.ndarray, ...]
    code_bytes: int  # UTF-8 bytes of the actions, for nats per byte
    observed: tuple[Latent | None, ...] | None = None

    @property
    def n_lines(self) -> int:
        """Number of actions, end-of-text included."""
        return len(self.lines)

    @property
    def code_tokens(self) -> int:
        return sum(len(line) for line in self.lines)


@dataclasses.dataclass(frozen=True)
class AnnotatedTrace:
    """A program with one optional latent before each line, laid out as tokens."""

    program: Program
    latents: tuple[Latent | None, ...]  # one per action
    tokens_T: np.ndarray  # int32
    kinds_T: np.ndarray  # int8, values of Kind
    lines_T: np.ndarray  # int32: 0 in the prompt, t in 1..n for action t and the latent before it

    def __len__(self) -> int:
        return len(self.tokens_T)

    @property
    def think_rate(self) -> float:
        """Share of the actions that a thought precedes."""
        return sum(z is not None for z in self.latents) / len(self.latents)


def annotate(program: Program, latents: Sequence[Latent | None], *, mark_id: int, newline_id: int) -> AnnotatedTrace:
    """Inserts `latents[t]` before line t. Raises ValueError when their number is not the number of lines."""
    if len(latents) != program.n_lines:
        raise ValueError(f"{program.name}: {len(latents)} latents for {program.n_lines} lines")
    tokens: list[int] = list(map(int, program.prompt_ids))
    kinds: list[int] = [Kind.PROMPT] * len(tokens)
    lines: list[int] = [0] * len(tokens)
    for t, (latent, line) in enumerate(zip(latents, program.lines, strict=True), start=1):
        if latent is None:
            first = Kind.CODE_ACT
        else:
            tokens += [mark_id, *latent.ids, newline_id]
            end = Kind.END_CUT if latent.cut else Kind.END
            kinds += [Kind.MARK, *[Kind.RATIONALE] * len(latent.ids), end]
            lines += [t] * (len(latent.ids) + 2)
            first = Kind.CODE_AFTER
        tokens += map(int, line)
        kinds += [first, *[Kind.CODE] * (len(line) - 1)]
        lines += [t] * len(line)
    return AnnotatedTrace(
        program=program,
        latents=tuple(latents),
        tokens_T=np.asarray(tokens, np.int32),
        kinds_T=np.asarray(kinds, np.int8),
        lines_T=np.asarray(lines, np.int32),
    )


def plain(program: Program) -> AnnotatedTrace:
    """The program without any latent."""
    return annotate(program, [None] * program.n_lines, mark_id=-1, newline_id=-1)


def trace_to_json(trace: AnnotatedTrace) -> dict[str, Any]:
    """The trace without its program, for a line of `traces/*.jsonl`."""
    marks = trace.tokens_T[trace.kinds_T == Kind.MARK]
    ends = trace.tokens_T[np.isin(trace.kinds_T, (Kind.END, Kind.END_CUT))]
    return {
        "example_id": trace.program.example_id,
        "name": trace.program.name,
        "latents": [z and {"ids": list(map(int, z.ids)), "cut": z.cut} for z in trace.latents],
        "mark_id": int(marks[0]) if len(marks) else -1,
        "newline_id": int(ends[0]) if len(ends) else -1,
        "tokens_crc32": zlib.crc32(trace.tokens_T.astype("<i4").tobytes()),
    }


def trace_from_json(d: Mapping[str, Any], program: Program) -> AnnotatedTrace:
    """Inverse of `trace_to_json`. Raises ValueError where `program` is not the one it was made of."""
    if d["example_id"] != program.example_id:
        raise ValueError(
            f"{program.name}: trace of example {d['example_id']} ({d['name']}), "
            f"but the program is example {program.example_id}"
        )
    latents = [z and Latent(tuple(z["ids"]), z["cut"]) for z in d["latents"]]
    trace = annotate(program, latents, mark_id=d["mark_id"], newline_id=d["newline_id"])
    if zlib.crc32(trace.tokens_T.astype("<i4").tobytes()) != d["tokens_crc32"]:
        raise ValueError(f"{program.name}: the trace was made with other ids of this program")
    return trace


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Traces packed into rows of one fixed length T; what training and scoring read.

    All arrays are [R, T]. A segment is one trace; 0 marks padding. Positions restart at 0 in every segment.
    `example_RT` holds the index of the trace (in the packed order's source list) a token belongs to, -1 for padding.
    """

    tokens_RT: np.ndarray  # int32
    segment_ids_RT: np.ndarray  # int32, 1.. within a row, 0 = padding
    positions_RT: np.ndarray  # int32
    kinds_RT: np.ndarray  # int8
    lines_RT: np.ndarray  # int32
    example_RT: np.ndarray  # int32

    def __len__(self) -> int:
        return len(self.tokens_RT)

    @property
    def fill(self) -> float:
        """Share of the slots that hold a token."""
        return float((self.segment_ids_RT > 0).mean())
