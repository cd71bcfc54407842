"""Bounds, gains and pass rates against numpy on the very rows that were sampled."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.core.stats import pass_at_k_per_task
from ra3_jax.data.trace import Program
from ra3_jax.midtrain import evaluate as room
from ra3_jax.midtrain.config import EvaluationConfig
from ra3_jax.midtrain.evaluate import deciles, evaluate_bounds, evaluate_pass, thinking_gains
from ra3_jax.midtrain.rollouts import latents_of_rows, roll_out
from ra3_jax.policy.generate import Completion
from ra3_jax.policy.sampler import Sampler
from ra3_jax.tasks.task import CallTests, Task, TestCase
from ra3_jax.tasks.verdict import Verdict
from tests.policy import world
from tests.policy.world import EOS, EVENTS, MARK, MODEL, NEWLINE, NEWLINE_SPACE, A, B, Terms, Z, quick_compile

__all__ = ["quick_compile"]

K, MAX_NEW, SLOTS, BATCH = 4, 2, 64, 8
SHORT, LONG = ([B, NEWLINE], [A, NEWLINE], [EOS]), ([B, NEWLINE], [A, B, NEWLINE_SPACE], [A, A, NEWLINE], [EOS])
PROGRAMS = [
    world.program(*(LONG if i % 3 == 0 else SHORT), prompt=[0, *prompt], example_id=60 + i)
    for i, prompt in enumerate([[A], [B], [A, A], [B, A], [A, B]])
]
KEY = jax.random.key(8)
PI = world.params(0)
THINKING = PI | {"embed": PI["embed"].at[MARK].set(1.5 * PI["embed"][NEWLINE])}


def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def rollouts_of(program: Program, group: int) -> list[tuple[Z, ...]]:
    """The latents of one program's rollouts, in the shape that the evaluation uses."""
    out = roll_out(
        Sampler(MODEL, 2), THINKING, [program] * (BATCH // group), EVENTS, KEY, mesh(),
        group=group, max_latent_tokens=MAX_NEW, batch=BATCH, slots=SLOTS, n_lines=8,
    )  # fmt: skip
    rows = latents_of_rows(out.samples)[:group]
    return [tuple(row.get(t) for t in range(1, program.n_lines + 1)) for row in rows]


def terms_of(program: Program, latents: list[tuple[Z, ...]]) -> tuple[Terms, np.ndarray]:
    """(terms of traces by the reference, log p_LM of their code and thoughts)."""
    n = len(latents)
    traces = world.lay_out(program, latents + latents[:1] * (BATCH - n), length=SLOTS)
    logits = traces.logits(THINKING)
    terms = traces.terms(logits)
    return Terms(*(getattr(terms, f.name)[:n] for f in dataclasses.fields(terms))), traces.lm_log_probs(logits)[:n]


@pytest.mark.parametrize("alpha", [0.9, 0.4])
def test_bounds(alpha):
    """Every number of the table, from the rollouts of each program alone."""
    config = EvaluationConfig(bound_samples=K, batch=BATCH, alpha=alpha)
    seen: list[int] = []
    found = evaluate_bounds(
        Sampler(MODEL, 2), THINKING, PROGRAMS, EVENTS, KEY, mesh(), config, MAX_NEW, on_progress=seen.append
    )  # fmt: skip
    assert sum(seen) == len(PROGRAMS)
    nll, elbo, iwae, kl = [], [], [], []
    thoughts, words, entropy = 0, 0, 0.0
    for program in PROGRAMS:
        rows = rollouts_of(program, K)
        terms, _ = terms_of(program, rows)
        log_w = terms.action.sum(1)
        elbo.append(-log_w.mean())
        iwae.append(-np.log(np.mean(np.exp(log_w))))
        # NLL of the plain program is the language model's own: no mask, no event
        _, lm = terms_of(program, [(None,) * program.n_lines])
        nll.append(-lm.sum())
        act = np.exp(terms.log_act)
        kl.append(act * np.log(act / alpha) + (1 - act) * np.log((1 - act) / (1 - alpha)))
        flat = [z for row in rows for z in row if z is not None]
        thoughts, words = thoughts + len(flat), words + sum(len(z.ids) for z in flat)
        entropy -= terms.rationale.sum()
    tokens = np.array([p.code_tokens for p in PROGRAMS], float)
    lines = sum(p.n_lines for p in PROGRAMS) * K
    assert thoughts > 5
    for estimate, nats in ((found.nll, nll), (found.elbo, elbo), (found.iwae, iwae)):
        nats = np.array(nats)
        mean = nats.sum() / tokens.sum()
        assert estimate.mean == pytest.approx(mean, abs=1e-5)
        # delta method: the standard error of a ratio of sums
        residual = nats - mean * tokens
        se = np.sqrt((residual**2).sum() / (len(nats) - 1) / len(nats)) / tokens.mean()
        assert estimate.se == pytest.approx(se, rel=1e-3) and estimate.n == len(PROGRAMS)
    better = nll if np.sum(nll) < np.sum(iwae) else iwae
    assert found.best.mean == pytest.approx(np.sum(better) / tokens.sum(), abs=1e-5)
    assert found.best_per_byte == pytest.approx(np.sum(better) / sum(p.code_bytes for p in PROGRAMS), abs=1e-5)
    assert found.iwae.mean <= found.elbo.mean
    assert found.think_rate == pytest.approx(thoughts / lines)
    assert found.mean_len == pytest.approx(words / thoughts)
    assert found.decision_kl == pytest.approx(np.concatenate([x.ravel() for x in kl]).mean(), abs=1e-4)
    assert found.rationale_entropy == pytest.approx(entropy / thoughts, abs=1e-4)
    assert 0 <= found.mismatch_mean <= found.mismatch_max < 1e-4  # 0 where both forwards round alike
    assert (found.samples, found.programs) == (K, len(PROGRAMS))


def test_mismatch_sees_other_weights():
    rollouts = roll_out(
        Sampler(MODEL, 2), THINKING, PROGRAMS[:2], EVENTS, KEY, mesh(),
        group=4, max_latent_tokens=MAX_NEW, batch=BATCH, slots=SLOTS, n_lines=8,
    )  # fmt: skip
    most, mean = room._mismatch(Sampler(MODEL, 2), PI, rollouts, EVENTS, 8)
    assert most > mean > 1e-3


def test_bounds_do_not_depend_on_the_batch():
    one, other = (
        evaluate_bounds(
            Sampler(MODEL, 2), THINKING, programs, EVENTS, KEY, mesh(),
            EvaluationConfig(bound_samples=K, batch=BATCH), MAX_NEW,
        )
        for programs in (PROGRAMS, PROGRAMS[::-1])
    )  # fmt: skip
    for name in ("nll", "elbo", "iwae"):
        assert getattr(one, name).mean == pytest.approx(getattr(other, name).mean, abs=1e-6)


@pytest.mark.parametrize("horizon", [1, 3])
def test_thinking_gains(horizon):
    """Each thought: log p of the next T lines with it, minus without it, all other thoughts staying."""
    found = thinking_gains(
        Sampler(MODEL, 2), THINKING, PROGRAMS, EVENTS, KEY, mesh(),
        max_latent_tokens=MAX_NEW, horizon=horizon, batch=BATCH,
    )  # fmt: skip
    expected = []
    for program in PROGRAMS:
        (row,) = rollouts_of(program, 1)
        for t, z in enumerate(row):
            if z is not None:
                without = (*row[:t], None, *row[t + 1 :])
                terms, _ = terms_of(program, [row, without])
                ahead = terms.action[:, t : t + horizon].sum(1)
                expected.append(ahead[0] - ahead[1])
    assert len(expected) >= 2
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=3e-5)


