"""Plain generation: the completions are the language model's own, in order, whatever the batch."""

import jax
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.policy.generate import Prompt, generate
from ra3_jax.policy.sampler import Sampler
from tests.policy import world
from tests.policy.world import BIGRAM, BOS, EOS, EVENTS, MODEL, A, B, full_logits, quick_compile, table

__all__ = ["quick_compile"]

PROMPTS = [Prompt(np.array(ids, np.int32), i) for i, ids in enumerate([[BOS, A], [BOS, B, B], [BOS], [BOS, A, B, A]])]
KEY = jax.random.key(5)


def draw(model, params, *, samples=2, max_new=6, batch=8, prompts=PROMPTS, on_progress=None):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return generate(
        Sampler(model), params, prompts, EVENTS, KEY, mesh,
        samples=samples, max_new=max_new, batch=batch, on_progress=on_progress,
    )  # fmt: skip


def test_completions_are_scored_by_the_language_model():
    seen = []
    out = draw(MODEL, world.params(0), on_progress=seen.append)
    assert seen == [4]
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
    steps: list[int] = []
    pieces = draw(MODEL, world.params(0), batch=3, on_progress=steps.append)  # one prompt of two samples at a time
    assert steps == [1] * 4
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
