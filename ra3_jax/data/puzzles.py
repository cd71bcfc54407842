"""The built-in task family: lettered pipelines of list skills, in real Python.

A prompt defines a few lettered skills and says in which order to apply them; the expert program has
one block of code for each. Naming the coming block ("2nd a drop repeats") turns the four look-ups
that its code needs (which block -> which letter -> which skill -> which idiom) into single steps,
which is what a small decoder can learn from a thought.

    def f( xs ):
        \""" a drop repeats, b squares, c take first 6; order 1st c 2nd a \"""
    # 1st c take first 6
        out = xs[ : 6 ]
        xs = out
    # 2nd a drop repeats
        out = []
        for v in xs:
            if v not in out:
                out.append( v )
        xs = out
        return xs

A puzzle is a function of (split, seed, index) alone: a corpus of 512 is the beginning of the corpus
of 1,024. Splits are cut by composition (the skills with their numbers, in order): training, dev and
test share none.
"""

import dataclasses
import functools
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from ra3_jax.data.puzzle_skills import NUMBERS, PHRASES, SKILLS, Ints, Step, Style

Split = Literal["base", "mid", "dev", "test"]
Judgement = Literal["right", "wrong", "misplaced", "vague"]

LETTERS = "abcdef"
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th")
VAGUE = ("next", "todo", "now the list", "tidy up", "loop", "see above")

LOOP_SHARE = 0.6  # of the programs; the others are one-liners
DEV_SHARE, TEST_SHARE = 0.1, 0.1  # of the compositions

BASE_KS = {1: 0.25, 2: 0.4, 3: 0.25, 4: 0.1}  # share of the programs by number of blocks
BASE_LONG_KS = {1: 0.2325, 2: 0.372, 3: 0.2325, 4: 0.093, 5: 0.04, 6: 0.03}
MID_KS = {3: 0.5, 4: 0.5}
LONG_KS = {5: 0.5, 6: 0.5}

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Habits:
    """How the writers of a corpus comment. Shares are of programs, rates of lines."""

    full: float = 0.0
    """Share that writes ordinal, letter and phrase before a block."""
    phrase: float = 0.0
    """Share that writes only the phrase before a block."""
    vague: float = 0.0
    """Share that writes words without content, before any line. The rest never comments."""
    dense: float = 1.0
    """Share of the first two kinds that comments every block; the others comment every second."""
    stale: float = 0.0
    """Rate of block comments that name another of the defined skills."""
    vague_rate: float = 0.15
    """Comments a line of the third kind."""
    stray_rate: float = 0.04
    """Vague comments a line inside the blocks of the first two kinds."""


NO_COMMENTS = Habits()
BASE_S = Habits(full=0.6, phrase=0.15, vague=0.1, dense=2 / 3, stale=0.12)
BASE_C = Habits(full=0.8, phrase=0.1, vague=0.05, dense=1.0, stale=0.03)


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """A prompt, its expert program and its tests."""

    name: str
    definitions: tuple[Step, ...]  # lettered a, b, ...
    order: tuple[int, ...]  # indices into definitions, no two neighbours equal
    style: Style
    tests: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # (xs, f(xs))
    comments: tuple[str | None, ...]  # the corpus's own, one per code line, without "# "

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self.definitions[i] for i in self.order)

    @functools.cached_property
    def prompt(self) -> str:
        """Signature and docstring, with the final newline."""
        defined = ", ".join(f"{a} {step.phrase}" for a, step in zip(LETTERS, self.definitions, strict=False))
        order = " ".join(f"{ORDINALS[k]} {LETTERS[i]}" for k, i in enumerate(self.order))
        return f'def f( xs ):\n    """ {defined}; order {order} """\n'

    @functools.cached_property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """The code lines of each block."""
        return tuple(tuple(step.lines(self.style)) for step in self.steps)

    @functools.cached_property
    def lines(self) -> tuple[str, ...]:
        """All code lines, without newlines."""
        return (*(line for block in self.blocks for line in block), "    return xs")

    @functools.cached_property
    def code(self) -> str:
        """The expert program below the prompt, without comments."""
        return "".join(f"{line}\n" for line in self.lines)

    @functools.cached_property
    def block_starts(self) -> tuple[int, ...]:
        """Index of the first line of each block: where a thought belongs."""
        starts = [0]
        for block in self.blocks[:-1]:
            starts.append(starts[-1] + len(block))
        return tuple(starts)

    @functools.cached_property
    def oracle_comments(self) -> tuple[str | None, ...]:
        """Ordinal, letter and phrase before every block; one entry per code line."""
        comments: list[str | None] = [None] * len(self.lines)
        for k, line in enumerate(self.block_starts):
            comments[line] = block_comment(self, k)
        return tuple(comments)

    @functools.cached_property
    def commented_code(self) -> str:
        """The program as the corpus has it: with its own comments, each on a line at column 0."""
        pairs = zip(self.comments, self.lines, strict=True)
        return "".join(f"# {c}\n{line}\n" if c is not None else f"{line}\n" for c, line in pairs)

    @functools.cached_property
    def content_id(self) -> str:
        """Hash of prompt and code, whatever the name, the tests and the comments."""
        return hashlib.sha256((self.prompt + self.code).encode()).hexdigest()[:16]


