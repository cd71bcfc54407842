"""The whole job at `micro`: what it writes, that it goes on, and what bad input says before anything is compiled."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.export import ExportConfig, export
from experiments.plan import plan_lines
from experiments.presets import MICRO, PRESETS
from ra3_jax.core.errors import InputError
from ra3_jax.core.rundir import RunDirError
from ra3_jax.midtrain.job import prepare, run_job
from ra3_jax.midtrain.measure import Row
from ra3_jax.model.checkpoint import load_model


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The base is trained into a cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RA3_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def micro(tmp_path, **changes):
    return dataclasses.replace(MICRO, out=str(tmp_path / "run"), **changes)


def test_micro_end_to_end(tmp_path, one_device_mesh, capsys):
    config = micro(tmp_path)
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=8))
    rows = run_job(config)
    assert [row.name for row in rows] == ["base", "ntp equal steps", "ra3 round 1", "ra3 round 2"]
    out = capsys.readouterr().out
    for text in ("gate", "round 2: think rate", "pass@1", "def f( xs ):", "report:"):
        assert text in out
    run = tmp_path / "run"
    files = ("config.json", "model.json", "tokenizer/tokenizer.json", "metrics.jsonl", "summary.json", "report.html")
    for name in files:
        assert (run / name).stat().st_size > 0, name
    summary = json.loads((run / "summary.json").read_text())
    assert [Row.from_json(r) for r in summary["rows"]] == rows
    for row in rows:
        assert row.passes is not None and 0 <= row.passes.pass_at[1].mean <= 1
        assert row.bounds.best.mean <= row.bounds.nll.mean + 1e-9
        assert row.bounds.mismatch_max < 1e-4
    ra3, ntp = rows[-1], rows[1]
    assert ntp.updates == ra3.updates  # equal M-step steps
    assert ra3.compute.units > ntp.compute.units > 0

    # Later stages read the run directory alone; onto another mesh too.
    loaded = load_model(str(run), one_device_mesh)
    assert loaded.model.config.d_model == config.base.d_model
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(loaded.params))

    # The same command again measures and trains nothing.
    again = run_job(config)
    assert again == rows
    assert "step" not in capsys.readouterr().out.split("gate")[-1].split("def f")[0]

    with pytest.raises(InputError, match="key_shift"):
        export(ExportConfig(model=str(run), out=str(tmp_path / "hf")))


def test_policy_gradient_and_ntp_alone(tmp_path):
    estep = dataclasses.replace(MICRO.estep, method="policy_gradient")
    config = micro(tmp_path, estep=estep, ntp=dataclasses.replace(MICRO.ntp, compare=False))
    rows = run_job(config)
    assert [row.name for row in rows] == ["base", "ra3 round 1", "ra3 round 2"]
    phases = [json.loads(x)["phase"] for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert phases.count("estep") == config.em.rounds * config.estep.updates

    alone = micro(tmp_path / "ntp", method="ntp")
    rows = run_job(alone)
    assert [row.name for row in rows] == ["base", "ntp"]
    assert rows[-1].updates > 0


def small_module(path, n=12):
    """A module of `n` functions that differ."""
    function = 'def f{i}(x):\n    """Add {i}."""\n    # add\n    y = x + {i}\n    return y * {i}\n\n\n'
    path.write_text("".join(function.format(i=i) for i in range(n)))
    return path


def test_a_corpus_of_python_files(tmp_path, capsys):
    """Real files: gains by decile in the place of gates, no tasks, broken files counted."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    small_module(corpus / "good.py", 40)
    (corpus / "broken.py").write_text("def f(:\n")
    (corpus / "binary.py").write_bytes(bytes(range(256)))
    data = dataclasses.replace(MICRO.data, corpus=str(corpus), held_out=0.4)
    config = micro(tmp_path, data=data, tokenizer="stdlib", ntp=dataclasses.replace(MICRO.ntp, compare=False))
    rows = run_job(config)
    assert rows[-1].passes is None and rows[-1].bounds.programs >= 1
    out = capsys.readouterr().out
    assert "not Python" in out and "binary" in out and "gate passed" not in out and "gate FAILED" not in out