def test_no_thought_has_no_gain():
    silent = PI | {"embed": PI["embed"].at[MARK].set(-50 * PI["embed"][NEWLINE])}
    found = thinking_gains(
        Sampler(MODEL, 2, temperature=0.0), silent, PROGRAMS[1:2], EVENTS, KEY, mesh(),
        max_latent_tokens=MAX_NEW, horizon=1, batch=BATCH,
    )  # fmt: skip
    assert found.shape == (0,)


def test_deciles():
    gains = np.random.default_rng(0).permutation(np.arange(40.0))
    assert deciles(gains) == [1.5 + 4 * i for i in range(10)]
    assert deciles(np.zeros(0)) == []
    few = deciles(np.array([3.0, 1.0, 2.0]))
    assert few[:3] == [1.0, 2.0, 3.0] and np.isnan(few[3:]).all() and len(few) == 10


# --- pass rates, sampling and grading being made up ------------------------------------------------------

TASKS = [Task(f"t{i}", f"def f{i}():\n", CallTests(f"f{i}", (TestCase((), i),)), "here") for i in range(3)]


class Texts:
    """What `evaluate_pass` needs of a codec."""

    def prompt_ids(self, prompt: str) -> np.ndarray:
        return np.array([0, len(prompt)])

    def decode(self, ids) -> str:
        return f"text {ids[0]}"