def block_comment(puzzle: Puzzle, k: int, *, definition: int | None = None) -> str:
    """Ordinal, letter and phrase of block k, or (a stale comment) of another `definition`."""
    i = puzzle.order[k] if definition is None else definition
    return f"{ORDINALS[k]} {LETTERS[i]} {puzzle.definitions[i].phrase}"


def judge_comment(puzzle: Puzzle, line: int, text: str) -> Judgement:
    """Grades a comment before code line `line` (0-based; len(lines) is end-of-text).

    `text` is without the mark.
    - right: at the first line of a block; has its phrase, and its ordinal and letter if any.
    - wrong: at the first line of a block, with any other claim.
    - misplaced: a claim anywhere else.
    - vague: claims nothing (no ordinal, no letter, no phrase of the family).
    """
    words = text.split()
    ordinal = words.pop(0) if words and words[0] in ORDINALS else None
    letter = words.pop(0) if words and words[0] in tuple(LETTERS) else None
    phrase = " ".join(words)
    if ordinal is None and letter is None and phrase not in PHRASES:
        return "vague"
    if line not in puzzle.block_starts:
        return "misplaced"
    k = puzzle.block_starts.index(line)
    right = (
        phrase == puzzle.steps[k].phrase
        and ordinal in (None, ORDINALS[k])
        and letter in (None, LETTERS[puzzle.order[k]])
    )
    return "right" if right else "wrong"


def generate(
    split: Split,
    n: int,
    seed: int = 0,
    *,
    habits: Habits = NO_COMMENTS,
    ks: Mapping[int, float] | None = None,
    n_tests: int = 4,
) -> list[Puzzle]:
    """The first `n` puzzles of a stream.

    `base` and `mid` draw from the training compositions, `dev` and `test` from theirs. `ks` maps
    the number of blocks to its share; the default is BASE_KS for `base` and MID_KS for the others.
    Raises ValueError on an unknown split or on a number of blocks that has no ordinal.
    """
    if split not in get_args(Split):
        raise ValueError(f"split {split!r} is not one of {', '.join(get_args(Split))}")
    ks = (BASE_KS if split == "base" else MID_KS) if ks is None else ks
    if not ks or not all(1 <= k <= len(ORDINALS) for k in ks):
        raise ValueError(f"numbers of blocks {sorted(ks)}: expected some of 1..{len(ORDINALS)}")
    return [_puzzle(split, seed, index, habits, ks, n_tests) for index in range(n)]


def split_of(steps: Sequence[Step]) -> Literal["train", "dev", "test"]:
    """The part of the family that a composition belongs to, by its content alone."""
    composition = "; ".join(step.phrase for step in steps)
    u = _hash_int("puzzle split", composition) / 2**64
    return "dev" if u < DEV_SHARE else "test" if u < DEV_SHARE + TEST_SHARE else "train"


