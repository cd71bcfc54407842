"""The puzzle family: programs do what prompts say, tests have no holes, splits share nothing."""

import ast
import collections
import hashlib
import os
import subprocess
import sys

import pytest

from ra3_jax.data import puzzles
from ra3_jax.data.puzzle_skills import NUMBERS, SKILLS, Step
from ra3_jax.data.puzzles import Habits, Puzzle, generate, judge_comment


def execute(code: str, xs) -> list[int]:
    namespace: dict = {}
    exec(code, namespace)
    return namespace["f"](list(xs))


FAMILY = (
    generate("base", 150, habits=puzzles.BASE_S)
    + generate("mid", 100)
    + generate("test", 100, ks=puzzles.LONG_KS, n_tests=6)
)


def test_programs_compute_what_the_tests_expect():
    seen = set()
    for puzzle in FAMILY:
        for code in (puzzle.code, puzzle.commented_code):
            for xs, ys in puzzle.tests:
                assert execute(puzzle.prompt + code, xs) == list(ys)
        seen |= {(step.skill.phrase, puzzle.style) for step in puzzle.steps}
    assert len(seen) == 2 * len(SKILLS) == 40  # every skill was checked in both idioms


def test_prompt_and_code_have_the_documented_form():
    step = {skill.phrase: skill for skill in SKILLS}
    definitions = (
        Step(step["drop repeats"], 0),
        Step(step["squares"], 0),
        Step(step["take first N"], 6),
    )
    puzzle = Puzzle("name", definitions, (2, 0), "loop", (), (None,) * 8)
    assert puzzle.prompt == ('def f( xs ):\n    """ a drop repeats, b squares, c take first 6; order 1st c 2nd a """\n')
    assert puzzle.code == (
        "    out = xs[ : 6 ]\n    xs = out\n"
        "    out = []\n    for v in xs:\n        if v not in out:\n"
        "            out.append( v )\n    xs = out\n"
        "    return xs\n"
    )
    assert puzzle.block_starts == (0, 2)
    assert puzzle.oracle_comments == ("1st c take first 6", None, "2nd a drop repeats", *[None] * 5)


def test_no_test_list_passes_an_unfinished_program():
    """Checked by running the programs, not the generator's own functions."""
    for puzzle in FAMILY:
        k = len(puzzle.blocks)
        unfinished = [[b for j, b in enumerate(puzzle.blocks) if j != i] for i in range(k)]
        unfinished += [list(puzzle.blocks[:i]) for i in range(k)]
        for blocks in unfinished:
            code = "\n".join([line for block in blocks for line in block] + ["    return xs"])
            assert any(execute(puzzle.prompt + code, xs) != list(ys) for xs, ys in puzzle.tests)
        assert sum(len(ys) >= 2 for _, ys in puzzle.tests) >= 0.75 * len(puzzle.tests)


def test_survives_loss_finds_single_and_trailing_blocks():
    step = {skill.phrase: Step(skill, 3) for skill in SKILLS}
    plus, minus = step["increase by N"], step["decrease by N"]
    square, size, flip = step["squares"], step["magnitudes"], step["flip order"]
    xs = (3, -1, 4, 1, -5, 9, 2)

    def survives(*steps):
        ys = list(xs)
        for s in steps:
            ys = s.apply(ys)
        return puzzles.survives_loss(steps, [(xs, ys)])

    assert survives(square, size)  # magnitudes of squares
    assert survives(size, square)
    assert survives(flip, plus, minus)  # each is needed, but a program that stops after the first passes
    assert not survives(plus, square) and not survives(square, flip) and not survives(plus)


def test_statistics_of_the_family():
    n = 2000
    base, mid = generate("base", n), generate("mid", n)
    lengths = collections.Counter(len(p.order) for p in base)
    assert all(abs(lengths[k] / n - share) < 0.03 for k, share in puzzles.BASE_KS.items())
    assert abs(sum(p.style == "loop" for p in mid) / n - puzzles.LOOP_SHARE) < 0.04
    assert {len(p.order) for p in mid} == {3, 4}
    for puzzle in base + mid:
        k, d = len(puzzle.order), len(puzzle.definitions)
        assert max(2, k - 1) <= d <= min(6, k + 2)
        assert all(a != b for a, b in zip(puzzle.order, puzzle.order[1:], strict=False))
        assert len({step.skill.phrase for step in puzzle.definitions}) == d
        assert all(step.number in range(2, 10) if step.skill.has_number else step.number == 0 for step in puzzle.steps)
        assert all(7 <= len(xs) <= 11 and -9 <= min(xs) and max(xs) <= 19 for xs, _ in puzzle.tests)
        assert len(puzzle.tests) == 4 and puzzle.comments == (None,) * len(puzzle.lines)


