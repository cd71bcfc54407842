"""What a run works on: expert programs to train on, programs and tasks to measure on, commented code for a base."""

import dataclasses
import os
from collections.abc import Callable

from ra3_jax.data import puzzles
from ra3_jax.data.codec import Codec
from ra3_jax.data.corpus import load_corpus
from ra3_jax.data.decontamination import BenchmarkIndex, read_benchmarks
from ra3_jax.data.packing import pack
from ra3_jax.data.programs import (
    commented_puzzles,
    corpus_programs,
    observed_traces,
    puzzle_programs,
)
from ra3_jax.data.trace import PackedRows, Program
from ra3_jax.midtrain.config import MidTrainConfig
from ra3_jax.tasks.puzzles import puzzle_task
from ra3_jax.tasks.task import Task

BENCH_DATA = "RA3_BENCH_DATA"
DEV_SEED, TEST_SEED = 4001, 9001  # of the puzzles to measure on; the corpus's own seed never touches them


@dataclasses.dataclass(frozen=True)
class Material:
    """`dev` chooses schedules and judges gates; `test` is only measured on."""

    train: tuple[Program, ...]
    dev: tuple[Program, ...]
    test: tuple[Program, ...]
    dev_tasks: tuple[Task, ...] = ()
    test_tasks: tuple[Task, ...] = ()
    one_skill_tasks: tuple[Task, ...] = ()
    dev_puzzles: tuple[puzzles.Puzzle, ...] = ()  # of the dev programs, where those are puzzles
    notes: tuple[str, ...] = ()  # what was read, what was left out


def load_material(config: MidTrainConfig, codec: Codec) -> Material:
    """Reads or generates the corpus. Raises ValueError or DataError, before anything is compiled, where it cannot."""
    if config.data.corpus == "puzzles":
        return _puzzle_material(config, codec)
    return _corpus_material(config, codec)


def _puzzle_material(config: MidTrainConfig, codec: Codec) -> Material:
    n = config.evaluation
    train = puzzles.generate("mid", config.puzzles.programs, config.seed)
    dev = puzzles.generate("dev", n.dev_tasks, DEV_SEED)
    test = puzzles.generate("test", max(n.tasks, n.bound_programs), TEST_SEED)
    one_skill = puzzles.generate("dev", n.dev_tasks, DEV_SEED + 1, ks={1: 1.0})
    return Material(
        train=tuple(puzzle_programs(train, codec)),
        dev=tuple(puzzle_programs(dev, codec)),
        test=tuple(puzzle_programs(test[: n.bound_programs], codec)),
        dev_tasks=tuple(map(puzzle_task, dev)),
        test_tasks=tuple(map(puzzle_task, test[: n.tasks])),
        one_skill_tasks=tuple(map(puzzle_task, one_skill)),
        dev_puzzles=tuple(dev),
        notes=(f"puzzles: {len(train)} expert programs, {len(dev)} dev and {n.tasks} fresh test tasks",),
    )


def _corpus_material(config: MidTrainConfig, codec: Codec) -> Material:
    documents, report = load_corpus(config.data, benchmark_index())
    corpus = corpus_programs(documents, codec, config.data, report)
    held_out = corpus.held_out
    if config.evaluation.bound_max_lines:
        held_out = tuple(p for p in held_out if p.n_lines <= config.evaluation.bound_max_lines)
    if len(held_out) < 2:
        raise ValueError(
            f"{config.data.corpus}: {len(held_out)} held-out programs to measure on; "
            f"raise data.held_out (now {config.data.held_out}) or take a larger corpus\n{report}"
        )
    n = min(config.evaluation.bound_programs, len(held_out) // 2)
    # Ids are hashes of the content: an order by id is a random one, the same in every run.
    held_out = tuple(sorted(held_out, key=lambda p: p.example_id))
    train = corpus.train
    if config.model == "tiny":
        train = tuple(p for p in train if not for_base(p))
        if not 0 < len(train) < len(corpus.train):
            raise ValueError(f"{config.data.corpus}: {len(corpus.train)} programs are too few to share with a base")
        report.notes.append(f"{len(corpus.train) - len(train)} programs for the base, {len(train)} to mid-train on")
    return Material(train=train, dev=held_out[n : 2 * n], test=held_out[:n], notes=tuple(str(report).splitlines()))


def for_base(program: Program) -> bool:
    """Whether a program of a corpus belongs to the small base's share (7 of 8), by its content."""
    return program.example_id % 8 != 0


def benchmark_index() -> BenchmarkIndex | None:
    """The evaluation benchmarks to keep out of a corpus, where $RA3_BENCH_DATA names a folder with them."""
    folder = os.environ.get(BENCH_DATA)
    return BenchmarkIndex(read_benchmarks(folder)) if folder else None


def base_rows(config: MidTrainConfig, codec: Codec, say: Callable[[str], None]) -> PackedRows:
    """Commented code for the small base: puzzles with their writers' comments, or most of a corpus with its own."""
    length = config.data.sequence_length
    if config.data.corpus == "puzzles":
        habits = puzzles.BASE_S if config.base.habits == "S" else puzzles.BASE_C
        commented = puzzles.generate("base", config.base.programs, config.base.seed, habits=habits)
        traces = commented_puzzles(commented, codec)
    else:
        data = dataclasses.replace(config.data, comments="observe")
        documents, report = load_corpus(data, benchmark_index())
        corpus = corpus_programs(documents, codec, data, report)
        traces = observed_traces([p for p in corpus.train if for_base(p)], codec)
    rows, dropped = pack(traces, length, codec.sets.pad_id)
    say(f"base corpus: {len(traces)} commented programs, {len(rows)} rows ({rows.fill:.1%} full), {dropped} too long")
    return rows
