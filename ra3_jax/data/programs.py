"""Documents and puzzles -> programs in id space: the last step on the side of text."""

import dataclasses
from collections.abc import Iterable, Sequence

from ra3_jax.data.codec import Codec
from ra3_jax.data.config import DataConfig
from ra3_jax.data.identity import is_held_out
from ra3_jax.data.lines import DataError
from ra3_jax.data.puzzles import Puzzle
from ra3_jax.data.sources import Document, SkipReport
from ra3_jax.data.trace import AnnotatedTrace, Latent, Program, annotate


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is trained on, and what is only measured on."""

    train: tuple[Program, ...]
    held_out: tuple[Program, ...]


def corpus_programs(documents: Iterable[Document], codec: Codec, config: DataConfig, report: SkipReport) -> Corpus:
    """Encodes documents and splits them by content. What cannot be encoded, or is too long for a row, is counted.

    Raises ValueError with the counts where no program is left to train on.
    """
    train: list[Program] = []
    held_out: list[Program] = []
    for document in documents:
        try:
            program = codec.program(document.prompt, document.code, document.name, config.comments)
        except DataError as error:
            report.skip(error)
            continue
        n = len(program.prompt_ids) + program.code_tokens
        if n > config.sequence_length:
            report.skip(DataError(document.name, None, "longer than a row", f"{n} tokens"))
            continue
        side = held_out if is_held_out(program.example_id, config.held_out) else train
        side.append(program)
    if not train:
        raise ValueError(f"no program of the corpus can be trained on\n{report}")
    return Corpus(tuple(train), tuple(held_out))


def puzzle_programs(puzzles: Sequence[Puzzle], codec: Codec) -> list[Program]:
    """The expert programs of puzzles, without comments."""
    return [codec.program_of_lines(p.prompt, p.lines, p.name) for p in puzzles]


def commented_puzzles(puzzles: Sequence[Puzzle], codec: Codec) -> list[AnnotatedTrace]:
    """Puzzles as their corpus has them: the writer's own comments are the latents."""
    traces = []
    for puzzle, program in zip(puzzles, puzzle_programs(puzzles, codec), strict=True):
        comments = [None if c is None else Latent(tuple(codec.encode(" " + c))) for c in puzzle.comments]
        traces.append(_annotate(program, [*comments, None], codec))
    return traces


def observed_traces(programs: Iterable[Program], codec: Codec) -> list[AnnotatedTrace]:
    """Programs with the corpus's own comments as latents. Raises ValueError where comments were not observed."""
    traces = []
    for program in programs:
        if program.observed is None:
            raise ValueError(f"{program.name}: comments were not observed; read it with comments='observe'")
        traces.append(_annotate(program, program.observed, codec))
    return traces


def _annotate(program: Program, latents: Sequence[Latent | None], codec: Codec) -> AnnotatedTrace:
    sets = codec.sets
    return annotate(program, latents, mark_id=sets.mark_id, newline_id=sets.newline_id)
