"""What the sampler does with a plan, and that (seed, example, sample, position) alone decide what it draws."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from ra3_jax.data.trace import CODE_KINDS, Kind
from ra3_jax.model.config import tiny
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.plan import Decide, Force, Row, Sample, rollout_row
from ra3_jax.policy.sampler import Sampler, Samples, nucleus, to_host
from ra3_jax.policy.scorer import score
from tests.model.small_models import random_params
from tests.policy.world import (
    BANNED_V,
    BIGRAM,
    BOS,
    EOS,
    EVENTS,
    M_V,
    MARK,
    MARKS,
    MISSING,
    N_V,
    NEWLINE,
    NEWLINE_SPACE,
    RETURN,
    TWO,
    A,
    B,
    V,
    even_plan,
    full_logits,
    on_one_device,
    program,
    quick_compile,
    table,
)

__all__ = ["quick_compile"]

MODEL = LanguageModel(tiny(V, d_model=16, n_heads=2))
BATCH, SLOTS = 8, 96
KEY = jax.random.key(11)
LONG = program([A, B, A, NEWLINE], [B, B, B, B, B, A, A, A, B, NEWLINE_SPACE], [A, NEWLINE], [EOS], example_id=21)
SHORT = program([A, NEWLINE], [EOS], example_id=22)
MIXTURE = [
    rollout_row(LONG, 3),
    rollout_row(LONG, 3, sample_index=1),
    rollout_row(SHORT, 2, sample_index=4),
    rollout_row(LONG, 4, first_line=1, n_lines=2),
    Row([BOS, B], [Sample("eos", 30)], 23),
    Row([BOS] + [A, B] * 10, [Force([B, A, A] * 7, line=1), Decide(2), Sample("newline", 2, 2), Force([B], 2)], 24),
    Row([BOS], [Sample("newline", 4, 1), Force([A, A, B, B, B], 1), Sample("eos", 3, 2)], 25),
]  # fmt: skip


@functools.cache
def weights():
    with on_one_device():
        return random_params(MODEL.config, 5)


@functools.cache
def run(window: int = 4, temperature: float = 1.0, slots: int = SLOTS) -> Samples:
    """The mixture of rows, one of the batch's eight being empty."""
    plan = even_plan(MIXTURE, slots=slots)
    return to_host(Sampler(MODEL, window, temperature).run(weights(), plan, EVENTS, KEY))


def row_of(samples: Samples, b: int) -> Samples:
    return dataclasses.replace(jax.tree.map(lambda x: x[b], dataclasses.replace(samples, iterations=np.zeros(99))))


def assert_same_rows(found: Samples, expected: Samples, rows: dict[int, int], atol=1e-5):
    """Row i of `found` is row rows[i] of `expected`."""
    for i, b in rows.items():
        one, other = row_of(found, i), row_of(expected, b)
        n = int(other.length_B)
        assert int(one.length_B) == n
        for name in ("tokens_BS", "kinds_BS", "lines_BS"):
            np.testing.assert_array_equal(getattr(one, name)[:n], getattr(other, name)[:n])
        for a, b_ in zip(jax.tree.leaves(one.log_probs), jax.tree.leaves(other.log_probs), strict=True):
            np.testing.assert_allclose(a[:n], b_[:n], atol=atol)


# --- what a plan asks for -----------------------------------------------------------------------------


def test_rows_follow_their_plans():
    samples = run()
    for b, row in enumerate(MIXTURE):
        n = int(samples.length_B[b])
        assert len(row.prompt_ids) < n <= row.capacity
        tokens, kinds = samples.tokens_BS[b], samples.kinds_BS[b]
        np.testing.assert_array_equal(tokens[: len(row.prompt_ids)], row.prompt_ids)
        assert (kinds[: len(row.prompt_ids)] == Kind.PROMPT).all()
        assert not np.isin(kinds[len(row.prompt_ids) : n], (Kind.PROMPT, Kind.PAD)).any()
        forced = [t for segment in row.segments if isinstance(segment, Force) for t in segment.ids]
        np.testing.assert_array_equal(tokens[np.isin(kinds, CODE_KINDS)], forced)
        for x in (tokens, kinds, samples.lines_BS[b], *(x[b] for x in jax.tree.leaves(samples.log_probs))):
            assert not x[n:].any()
    assert samples.length_B[len(MIXTURE)] == 0 and not samples.kinds_BS[len(MIXTURE)].any()


