"""What inspection shows, against probabilities computed from the logits of the very same ids."""

import types
from typing import Any

import jax
import numpy as np
import pytest

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.errors import InputError
from ra3_jax.core.rundir import RunDir
from ra3_jax.data.lines import DataError
from ra3_jax.midtrain.elbo import iwae_bound
from ra3_jax.midtrain.inspection import Inspection, Inspector, Line, Thought, inspect_program, read_source
from ra3_jax.midtrain.rollouts import latents_of_rows, roll_out
from ra3_jax.model.checkpoint import save_model_artifacts
from ra3_jax.policy.sampler import Sampler
from tests.core.test_report import HOSTILE
from tests.midtrain.micro import CODEC, thinking_params
from tests.midtrain.micro import MODEL as MICRO_MODEL
from tests.policy import world
from tests.policy.world import EVENTS, MARK, MODEL, NEWLINE, quick_compile

__all__ = ["quick_compile"]

K, MAX_NEW = 8, 2
PI = world.params(0)
THINKING = PI | {"embed": PI["embed"].at[MARK].set(1.5 * PI["embed"][NEWLINE])}
NAMES = ["<bos>", "<eos>", "#", "\n", "a", "b", "##", "\n ", "\r", "?"]
TEXTS: Any = types.SimpleNamespace(decode=lambda ids: "".join(NAMES[int(i)] for i in ids))


@pytest.mark.parametrize("horizon", [1, 2])
def test_numbers_are_those_of_the_scored_ids(horizon, one_device_mesh):
    """Probabilities, costs, gains and bounds of a program of three lines, from float64 softmaxes of the rollouts."""
    key, program = jax.random.key(5), world.THREE
    sampler = Sampler(MODEL, 2)
    found = inspect_program(
        sampler, THINKING, program, TEXTS, EVENTS, key, one_device_mesh,
        samples=K, horizon=horizon, max_latent_tokens=MAX_NEW,
    )  # fmt: skip
    out = roll_out(
        sampler, THINKING, [program], EVENTS, key, one_device_mesh,
        group=K, max_latent_tokens=MAX_NEW, batch=K, slots=64,
    )  # fmt: skip
    rows = [tuple(row.get(t) for t in range(1, 4)) for row in latents_of_rows(out.samples)]

    def terms(latents):
        traces = world.lay_out(program, [*latents, *latents[:1] * (K - len(latents))])
        return traces.terms(traces.logits(THINKING))

    exact = terms(rows)
    np.testing.assert_allclose([x.think for x in found.lines], (1 - np.exp(exact.log_act)).mean(0), atol=1e-5)
    np.testing.assert_allclose([x.nats for x in found.lines], -exact.action.mean(0), atol=1e-5)
    assert found.iwae == pytest.approx(-float(iwae_bound(exact.action.sum(1)[None])[0]), abs=1e-5)
    silent = terms([(None,) * 3])
    assert found.nll == pytest.approx(-(silent.action + silent.decision)[0].sum(), abs=1e-5)

    expected: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        for t, z in enumerate(row):
            if z is not None:
                pair = terms([row, (*row[:t], None, *row[t + 1 :])]).action[:, t : t + horizon].sum(1)
                text = TEXTS.decode(z.ids).strip() + ("..." if z.cut else "")
                expected.setdefault((t, text), []).append(pair[0] - pair[1])
    thoughts = {(t, x.text): x for t, line in enumerate(found.lines) for x in line.thoughts}
    assert thoughts.keys() == expected.keys() and len(expected) >= 3
    for place, gains in expected.items():
        assert thoughts[place].rollouts == len(gains)
        assert thoughts[place].gain == pytest.approx(np.mean(gains), abs=3e-5)


def test_pasted_code():
    """Of a function alone the signature is the prompt; what the lines are does not depend on comments."""
    function = 'def f( xs ):\n    """ a sort up; order 1st a """\n    # now\n    out = xs\n    return out'
    program = read_source("\n" + function + "\n\n", CODEC)
    assert CODEC.decode(program.prompt_ids) == 'def f( xs ):\n    """ a sort up; order 1st a """\n'
    assert [CODEC.decode(x) for x in program.lines] == ["    out = xs\n", "    return out\n", ""]
    script = read_source("xs = []\n" + function, CODEC)
    assert CODEC.decode(script.prompt_ids) == "" and script.n_lines == 1 + 4 + 1
    with pytest.raises(DataError, match="not Python"):
        read_source("def f(:", CODEC)
    with pytest.raises(DataError, match="no line of code"):
        read_source("# nothing\n", CODEC)


@pytest.fixture
def run(tmp_path, one_device_mesh):
    """A run directory with a checkpoint that thinks now and then."""
    run = RunDir.at(tmp_path)
    save_model_artifacts(run, MICRO_MODEL.config, CODEC.tokenizer)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(3, {"params": thinking_params()}, {})
    return run


def test_inspector_of_a_run(run):
    inspector = Inspector.load(str(run.path))  # onto all devices there are
    found = inspector("def f( xs ):\n    out = xs[ : 4 ]\n    return out\n", samples=3, max_latent_tokens=4)
    assert found.name == f"run {run.path} step 3"
    assert [line.text for line in found.lines] == ["    out = xs[ : 4 ]", "    return out", ""]
    for line in found.lines:
        assert 0 < line.think < 1 and sum(x.rollouts for x in line.thoughts) <= 3
    assert found == inspector("def f( xs ):\n    out = xs[ : 4 ]\n    return out", samples=3, max_latent_tokens=4)
    with pytest.raises(InputError, match="not Python"):
        inspector("return (")
    with pytest.raises(InputError, match="the model has room for"):
        inspector("x = 1\n" * 400)
    with pytest.raises(InputError, match="nowhere"):
        Inspector.load(str(run.path / "nowhere"))


def test_html_shows_everything_and_escapes_it():
    thoughts = tuple(Thought(f"{HOSTILE} {i}", 6 - i, 1.5 - i) for i in range(6))
    lines = (Line(f"x = {HOSTILE!r}", 0.25, 3.0, thoughts), Line("", 0.0, 0.5, ()))
    html = Inspection(HOSTILE, f"# {HOSTILE}\n", lines, 21, 3, 9.0, 8.0)._repr_html_()
    assert "<script" not in html and "<img" not in html and "&lt;" in html
    for text in (
        "25%",
        "3.00",
        "6 of 21, +1.50 nats",
        "3 of 21, -1.50 nats",
        "and 2 more",
        "9.00",
        "8.00",
    ):
        assert text in html, text
    assert html.count("<tr>") == html.count("</tr>") == 4