def test_splits_share_no_composition():
    compositions = {
        split: {tuple(step.phrase for step in p.steps) for p in generate(split, 800, seed=3, ks=ks)}
        for split in ("base", "mid", "dev", "test")
        for ks in [{1: 0.2, 2: 0.4, 3: 0.4}]  # short ones, so that splits would collide if they could
    }
    train = compositions["base"] | compositions["mid"]
    assert not train & compositions["dev"] and not train & compositions["test"]
    assert not compositions["dev"] & compositions["test"]
    assert compositions["base"] & compositions["mid"]  # these two may
    parts = collections.Counter(
        puzzles.split_of((Step(s, n), Step(t, 0)))
        for s in SKILLS if s.has_number for n in NUMBERS
        for t in SKILLS if not t.has_number
    )  # fmt: skip
    total = parts.total()
    assert abs(parts["dev"] / total - 0.1) < 0.03 and abs(parts["test"] / total - 0.1) < 0.03


def test_habits_shape_the_comments_and_nothing_else():
    n = 2000
    plain, human = generate("base", n), generate("base", n, habits=puzzles.BASE_S)
    assert [p.content_id for p in plain] == [p.content_id for p in human]
    assert [p.tests for p in plain] == [p.tests for p in human]
    kinds, right, informative = collections.Counter(), 0, 0
    for puzzle in human:
        written = [c for c in puzzle.comments if c]
        full = any(c[0].isdigit() for c in written)
        named = any(c in puzzles.PHRASES for c in written)
        kinds["full" if full else "phrase" if named else "other"] += 1
        assert not (full and named)
        for line, comment in enumerate(puzzle.comments):
            if comment is not None and comment not in puzzles.VAGUE:
                informative += 1
                assert line in puzzle.block_starts
                right += judge_comment(puzzle, line, comment) == "right"
    assert abs(right / informative - 0.88) < 0.02
    assert 0.50 < kinds["full"] / n < 0.62 and 0.11 < kinds["phrase"] / n < 0.17
    dense = generate("base", n, habits=puzzles.BASE_C)
    starts = [p.comments[line] for p in dense for line in p.block_starts]
    assert abs(sum(c is not None for c in starts) / len(starts) - 0.9) < 0.02
    for puzzle in human[:200]:
        tree = ast.dump(ast.parse(puzzle.prompt + puzzle.code))
        assert ast.dump(ast.parse(puzzle.prompt + puzzle.commented_code)) == tree


def test_judge_comment():
    puzzle = next(p for p in generate("mid", 50) if p.style == "loop" and len(p.definitions) > 3)
    start, inside = puzzle.block_starts[1], puzzle.block_starts[1] + 1
    letter, phrase = puzzles.LETTERS[puzzle.order[1]], puzzle.steps[1].phrase
    other = next(a for a in puzzles.LETTERS if a != letter)
    judged = {
        f"2nd {letter} {phrase}": "right",
        f"  2nd   {letter} {phrase} ": "right",
        phrase: "right",
        f"2nd {phrase}": "right",
        f"{letter} {phrase}": "right",
        f"3rd {letter} {phrase}": "wrong",
        f"2nd {other} {phrase}": "wrong",
        f"2nd {letter}": "wrong",
        f"2nd {letter} {puzzle.steps[0].phrase}": "wrong",
        puzzle.steps[0].phrase: "wrong",
        f"2nd {letter} {phrase} {phrase}": "wrong",
        "tidy up": "vague",
        "": "vague",
        phrase.split()[0] + " the": "vague",
    }
    for text, judgement in judged.items():
        assert judge_comment(puzzle, start, text) == judgement, text
        elsewhere = "vague" if judgement == "vague" else "misplaced"
        assert judge_comment(puzzle, inside, text) == elsewhere, text
        assert judge_comment(puzzle, len(puzzle.lines), text) == elsewhere, text
    for p in FAMILY:
        for line, comment in enumerate(p.oracle_comments):
            assert (comment is not None) == (line in p.block_starts)
            assert comment is None or judge_comment(p, line, comment) == "right"


def test_larger_corpora_begin_with_the_smaller_ones():
    assert generate("mid", 20, seed=7) == generate("mid", 60, seed=7)[:20]
    assert generate("mid", 20, seed=7) != generate("mid", 20, seed=8)
    tidy = generate("mid", 20, habits=Habits(full=1.0, stray_rate=0.0))
    assert all(p.comments == p.oracle_comments for p in tidy)


def fingerprint() -> str:
    """Of prompts, programs, comments and tests of every split."""
    digest = hashlib.sha256()
    for split in ("base", "mid", "dev", "test"):
        for p in generate(split, 40, seed=1, habits=puzzles.BASE_S, ks=puzzles.BASE_LONG_KS):
            digest.update(f"{p.name}{p.prompt}{p.commented_code}{p.tests}{p.content_id}".encode())
    return digest.hexdigest()[:16]


def test_family_never_changes():
    """Results are compared across machines and versions: a change must be a decision."""
    assert fingerprint() == "b50ed018438679ac"
    script = "from tests.data.test_puzzles import fingerprint; print(fingerprint())"
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = subprocess.run([sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True)
    assert found.stdout.strip() == "b50ed018438679ac", found.stderr


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="split 'train' is not one of base, mid, dev, test"):
        generate("train", 1)  # pyright: ignore[reportArgumentType]
    for ks in ({7: 1.0}, {0: 1.0}, {}):
        with pytest.raises(ValueError, match="numbers of blocks"):
            generate("mid", 1, ks=ks)