def test_forced_lines_reproduce_the_program():
    samples = run()
    for b, lines in ((0, LONG.lines), (1, LONG.lines), (2, SHORT.lines)):
        kinds, line_of = samples.kinds_BS[b], samples.lines_BS[b]
        for t, line in enumerate(lines, start=1):
            of_line = (line_of == t) & np.isin(kinds, CODE_KINDS)
            np.testing.assert_array_equal(samples.tokens_BS[b][of_line], line)
            first = np.flatnonzero(of_line)[0]
            thinks = ((line_of == t) & (kinds == Kind.MARK)).any()
            assert kinds[first] == (Kind.CODE_AFTER if thinks else Kind.CODE_ACT)
            assert (kinds[of_line][1:] == Kind.CODE).all()


def test_thoughts_are_well_formed():
    """mark, then words, then one newline; never a banned id, never an end inside, never longer than asked."""
    seen = 0
    for seed in range(3):
        rows = [rollout_row(LONG, 3, sample_index=i) for i in range(BATCH)]
        plan = even_plan(rows)
        out = to_host(Sampler(MODEL).run(weights(), plan, EVENTS, jax.random.key(seed)))
        for b in range(BATCH):
            kinds, tokens = out.kinds_BS[b], out.tokens_BS[b]
            for mark in np.flatnonzero(kinds == Kind.MARK):
                stop = mark + 1
                while kinds[stop] == Kind.RATIONALE:
                    assert not BANNED_V[tokens[stop]] and not N_V[tokens[stop]]
                    stop += 1
                cut = stop - mark - 1 == 3
                assert kinds[stop] == (Kind.END_CUT if cut else Kind.END)
                assert (tokens[mark], tokens[stop]) == (MARK, NEWLINE)
                assert kinds[stop + 1] == Kind.CODE_AFTER  # no second thought before the same line
                seen += 1
    assert seen > 10


def test_banned_ids_are_never_thought():
    """Even where nearly all of the mass is on them; what is left shares the mass."""
    pull = {BOS: 9.0, EOS: 9.0, RETURN: 9.0, MISSING: 9.0}
    logits_VV = table(MARK=pull, A=pull, B=pull, MARKS=pull).at[:, MARK].add(3.0)
    rows = [rollout_row(LONG, 4, sample_index=i) for i in range(BATCH)]
    out = Sampler(BIGRAM, 2).run(logits_VV, even_plan(rows), EVENTS, KEY)
    words = np.asarray(out.tokens_BS)[np.asarray(out.kinds_BS) == Kind.RATIONALE]
    assert len(words) > 20
    assert not BANNED_V[words].any() and not N_V[words].any()
    first = np.asarray(out.log_probs.token)[np.asarray(out.kinds_BS) == Kind.RATIONALE]
    assert first.max() < 0 and first.min() > -8


def test_window_only_saves_iterations():
    forced = [Row([BOS], [Force([A] * 13)], 1), Row([BOS, A], [Force([B] * 3), Force([A] * 4)], 2)]
    for window, expected in ((2, 7), (5, 3)):
        out = Sampler(BIGRAM, window).run(table(), even_plan(forced), EVENTS, KEY)
        assert int(out.iterations) == expected + 1  # the last tokens are fed to be scored
        np.testing.assert_array_equal(out.tokens_BS[1, :9], [BOS, A, B, B, B, A, A, A, A])
        np.testing.assert_array_equal(out.kinds_BS[1, :9], [Kind.PROMPT] * 2 + [Kind.CODE] * 7)
        np.testing.assert_allclose(out.log_probs.token[0, 1:14], -np.log(10), atol=1e-6)