def survives_loss(steps: Sequence[Step], tests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """True when the tests pass without some one block, or with a program that stops before its end.

    Such tests would pass an unfinished program: a hole in every reward built on them.
    """
    shorter = [(*steps[:i], *steps[i + 1 :]) for i in range(len(steps))]
    shorter += [tuple(steps[:i]) for i in range(len(steps) - 1)]
    return any(all(_apply(part, xs) == list(ys) for xs, ys in tests) for part in shorter)


def draw(rng: "Rng", k: int, n_tests: int, part: str) -> tuple[dict[str, Any] | None, str]:
    """One attempt at a puzzle of k blocks: (fields, "") or (None, the reason of the rejection)."""
    n_defined = rng.between(max(2, k - 1), min(len(LETTERS), k + 2))
    definitions = tuple(
        Step(skill, rng.choice(NUMBERS) if skill.has_number else 0) for skill in rng.sample(SKILLS, n_defined)
    )
    order: list[int] = []
    while len(order) < k:
        i = rng.below(n_defined)
        if not order or i != order[-1]:
            order.append(i)
    style: Style = "loop" if rng.unit() < LOOP_SHARE else "line"
    steps = [definitions[i] for i in order]
    if split_of(steps) != part:
        return None, "other split"
    inputs = [tuple(rng.between(-9, 19) for _ in range(rng.between(7, 11))) for _ in range(n_tests)]
    tests = tuple((xs, tuple(_apply(steps, xs))) for xs in inputs)
    if 4 * sum(len(ys) >= 2 for _, ys in tests) < 3 * n_tests:
        return None, "trivial outputs"
    if survives_loss(steps, tests):
        return None, "survives the loss of a block"
    return dict(definitions=definitions, order=tuple(order), style=style, tests=tests), ""


def _puzzle(split: Split, seed: int, index: int, habits: Habits, ks: Mapping[int, float], n_tests: int) -> Puzzle:
    name = f"puzzles/{split}/{seed}/{index}"
    rng = Rng("puzzle", name)
    part = "train" if split in ("base", "mid") else split
    k = rng.weighted(list(ks), list(ks.values()))  # once: rejections must not favour short programs
    fields = None
    while fields is None:
        fields, _ = draw(rng, k, n_tests, part)
    puzzle = Puzzle(name=name, comments=(), **fields)
    # A stream of its own: the same programs and tests under any habits.
    comments = _human_comments(Rng("comments", name), puzzle, habits)
    return dataclasses.replace(puzzle, comments=comments)


def _human_comments(rng: "Rng", puzzle: Puzzle, habits: Habits) -> tuple[str | None, ...]:
    """Comments as a writer with these habits would leave them, one entry per code line."""
    silent = 1 - habits.full - habits.phrase - habits.vague
    kinds = ["full", "phrase", "vague", "silent"]
    kind = rng.weighted(kinds, [habits.full, habits.phrase, habits.vague, silent])
    density = 1.0 if rng.unit() < habits.dense else 0.5
    comments: list[str | None] = []
    for line in range(len(puzzle.lines)):
        comment = None
        at_block = line in puzzle.block_starts
        if kind in ("full", "phrase") and at_block and rng.unit() < density:
            k = puzzle.block_starts.index(line)
            i = puzzle.order[k]
            if rng.unit() < habits.stale:
                i = rng.choice([j for j in range(len(puzzle.definitions)) if j != i])
            full = block_comment(puzzle, k, definition=i)
            comment = full if kind == "full" else puzzle.definitions[i].phrase
        elif kind in ("full", "phrase") and not at_block and line < len(puzzle.lines) - 1:
            comment = rng.choice(VAGUE) if rng.unit() < habits.stray_rate else None
        elif kind == "vague":
            comment = rng.choice(VAGUE) if rng.unit() < habits.vague_rate else None
        comments.append(comment)
    return tuple(comments)


def _apply(steps: Sequence[Step], xs: Sequence[int]) -> Ints:
    ys = list(xs)
    for step in steps:
        ys = step.apply(ys)
    return ys


def _hash_int(*key: str) -> int:
    """64 bits that depend on the content of `key` alone."""
    return int.from_bytes(hashlib.sha256("\0".join(key).encode()).digest()[:8], "big")


class Rng:
    """Draws built on `random.Random.random` alone, whose sequence Python keeps across versions."""

    def __init__(self, *key: str):
        self.unit = random.Random(_hash_int(*key)).random

    def below(self, n: int) -> int:
        return int(self.unit() * n)

    def between(self, low: int, high: int) -> int:
        """Uniform on low..high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[_T]) -> _T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[_T], n: int) -> list[_T]:
        """`n` different items."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(n)]

    def weighted(self, items: Sequence[_T], weights: Sequence[float]) -> _T:
        u = self.unit() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            u -= weight
            if u < 0:
                return item
        return items[-1]