BAD = {
    "missing corpus": (dict(data=dataclasses.replace(MICRO.data, corpus="nowhere/at/all")), "nowhere/at/all"),
    "missing model": (dict(model="no-such-model"), "no-such-model"),
    "unknown tokenizer": (dict(tokenizer="poems"), "poems"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_explained(name, tmp_path, one_device_mesh):
    changes, expected = BAD[name]
    with pytest.raises(InputError, match=expected):
        prepare(micro(tmp_path, **changes), one_device_mesh)


def test_empty_corpus_is_explained(tmp_path, one_device_mesh):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/only.py").write_text("x = (\n")
    data = dataclasses.replace(MICRO.data, corpus=str(tmp_path / "corpus"))
    with pytest.raises(InputError, match="empty"):
        prepare(micro(tmp_path, data=data), one_device_mesh)


def test_another_config_is_refused_on_resume(tmp_path, one_device_mesh):
    config = micro(tmp_path, ntp=dataclasses.replace(MICRO.ntp, compare=False))
    run_job(config)
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(RunDirError, match="seed: 0 -> 1"):
        run_job(other)
    more = dataclasses.replace(config.evaluation, samples=4)  # rows measured before would not be comparable
    with pytest.raises(RunDirError, match="evaluation.samples: 2 -> 4"):
        run_job(dataclasses.replace(config, evaluation=more))
    with pytest.raises(RunDirError, match="holds checkpoints"):
        run_job(dataclasses.replace(config, resume="never"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_plan(preset):
    lines = dict(plan_lines(preset, PRESETS[preset]))
    assert {"model", "memory", "update", "files"} <= lines.keys()
    assert "weights" in lines["model"]


def test_hf_directory_in_and_out(tmp_path, one_device_mesh):
    """`--model DIR` mid-trains an HF checkpoint, and export writes one that loads with the trained weights."""
    from ra3_jax.data.tokenizer import load_tokenizer
    from ra3_jax.model.config import tiny
    from ra3_jax.model.hf_export import export_hf
    from ra3_jax.model.language_model import LanguageModel

    tokenizer = load_tokenizer("puzzles")
    files = tmp_path / "tokenizer"
    files.mkdir()
    for name, data in tokenizer.files.items():
        (files / name).write_bytes(data)
    small = dataclasses.replace(tiny(tokenizer.size, d_model=16, n_layers=1, n_heads=2), key_shift=False)
    params = jax.jit(LanguageModel(small).init)(jax.random.key(0))
    source = export_hf(params, small, tmp_path / "hf", tokenizer=files, bos_token_id=1, eos_token_id=2)

    mesh = dataclasses.replace(MICRO.mesh, data=8, fsdp=1)
    config = micro(tmp_path, model=str(source), ntp=dataclasses.replace(MICRO.ntp, compare=False), mesh=mesh)
    run_job(config)
    out = tmp_path / "out"
    export(ExportConfig(model=config.out, out=str(out), dtype="float32"))
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert (out / "tokenizer.json").read_bytes() == tokenizer.files["tokenizer.json"]
    trained, exported = load_model(config.out, one_device_mesh), load_model(str(out), one_device_mesh)
    jax.tree.map(np.testing.assert_array_equal, trained.params, exported.params)
    assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 0 for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(exported.params), strict=True))  # fmt: skip


def test_batches_that_cannot_be_cut_are_refused_at_once(tmp_path, one_device_mesh):
    from ra3_jax.core.config import MeshConfig
    from ra3_jax.core.mesh import make_mesh

    eight = make_mesh(MeshConfig(data=8, fsdp=1))
    with pytest.raises(InputError, match="rollout_batch is 12.*8 devices"):
        prepare(micro(tmp_path, rollout_batch=12), eight)
    with pytest.raises(InputError, match="rollout_batch is 15: .* multiple of 2"):
        prepare(micro(tmp_path, rollout_batch=15), one_device_mesh)
    kept = dataclasses.replace(MICRO.data, comments="keep")
    with pytest.raises(InputError, match="comments=keep"):
        prepare(micro(tmp_path, data=kept), one_device_mesh)
