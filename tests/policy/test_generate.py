"""Plain generation: the completions are the language model's own, in order, whatever the batch."""

import jax
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.policy import generate as generation
from ra3_jax.policy import sampler as sampling
from ra3_jax.policy.generate import Completion, Prompt, Request, Stops, generate, stream
from ra3_jax.policy.sampler import Sampler
from tests.policy import world
from tests.policy.world import BIGRAM, BOS, EOS, EVENTS, MARK, MODEL, NEWLINE, A, B, full_logits, quick_compile, table

__all__ = ["quick_compile"]

PROMPTS = [Prompt(np.array(ids, np.int32), i) for i, ids in enumerate([[BOS, A], [BOS, B, B], [BOS], [BOS, A, B, A]])]
KEY = jax.random.key(5)
NO_STOPS = Stops()


def one_device():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def draw(model, params, *, samples=2, max_new=6, batch=8, prompts=PROMPTS, stops=NO_STOPS, on_progress=None):
    return generate(
        Sampler(model), params, prompts, EVENTS, KEY, one_device(),
        samples=samples, max_new=max_new, batch=batch, stops=stops, on_progress=on_progress,
    )  # fmt: skip


def test_completions_are_scored_by_the_language_model():
    seen = []
    out = draw(MODEL, world.params(0), on_progress=seen.append)
    assert seen == [1] * 4
    assert [len(group) for group in out] == [2] * 4
    finished = []
    for prompt, group in zip(PROMPTS, out, strict=True):
        for completion in group:
            ids = [*prompt.ids, *completion.ids, *([EOS] if completion.finished else [])]
            n = len(ids) - len(prompt.ids)
            assert 1 <= n <= 6 and EOS not in completion.ids
            assert completion.finished or n == 6
            tokens = np.zeros((1, 16), np.int32)
            tokens[0, : len(ids)] = ids
            positions = np.arange(16, dtype=np.int32)[None]
            logits = np.asarray(full_logits(MODEL, world.params(0), tokens, positions, np.ones_like(tokens)))[0]
            logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected = sum(logp[i - 1, ids[i]] for i in range(len(prompt.ids), len(ids)))
            assert completion.logp == pytest.approx(expected, abs=2e-5)
            finished.append(completion.finished)
    assert True in finished and False in finished


def test_batches_do_not_matter():
    whole = draw(MODEL, world.params(0))
    pieces = draw(MODEL, world.params(0), batch=3)
    for one, other in zip(whole, pieces, strict=True):
        assert [c.ids for c in one] == [c.ids for c in other]
        np.testing.assert_allclose([c.logp for c in one], [c.logp for c in other], atol=1e-5)
    turned = draw(MODEL, world.params(0), prompts=PROMPTS[::-1])[::-1]
    assert [[c.ids for c in g] for g in turned] == [[c.ids for c in g] for g in whole]
    assert whole[0][0].ids != whole[0][1].ids


def test_the_id_of_an_example_names_its_randomness():
    prompts = [Prompt(PROMPTS[2].ids, i) for i in (7, 8, 7)]
    one, other, again = draw(MODEL, world.params(0), prompts=prompts, max_new=30)
    assert [c.ids for c in one] == [c.ids for c in again] != [c.ids for c in other]


def test_end_of_text_is_left_out():
    talk = table(A={B: 1e4}, B={EOS: 1e4}, BOS={A: 1e4})
    out = draw(BIGRAM, talk)
    assert [group[0].ids for group in out] == [(B,), (), (A, B), (B,)]
    assert all(c.finished for group in out for c in group)
    exactly = draw(BIGRAM, talk, max_new=3)  # end-of-text is the last token that there was room for
    assert exactly[2][0].ids == (A, B) and exactly[2][0].finished
    cut = draw(BIGRAM, table(A={B: 1e4}, B={A: 1e4}, BOS={A: 1e4}))
    assert cut[2][1].ids == (A, B, A, B, A, B) and not cut[2][1].finished
    assert cut[2][1].logp == pytest.approx(0.0, abs=1e-5)


# --- stop strings -------------------------------------------------------------------------------------

LETTERS = {MARK: "#", NEWLINE: "\n", A: "a", B: "b"}


def text_of(ids) -> str:
    return "".join(LETTERS.get(i, "") for i in ids)