def test_max_new_and_end_of_text():
    talk = table(A={B: 1e4}, B={A: 1e4}, NEWLINE={EOS: 1e4})
    rows = [
        Row([A], [Sample("eos", 5)], 1),
        Row([NEWLINE], [Sample("eos", 5)], 2),
        Row([A], [Sample("newline", 3, 1), Force([NEWLINE], 1), Sample("eos", 4, 2), Force([B], 3)], 3),
        Row([A], [Sample("eos", 1)], 4),
    ]
    out = to_host(Sampler(BIGRAM, 2).run(talk, even_plan(rows), EVENTS, KEY))
    texts = [out.tokens_BS[b, : out.length_B[b]].tolist() for b in range(4)]
    assert texts[0] == [A, B, A, B, A, B]
    assert texts[1] == [NEWLINE, EOS]
    assert texts[2] == [A, B, A, B, NEWLINE, NEWLINE, EOS, B]  # three words, cut; forced newline; end; forced B
    assert texts[3] == [A, B]
    G, R = Kind.GENERATED, Kind.RATIONALE
    assert out.kinds_BS[0, 1:6].tolist() == [G] * 5
    kinds = [R, R, R, Kind.END_CUT, Kind.CODE_AFTER, G, Kind.CODE]
    assert out.kinds_BS[2, 1:8].tolist() == kinds
    assert out.lines_BS[2, :8].tolist() == [0, 1, 1, 1, 1, 1, 2, 3]
    assert out.log_probs.token[2, 4] == 0.0  # given for free


def test_end_of_a_thought_is_written_canonically():
    out = Sampler(BIGRAM, 2).run(
        table(MARK={NEWLINE_SPACE: 1e4}).at[:, MARKS].set(2e4).at[MARK, MARKS].set(0.0),
        even_plan([rollout_row(SHORT, 2)]), EVENTS, KEY,
    )  # fmt: skip
    n = int(out.length_B[0])
    assert out.tokens_BS[0, :n].tolist() == [BOS, A, MARK, NEWLINE, A, NEWLINE, MARK, NEWLINE, EOS]
    assert out.kinds_BS[0, 3] == Kind.END
    assert out.log_probs.token[0, 3] == pytest.approx(0.0, abs=1e-6)
    assert out.log_probs.decision[0, 2] == pytest.approx(0.0, abs=1e-6)


