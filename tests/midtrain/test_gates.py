"""Judging thoughts on puzzles made by hand, and the gates before an E-step."""

from types import SimpleNamespace
from typing import Any

import pytest

from ra3_jax.core.stats import Estimate
from ra3_jax.data.codec import Codec
from ra3_jax.data.programs import puzzle_programs
from ra3_jax.data.puzzle_skills import SKILLS, Step
from ra3_jax.data.puzzles import Puzzle, generate
from ra3_jax.data.tokenizer import load_tokenizer
from ra3_jax.data.trace import Latent
from ra3_jax.midtrain import gates as room
from ra3_jax.midtrain.config import BaseConfig
from ra3_jax.midtrain.gates import CommentQuality, Gate, check_gates, judge_thoughts

CODEC = Codec(load_tokenizer("puzzles"))

STEPS = tuple(Step(skill, 3 if skill.has_number else 0) for skill in SKILLS[:3])
PUZZLE = Puzzle("by hand", STEPS, (2, 0), "loop", (((1, 2), (1,)),), (None,) * 20)


def thought(text: str) -> Latent:
    return Latent(tuple(CODEC.encode(" " + text)))


def test_judge_thoughts():
    first, second = (start + 1 for start in PUZZLE.block_starts)  # thoughts are numbered by line, from 1
    last = len(PUZZLE.lines) + 1  # end-of-text
    right = thought(f"1st c {STEPS[2].phrase}")
    only_phrase, wrong = thought(STEPS[0].phrase), thought(f"2nd b {STEPS[1].phrase}")
    vague = thought("todo")
    assert second > 2
    none = judge_thoughts([PUZZLE], [{}], CODEC)
    assert none == CommentQuality(0.0, 0.0, 0.0, 0.0, 0)
    found = judge_thoughts(
        [PUZZLE, PUZZLE, PUZZLE],
        [{first: right, second: wrong}, {first: right, 2: right, last: vague}, {second: only_phrase}],
        CODEC,
    )
    # six thoughts, four of them before a block, three of those right; six blocks in all
    assert found == CommentQuality(right=3 / 4, precision=4 / 6, recall=4 / 6, think_rate=6 / (3 * last), thoughts=6)
    at_block = judge_thoughts([PUZZLE], [{first: vague, second: right}], CODEC)
    assert (at_block.right, at_block.precision, at_block.recall) == (0.0, 1.0, 1.0)


def test_puzzles_of_the_generator_are_judged_right_by_their_own_comments():
    puzzles = generate("mid", 6, 3)
    oracle = [{i + 1: thought(c) for i, c in enumerate(p.oracle_comments) if c is not None} for p in puzzles]
    found = judge_thoughts(puzzles, oracle, CODEC)
    blocks, lines = sum(len(p.blocks) for p in puzzles), sum(len(p.lines) + 1 for p in puzzles)
    assert found == CommentQuality(1.0, 1.0, 1.0, blocks / lines, blocks)


def test_sampled_thoughts_are_judged_on_their_own_puzzle(monkeypatch):
    """Rollouts come in the order of the programs' lengths: each thought must find its own puzzle again."""
    puzzles = generate("mid", 9, 0)
    programs = puzzle_programs(puzzles, CODEC)
    oracle = {
        program.name: {i + 1: thought(c) for i, c in enumerate(puzzle.oracle_comments) if c is not None and i % 2 == 0}
        for program, puzzle in zip(programs, puzzles, strict=True)
    }
    seen: list[int] = []

    def roll_out(sampler, params, programs, *args, group: int, batch: int, **shape):
        assert group == 1 and len(programs) <= batch == 2
        seen.append(len(programs))
        return SimpleNamespace(samples=[oracle[p.name] for p in programs] + [{}] * (batch - len(programs)))

    monkeypatch.setattr(room, "roll_out", roll_out)
    monkeypatch.setattr(room, "latents_of_rows", lambda samples: samples)
    anything: Any = None
    found = room.sampled_comment_quality(
        anything, anything, puzzles, programs, CODEC, anything, anything, anything, max_latent_tokens=4, batch=2
    )
    assert sum(seen) == 9 and len(seen) > 4
    assert found == judge_thoughts(puzzles, [oracle[p.name] for p in programs], CODEC)
    assert found.right == found.precision == 1.0 and found.thoughts > 9
    rotated = [oracle[p.name] for p in [*programs[1:], programs[0]]]
    assert judge_thoughts(puzzles, rotated, CODEC).right < 0.8


@pytest.mark.parametrize(
    "pass_1, right, recall, selection, policy_gradient",
    [
        (0.9, 0.8, 0.95, [True, True], [True, True, True]),
        (0.85, 0.6, 0.95, [True, True], [True, False, True]),
        (0.8, 0.9, 0.5, [False, True], [False, True, False]),
        (0.9, 0.5, 0.9, [True, False], [True, False, True]),
    ],
)
def test_gates(pass_1, right, recall, selection, policy_gradient):
    quality = CommentQuality(right, 1.0, recall, 0.2, 100)
    one_skill = Estimate(pass_1, 0.01, 100)
    gates = check_gates(one_skill, quality, BaseConfig(), "selection")
    assert [gate.passed for gate in gates] == selection
    assert [gate.found for gate in gates] == [pass_1, right]
    gates = check_gates(one_skill, quality, BaseConfig(), "policy_gradient")
    assert [gate.passed for gate in gates] == policy_gradient
    assert [gate.found for gate in gates] == [pass_1, right, recall]


def test_a_gate_says_what_it_found():
    assert str(Gate("right comments", 0.5, 0.6)) == "gate FAILED: right comments 0.500 (at least 0.60)"
    assert str(Gate("right comments", 0.6, 0.6)).startswith("gate passed")