def pass_rates(monkeypatch, statuses: list[str], samples: int):
    """Sample k of task i is the text "text {i * samples + k}" and gets the status of that number."""
    graded: list[Any] = []

    def generate(sampler, params, prompts, *args, samples: int, max_new: int, batch: int, on_progress):
        assert [p.example_id for p in prompts] == list(range(len(prompts)))
        ids = [[i * samples + k for k in range(samples)] for i in range(len(prompts))]
        return [[Completion((n, 0), n % 2 == 0) for n in group] for group in ids]

    def grade(tasks, texts):
        graded.extend(zip(tasks, texts, strict=True))
        return [Verdict(statuses[int(text.split()[1])], 0, 1) for text in texts]  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(room, "generate", generate)
    monkeypatch.setattr(room, "grade", grade)
    config = EvaluationConfig(samples=samples, max_new_tokens=9, batch=4)
    codec: Any = Texts()
    rates = evaluate_pass(Sampler(MODEL), None, TASKS, codec, EVENTS, KEY, mesh(), config)
    expected = [(task, f"text {i * samples + k}") for i, task in enumerate(TASKS) for k in range(samples)]
    assert graded == expected
    return rates


def test_pass_rates_are_over_tasks(monkeypatch):
    statuses = ["pass", "fail"] * 4 + ["fail", "error"] * 4 + ["pass"] * 8
    rates = pass_rates(monkeypatch, statuses, 8)
    assert sorted(rates.pass_at) == [1, 4, 8]
    for k, estimate in rates.pass_at.items():
        assert estimate.mean == pytest.approx(pass_at_k_per_task([8] * 3, [4, 0, 8], k).mean())
        assert estimate.n == 3
    assert rates.pass_at[1].mean == pytest.approx(0.5)
    assert (rates.tasks, rates.samples, rates.invalid, rates.unfinished) == (3, 8, 0, 0.5)
    assert rates.tokens_per_sample == 2.0
    assert rates.examples == tuple(f"def f{i}():\ntext {8 * i}" for i in range(3))


def test_what_could_not_be_judged_is_left_out(monkeypatch):
    """An infrastructure failure is no failure of the program."""
    statuses = ["pass", "infra", "fail", "pass"] + ["pass"] * 4 + ["fail"] * 4
    rates = pass_rates(monkeypatch, statuses, 4)
    assert rates.invalid == 1
    assert rates.pass_at[1].mean == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert rates.pass_at[4].n == 2 and rates.pass_at[4].mean == pytest.approx(0.5)
    with pytest.raises(RuntimeError, match="none of 12 samples could be judged"):
        pass_rates(monkeypatch, ["infra"] * 12, 4)
