"""Layout and errors of plans; a row's capacity is known before anything is sampled."""

import jax
import numpy as np
import pytest

from ra3_jax.data.trace import Kind
from ra3_jax.policy.plan import Decide, Force, Row, Sample, SegmentKind, Widths, make_plan, rollout_row
from ra3_jax.policy.sampler import Sampler
from tests.policy.world import (
    BIGRAM,
    BOS,
    EOS,
    EVENTS,
    MARK,
    NEWLINE,
    A,
    B,
    program,
    quick_compile,
    table,
)

__all__ = ["quick_compile"]

THOUGHT = Sample("newline", 2)
LINES = program([A, NEWLINE], [B, A, B, NEWLINE], [EOS], prompt=(BOS, B), example_id=5)


def test_rollout_row_lays_out_a_program():
    row = rollout_row(LINES, 3, sample_index=2)
    assert (row.example_id, row.sample_index) == (5, 2)
    plan = make_plan([row], batch=3)
    assert plan.batch == 3 and plan.slots % 32 == 0 and plan.slots >= row.capacity
    n = 9
    decide, think, force = SegmentKind.DECIDE, SegmentKind.RATIONALE, SegmentKind.FORCE
    np.testing.assert_array_equal(plan.kind_BN[0, :n], [decide, think, force] * 3)
    assert (np.asarray(plan.kind_BN)[0, n:] == SegmentKind.DONE).all() and plan.kind_BN.shape[1] > n
    np.testing.assert_array_equal(plan.line_BN[0, :n], [1, 1, 1, 2, 2, 2, 3, 3, 3])
    np.testing.assert_array_equal(plan.size_BN[0, :n], [0, 3, 2, 0, 3, 4, 0, 3, 1])
    np.testing.assert_array_equal(plan.start_BN[0, :n], [0, 0, 0, 0, 0, 2, 0, 0, 6])
    np.testing.assert_array_equal(plan.ids_BF[0, :7], [A, NEWLINE, B, A, B, NEWLINE, EOS])
    np.testing.assert_array_equal(plan.prompt_BP[0, :2], [BOS, B])
    np.testing.assert_array_equal(plan.prompt_len_B, [2, 0, 0])
    assert not np.any(plan.kind_BN[1:])


def test_window_puts_earlier_lines_into_the_prompt():
    row = rollout_row(LINES, 3, first_line=1, n_lines=1)
    np.testing.assert_array_equal(row.prompt_ids, [BOS, B, A, NEWLINE])
    assert [type(s) for s in row.segments] == [Decide, Sample, Force]
    assert [s.line for s in row.segments] == [2, 2, 2]
    beyond = rollout_row(LINES, 3, first_line=2, n_lines=5)
    assert [s.line for s in beyond.segments] == [3, 3, 3]


def test_rows_of_any_mixture_share_a_plan():
    rows = [
        Row([BOS], [Sample("eos", 4)], 1),
        Row([BOS] * 20, [Force([A] * 40), Decide(), Sample("newline", 2), Force([B])], 2),
    ]
    plan = make_plan(rows, widths=Widths(prompt=30))
    assert plan.prompt_BP.shape == (2, 32)
    assert plan.ids_BF.shape[1] >= 40
    np.testing.assert_array_equal(plan.kind_BN[0, :2], [SegmentKind.GENERATE, SegmentKind.DONE])
    np.testing.assert_array_equal(plan.example_id_B, [1, 2])


def test_prompts_are_never_wider_than_the_slots():
    plan = make_plan([Row([BOS] * 17, [Force([A])], 1)], slots=20, widths=Widths(prompt=64))
    assert plan.prompt_BP.shape == (1, 20)


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ([Row([], [Force([A])], 3)], {}, "example 3: the prompt is empty"),
        ([Row([BOS], [Decide(), Force([A])], 4)], {}, "example 4: Decide must be followed by Sample.'newline'. and F"),
        ([Row([BOS], [Force([A]), Decide()], 4)], {}, "example 4: Decide must be followed by Sample"),
        ([Row([BOS], [Decide(), THOUGHT], 4)], {}, "example 4: Decide must be followed by Sample"),
        ([Row([BOS], [Decide(), THOUGHT, Sample("eos", 3)], 4)], {}, "example 4: Decide must be followed by Sample"),
        ([Row([BOS], [Decide(), Sample("eos", 3), Force([A])], 4)], {}, "example 4: Decide must be followed by Sample"),
        ([Row([BOS], [Force([A]), Force([], 2)], 4)], {}, "example 4: a forced segment without tokens .line 2."),
        ([Row([BOS], [Sample("eos", 0)], 4)], {}, "example 4: max_new=0 must be at least 1"),
        ([Row([BOS], [Force([A])], 1)] * 3, {"batch": 2}, "3 rows do not fit into a batch of 2"),
        ([Row([BOS], [Force([A] * 32)], 1)], {"slots": 32}, "up to 33 tokens does not fit into 32 slots"),
    ],
)  # fmt: skip
def test_errors(rows, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(rows, **options)


def test_group_must_divide_the_batch():
    plan = make_plan([Row([BOS], [Force([A])], 1)], batch=3)
    with pytest.raises(ValueError, match="3 rows are not whole groups of 2"):
        Sampler(BIGRAM).run(table(), plan, EVENTS, jax.random.key(0), group=2)


@pytest.mark.parametrize("max_new", [1, 4])
def test_capacity_is_the_longest_that_can_be_sampled(max_new):
    """A policy that always thinks, and never ends a thought, fills the row to the last slot and no further."""
    chatty = table(MARK={NEWLINE: -1e4, 7: -1e4}, A={NEWLINE: -1e4, 7: -1e4, MARK: -1e4, 6: -1e4})
    chatty = chatty.at[:, MARK].add(1e3).at[[MARK, A], A].add(2e3)
    row = rollout_row(LINES, max_new)
    assert row.capacity == 2 + 7 + 3 * (2 + max_new)
    samples = Sampler(BIGRAM, window=2).run(chatty, make_plan([row], slots=row.capacity), EVENTS, jax.random.key(0))
    assert int(samples.length_B[0]) == row.capacity
    kinds = np.asarray(samples.kinds_BS)[0]
    assert (kinds == Kind.MARK).sum() == 3 and (kinds == Kind.END_CUT).sum() == 3
    assert (kinds == Kind.RATIONALE).sum() == 3 * max_new
    assert row.capacity == rollout_row(LINES, max_new, sample_index=9).capacity