# --- log-probs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scorer_agrees_with_the_sampler(temperature):
    samples = run(temperature=temperature)
    scorer = jax.jit(functools.partial(score, MODEL, temperature=temperature))
    scored = scorer(weights(), samples.token_batch(), EVENTS)
    for found, expected in zip(jax.tree.leaves(scored), jax.tree.leaves(samples.log_probs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.min(samples.log_probs.token) < -0.5


def test_windows_of_any_width_and_any_number_of_slots_draw_the_same():
    widest = run(8, slots=SLOTS + 37)
    for window in (1, 4):
        samples = run(window)
        assert_same_rows(samples, widest, {b: b for b in range(len(MIXTURE))})
        assert int(samples.iterations) > int(widest.iterations)


def test_temperature_changes_what_is_drawn():
    samples, cold = run(), run(temperature=0.6)
    assert not np.array_equal(samples.tokens_BS, cold.tokens_BS)


def test_greedy_generation_is_the_argmax_of_full_forwards():
    prompts = [[BOS, B], [BOS, A, A, B], [BOS], [BOS, NEWLINE, A]]
    rows = [Row(p, [Sample("eos", 20)], i) for i, p in enumerate(prompts)]
    plan = even_plan(rows)
    out = to_host(Sampler(MODEL, temperature=0.0).run(weights(), plan, EVENTS, KEY))
    tokens = np.zeros((4, SLOTS), np.int32)
    lengths = np.array(list(map(len, prompts)))
    for b, prompt in enumerate(prompts):
        tokens[b, : len(prompt)] = prompt
    positions = np.tile(np.arange(SLOTS, dtype=np.int32), (4, 1))
    logp = np.zeros((4, SLOTS))
    for _ in range(20):  # a row ends with end-of-text, or here
        logits = np.asarray(full_logits(MODEL, weights(), tokens, positions, np.ones_like(tokens)), np.float64)
        last = logits[np.arange(4), lengths - 1]
        going = (tokens[np.arange(4), lengths - 1] != EOS) | (lengths == list(map(len, prompts)))
        for b in np.flatnonzero(going):
            tokens[b, lengths[b]] = last[b].argmax()
            logp[b, lengths[b]] = last[b].max() - np.log(np.exp(last[b]).sum())
            lengths[b] += 1
    np.testing.assert_array_equal(out.length_B[:4], lengths)
    np.testing.assert_array_equal(out.tokens_BS[:4], tokens)
    np.testing.assert_allclose(out.log_probs.token[:4], logp, atol=1e-5)  # of temperature 1
    again = Sampler(MODEL, temperature=0.0).run(weights(), plan, EVENTS, jax.random.key(99))
    np.testing.assert_array_equal(again.tokens_BS, out.tokens_BS)


def test_greedy_decisions_take_the_likelier():
    for lean, kind in ((0.1, Kind.MARK), (-0.1, Kind.CODE_ACT)):
        # mass of the two marks against the eight others: log 2 + x against log 8
        logits_VV = table(NEWLINE={MARK: np.log(4) + lean, MARKS: np.log(4) + lean}, A={MARK: np.log(8) + lean})
        logits_VV = logits_VV.at[A, MARKS].set(-1e4)
        rows = [rollout_row(SHORT, 1, sample_index=i) for i in range(4)]
        out = Sampler(BIGRAM, temperature=0.0).run(logits_VV, even_plan(rows), EVENTS, KEY)
        assert (np.asarray(out.kinds_BS)[:4, 2] == kind).all()


# --- independence -------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_their_batch():
    """Alone, in another order, in another place: the same tokens and log-probs."""
    expected = run()
    sampler = Sampler(MODEL, 4)
    alone = sampler.run(weights(), even_plan([MIXTURE[2]]), EVENTS, KEY)
    assert_same_rows(to_host(alone), expected, {0: 2})
    assert int(alone.iterations) < int(expected.iterations)  # in the mixture this row waited, and did not change
    order = [5, 0, 6, 3, 1, 4, 2]
    shuffled = [MIXTURE[i] for i in order]
    other = sampler.run(weights(), even_plan(shuffled), EVENTS, KEY)
    assert_same_rows(to_host(other), expected, dict(enumerate(order)))


def test_example_sample_and_seed_all_matter():
    sampler = Sampler(MODEL, 4)

    def tokens(example_id: int, sample_index: int, seed: int) -> bytes:
        rows = [Row([BOS, B], [Sample("eos", 30)], example_id, sample_index)]
        plan = even_plan(rows)
        out = sampler.run(weights(), plan, EVENTS, jax.random.key(seed))
        return np.asarray(out.tokens_BS).tobytes()

    assert len({tokens(1, 0, 0), tokens(2, 0, 0), tokens(1, 1, 0), tokens(1, 0, 1), tokens(0, 1, 0)}) == 5
    assert tokens(1, 0, 0) == tokens(1, 0, 0)


def test_groups_that_share_a_prompt_are_the_rows_themselves():
    rows = [rollout_row(p, 3, sample_index=g) for p in (LONG, SHORT, TWO) for g in range(2)]
    plan = even_plan(rows)  # the fourth group is empty
    sampler = Sampler(MODEL, 4)
    grouped = to_host(sampler.run(weights(), plan, EVENTS, KEY, group=2))
    separate = to_host(sampler.run(weights(), plan, EVENTS, KEY))
    assert_same_rows(grouped, separate, {b: b for b in range(6)})
    np.testing.assert_array_equal(grouped.tokens_BS, separate.tokens_BS)
    assert not np.array_equal(grouped.tokens_BS[0], grouped.tokens_BS[1])


def test_no_mark_follows_a_thought():
    """What stands behind a thought is scored as if no mark could come: the mass of all others is one."""
    samples = run()
    b, s = np.argwhere(samples.kinds_BS == Kind.CODE_AFTER)[0]
    tokens = samples.tokens_BS[b : b + 1]
    positions = np.arange(SLOTS, dtype=np.int32)[None]
    logits = np.asarray(full_logits(MODEL, weights(), tokens, positions, np.ones_like(tokens)), np.float64)[0, s - 1]
    p = np.exp(logits) / np.exp(logits).sum()
    expected = np.log(p[tokens[0, s]] / p[~M_V].sum())
    assert samples.log_probs.token[b, s] == pytest.approx(expected, abs=1e-5)


# --- top-p --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.8, 0.95, 0.999])
def test_nucleus_is_the_smallest_set_that_holds_top_p(top_p: float):
    logits_BV = np.random.default_rng(0).normal(size=(64, 50)).astype(np.float32) * 3
    found_BV = np.asarray(nucleus(jax.numpy.asarray(logits_BV), top_p))
    p_BV = np.asarray(jax.nn.softmax(logits_BV), np.float64)
    for p_V, found_V in zip(p_BV, found_BV, strict=True):
        order, n = np.argsort(-p_V), int(found_V.sum())
        assert found_V[order[:n]].all()
        held = np.cumsum(p_V[order])
        assert held[n - 1] >= top_p - 1e-6 and (n == 1 or held[n - 2] < top_p + 1e-6)


def test_nucleus_keeps_ties_and_survives_saturation():
    even = nucleus(jax.numpy.zeros((1, 8)), 0.3)
    assert np.asarray(even).all()
    sure = nucleus(jax.numpy.asarray([[1e4, 0.0, -1e4]]), 0.9)
    assert np.asarray(sure).tolist() == [[True, False, False]]


def test_top_p_draws_from_the_nucleus_in_its_proportions():
    """Half and a quarter against two eighths: with 0.7 the last two are never drawn. Log-probs are those of all."""
    p = {A: 0.5, B: 0.25, MARK: 0.125, NEWLINE: 0.125}
    talk = table(-1e4, **{name: {i: float(np.log(x)) for i, x in p.items()} for name in ("A", "B", "BOS")})
    rows = [Row([BOS], [Sample("eos", 40)], i) for i in range(8)]
    tokens, logp = [], []
    for seed in range(6):
        out = to_host(Sampler(BIGRAM, 1, top_p=0.7).run(talk, even_plan(rows), EVENTS, jax.random.key(seed)))
        tokens.append(out.tokens_BS[out.kinds_BS == Kind.GENERATED])
        logp.append(out.log_probs.token[out.kinds_BS == Kind.GENERATED])
    drawn, logp = np.concatenate(tokens), np.concatenate(logp)
    assert len(drawn) == 6 * 8 * 40 and set(drawn) == {A, B}
    assert np.mean(drawn == A) == pytest.approx(2 / 3, abs=0.04)
    np.testing.assert_allclose(logp, np.log(np.where(drawn == A, 0.5, 0.25)), atol=1e-5)


def test_top_p_leaves_decisions_and_thoughts_alone():
    samples, narrow = run(), to_host(Sampler(MODEL, 4, top_p=0.5).run(weights(), even_plan(MIXTURE), EVENTS, KEY))
    assert_same_rows(row_slice(narrow, 4), samples, {b: b for b in range(4)})
    assert not np.array_equal(narrow.tokens_BS[4], samples.tokens_BS[4])  # plain text


def row_slice(samples: Samples, n: int) -> Samples:
    part = jax.tree.map(lambda x: x[:n], dataclasses.replace(samples, iterations=np.zeros(99)))
    return dataclasses.replace(part, iterations=samples.iterations)