def stopped(completion: Completion, strings: tuple[str, ...], stop_ids=frozenset()) -> tuple[int, ...]:
    """By brute force: the ids up to the token that completes a stop string, or before a stop id."""
    for n in range(len(completion.ids) + 1):
        if any(stop in text_of(completion.ids[:n]) for stop in strings):
            return completion.ids[:n]
        if n < len(completion.ids) and completion.ids[n] in stop_ids:
            return completion.ids[:n]
    return completion.ids


def test_a_completion_ends_with_the_token_that_completes_a_stop_string():
    """Whatever the pauses and lanes: the same tokens as without stops, up to there."""
    strings, words = ("\n#", "ab", "bb#"), frozenset({world.MARKS})
    plain = draw(MODEL, world.params(0), max_new=24, samples=4)
    stops = Stops(strings, words, text_of)
    found = draw(MODEL, world.params(0), max_new=24, samples=4, batch=3, stops=stops)
    cut = 0
    for one, other in zip(sum(found, []), sum(plain, []), strict=True):
        assert one.ids == stopped(other, strings, words)
        shorter = one.ids != other.ids
        assert one.finished == (shorter or other.finished or any(s in text_of(one.ids) for s in strings))
        assert one.logp >= other.logp - 1e-5
        cut += shorter
    assert cut >= 4


@pytest.mark.parametrize("pause", [1, 5])
def test_pauses_do_not_matter(monkeypatch, pause: int):
    stops = Stops(("ab",), frozenset(), text_of)
    expected = draw(MODEL, world.params(0), max_new=24, stops=stops)
    monkeypatch.setattr(generation, "PAUSE", pause)
    found = draw(MODEL, world.params(0), max_new=24, stops=stops)
    assert [[c.ids for c in g] for g in found] == [[c.ids for c in g] for g in expected]


def test_length_of_stops():
    stops = Stops(("aba",), frozenset({EOS}), text_of)
    assert stops.length([A, B, B, A]) is None
    assert stops.length([B, A, B, A, B, EOS]) == (4, 4)
    assert stops.length([B, EOS, A, B, A]) == (2, 1)
    assert stops.length([]) is None
    assert Stops().length([A, EOS]) is None
    with pytest.raises(ValueError, match="decode"):
        Stops(("x",))


# --- lanes --------------------------------------------------------------------------------------------


def test_a_long_completion_holds_back_one_lane_only(monkeypatch):
    """Every fourth prompt goes on for 96 tokens, the others end at once; in batches of four, all would wait for it."""
    talk = table(A={B: 1e4}, B={A: 1e4}, BOS={EOS: 1e4})
    ids = [[BOS, A] if i % 4 == 0 else [BOS] for i in range(40)]
    requests = [Request(Prompt(np.array(x, np.int32), i), 0) for i, x in enumerate(ids)]
    states = []
    advance = Sampler.advance
    monkeypatch.setattr(Sampler, "advance", lambda *args: states.append(advance(*args)) or states[-1])
    monkeypatch.setattr(generation, "PAUSE", 8)
    found = dict(stream(Sampler(BIGRAM), talk, requests, EVENTS, KEY, one_device(), max_new=96, batch=4))
    assert sorted(found) == list(range(40))
    assert [len(found[i].ids) for i in range(40)] == [96 if i % 4 == 0 else 0 for i in range(40)]
    in_batches, at_best = 10 * 97, 10 * 97 / 4
    assert at_best <= int(states[-1].samples.iterations) < 0.5 * in_batches


def test_three_programs_whatever_is_asked():
    """Prompts of any length below 64, any number of requests above the lanes, any stops: nothing is compiled again."""

    def programs() -> list[int]:
        return [f._cache_size() for f in (sampling._idle, sampling._admit, sampling._advance)]  # pyright: ignore

    def some(text: str) -> Stops:
        return Stops((text,), frozenset(), text_of)

    draw(MODEL, world.params(0), samples=3, batch=4, max_new=7, stops=some("zz"))
    before = programs()
    prompts = [Prompt(np.array([BOS] + [A] * (i % 7), np.int32), i) for i in range(9)]
    assert len(draw(MODEL, world.params(0), samples=3, batch=4, max_new=7, prompts=prompts, stops=some("a"))) == 9
    assert programs() == before and min(before) >= 1


def test_nothing_to_generate():
    assert draw(MODEL, world.params(0), prompts=[]) == []
