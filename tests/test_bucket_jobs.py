"""The jobs with gs:// for everything that a user names. Orbax, which writes past `epath`, gets the folder behind it."""

import dataclasses
import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.export import ExportConfig, export
from experiments.presets import MICRO
from ra3_jax.core import checkpoint
from ra3_jax.core.config import MeshConfig
from ra3_jax.core.errors import InputError
from ra3_jax.core.mesh import make_mesh
from ra3_jax.core.paths import cache_dir, is_remote, local_cache_dir, local_path
from ra3_jax.data.config import DataConfig
from ra3_jax.data.sources import SkipReport, documents
from ra3_jax.evals import job as evals_job
from ra3_jax.evals import journal
from ra3_jax.evals.config import EvaluateConfig
from ra3_jax.evals.journal import Journal
from ra3_jax.midtrain import job as midtrain_job
from ra3_jax.model.checkpoint import load_model
from ra3_jax.model.hf_export import export_hf
from ra3_jax.model.safetensors_io import Stored
from ra3_jax.rlvr import job as rlvr_job
from ra3_jax.rlvr.config import EvaluationConfig, RolloutConfig
from ra3_jax.tasks.sources import find
from ra3_jax.tasks.training import Part, TrainingSpec, training_tasks
from tests.bench_data import bench_file
from tests.evals.small import hf_model
from tests.model.small_models import random_params
from tests.rlvr import micro
from tests.tasks.test_training import stdio_row

ONE = MeshConfig(1, 1, 1)


@pytest.fixture(scope="module", autouse=True)
def small():
    """One device for the jobs. Much is compiled here, and little is computed."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        for job in (midtrain_job, rlvr_job):
            patch.setattr(job, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def orbax(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of gs:// in the folder that stands for it."""

    class There(checkpoint._Manager):
        def __init__(self, directory, *args, **options):
            assert is_remote(directory) and str(directory).startswith("gs://bucket/"), directory
            folder = bucket / str(directory).removeprefix("gs://")
            folder.mkdir(parents=True, exist_ok=True)
            super().__init__(folder, *args, **options)

    monkeypatch.setattr(checkpoint, "_Manager", There)


def put(bucket: Path, name: str, content: str | bytes) -> str:
    """An object of gs://bucket; returns its gs:// path."""
    path = bucket / "bucket" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"gs://bucket/{name}"


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# --- what is read


def test_a_corpus_of_every_kind_of_file(bucket):
    code = "def f(x):\n    return x + {}\n"
    put(bucket, "corpus/a.py", code.format(1))
    put(bucket, "corpus/deep/er/b.py", code.format(2))
    put(bucket, "corpus/.git/c.py", code.format(3))
    put(bucket, "corpus/site-packages/d.py", code.format(4))
    put(bucket, "corpus/notes.txt", "no code")
    put(bucket, "corpus/e.jsonl", jsonl([{"content": code.format(5)}]))
    put(bucket, "corpus/f.jsonl.gz", gzip.compress(jsonl([{"content": code.format(6)}])))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"content": [code.format(7)]}), bucket / "bucket/corpus/g.parquet")

    def read(corpus: str) -> dict[str, str]:
        found = documents(DataConfig(corpus=corpus, unit="file"), SkipReport())
        return {document.name: document.code for document in found}

    found = read("gs://bucket/corpus")
    assert found.keys() == {"a.py", "deep/er/b.py", "e.jsonl:1", "f.jsonl.gz:1", "g.parquet:1"}
    assert found == read(str(bucket / "bucket/corpus"))
    assert list(found) == list(read(str(bucket / "bucket/corpus"))), "another order"
    assert read("gs://bucket/corpus/deep/er/b.py") == {"b.py": code.format(2)}
    with pytest.raises(FileNotFoundError, match="gs://bucket/nowhere.*no such file"):
        read("gs://bucket/nowhere")


def test_benchmarks(bucket):
    put(bucket, "bench/HumanEval.jsonl.gz", bench_file("HumanEval.jsonl.gz").read_bytes())
    file = "gs://bucket/bench/HumanEval.jsonl.gz"
    for source in (find("humaneval", data_dir="gs://bucket/bench"), find("humaneval", file=file)):
        assert source.origin.known is True and source.origin.place == file
        assert next(iter(source.rows())).text("task_id") == "HumanEval/0"
    with pytest.raises(InputError, match="no mbpp.jsonl .*(.|\n)*curl (.|\n)*and copy from there to gs://bucket/bench"):
        find("mbpp", data_dir="gs://bucket/bench")


def test_training_tasks_and_the_benchmarks_kept_out_of_them(bucket, tmp_path, monkeypatch):
    """Tasks of a bucket are read once, into the local cache."""
    monkeypatch.setenv("RA3_CACHE", str(tmp_path / "cache"))
    solution = "def one():\n    return 1\n"
    evaluated = "Write the one function that everybody knows and that has no argument at all and returns one."
    item = {"task_id": "HumanEval/0", "prompt": evaluated, "canonical_solution": solution}
    put(bucket, "bench/HumanEval.jsonl", jsonl([item]))
    put(bucket, "bench/mbpp.jsonl", jsonl([{"task_id": 11, "text": "Text.", "code": solution}]))
    plus = {"task_id": "Mbpp/11", "prompt": "Plus.", "canonical_solution": solution}
    put(bucket, "bench/MbppPlus.jsonl.gz", gzip.compress(jsonl([plus])))
    rows = [*(stdio_row(i) for i in range(5)), stdio_row(5, evaluated)]
    file = put(bucket, "tasks/areal.jsonl", jsonl(rows))
    spec = TrainingSpec((Part("areal-boba-2", file=file),), held_out=1, benchmarks="gs://bucket/bench")
    tasks = training_tasks(spec)
    assert (len(tasks), len(tasks.held_out)) == (4, 1)
    assert tasks.reports[0].dropped == {"in HumanEval (13 words)": 1}
    assert len(list((tmp_path / "cache/task_rows").iterdir())) == 1
    folder = dataclasses.replace(spec, parts=(Part("areal-boba-2", data_dir="gs://bucket/tasks"),))
    assert [task.task_id for task in map(training_tasks(folder).at, range(4))] == [
        task.task_id for task in map(tasks.at, range(4))
    ]
    with pytest.raises(InputError, match="^cache gs://bucket/x: expected a local path"):
        training_tasks(dataclasses.replace(spec, cache="gs://bucket/x"))


# --- models


def test_hf_directories(bucket, tmp_path, monkeypatch, one_device_mesh):
    """In and out, in several files; an export that broke off is no model."""
    local = hf_model(tmp_path, chat=True)
    here = load_model(str(local), one_device_mesh)
    target = "gs://bucket/models/small"
    options = {"base": local, "tokenizer": local, "max_shard_bytes": 100_000}
    config = here.model.config
    assert str(export_hf(here.params, config, target, **options)) == target
    there = load_model(target, one_device_mesh)
    assert len(list((bucket / "bucket/models/small").glob("*.safetensors"))) > 2
    assert there.model == here.model and there.tokenizer.files == here.tokenizer.files
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
    with pytest.raises(FileExistsError, match="gs://bucket/models/small exists and is not empty"):
        export_hf(here.params, config, target, **options)
    eight = load_model(target, make_mesh(MeshConfig(1, 8, 1)))
    jax.tree.map(np.testing.assert_array_equal, eight.params, here.params)
    (bucket / "bucket/models/small/config.json").unlink()
    with pytest.raises(FileNotFoundError, match="gs://bucket/models/small/config.json is missing"):
        load_model(target, one_device_mesh)


def test_a_tied_head_in_a_bucket_is_compared_in_pieces(bucket, monkeypatch):
    from etils import epath
    from safetensors.numpy import save

    from ra3_jax.model.hf_import import _equal
    from ra3_jax.model.safetensors_io import read_header

    embed = np.arange(60, dtype=np.float32).reshape(10, 6)
    other = embed.copy()
    other[9, 5] += 1
    path = put(bucket, "m.safetensors", save({"a": embed, "b": embed.copy(), "c": other, "d": embed[:9]}))
    stored, read, sizes = read_header(epath.Path(path)), Stored.read, []

    def spy(self, first=0, last=None):
        sizes.append(read(self, first, last).nbytes)
        return read(self, first, last)

    monkeypatch.setattr(Stored, "read", spy)
    assert _equal(stored["a"], stored["b"], rows=4) and max(sizes) == 4 * 6 * 4
    assert not _equal(stored["a"], stored["c"], rows=4) and not _equal(stored["a"], stored["d"], rows=4)


# --- jobs


def test_evaluation(bucket, tmp_path):
    """The model, its samples, their verdicts and the results; again, everything is there already."""
    hf_model(bucket / "bucket", chat=False)
    config = EvaluateConfig(
        "puzzles", model="gs://bucket/model", max_tasks=2, max_new=8, batch=8, out="gs://bucket/runs/eval"
    )
    results = evals_job.evaluate(config)
    run = bucket / "bucket/runs/eval"
    names = {"config.json", "results.json", "report.html", "samples.jsonl", "verdicts.jsonl"}
    assert {path.name for path in run.iterdir()} == names
    assert results["summary"]["model"] == "hf gs://bucket/model" and len(results["tasks"]) == 2
    before = {name: (run / name).read_bytes() for name in names}
    assert evals_job.evaluate(config)["tasks"] == results["tasks"]
    assert {name: (run / name).read_bytes() for name in names if name != "config.json"}.items() <= before.items()
    scored = dataclasses.replace(config, model=None, samples="gs://bucket/runs/eval/samples.jsonl", out="local")
    assert evals_job.evaluate(scored)["tasks"] == results["tasks"]
    default = dataclasses.replace(scored, out=None)
    assert evals_job.out_dir(default) == "runs/evaluate-puzzles-samples"


def test_a_journal_in_a_bucket(bucket, monkeypatch):
    """Written whole, now and then and at the end, whatever ends it; a torn line and foreign rows as on a disk."""
    path, file = "gs://bucket/a/b.jsonl", bucket / "bucket/a/b.jsonl"
    with Journal(path) as first:
        first.append({"n": 1})
        assert not file.exists() or not file.read_bytes()
        monkeypatch.setattr(journal, "REMOTE_SECONDS", 0.0)
        first.append({"n": 2})
        assert file.read_bytes() == b'{"n": 1}\n{"n": 2}\n'
    monkeypatch.setattr(journal, "REMOTE_SECONDS", 1e9)
    with pytest.raises(KeyboardInterrupt), Journal(path) as second:
        assert second.rows == [{"n": 1}, {"n": 2}]
        second.append({"n": 3})
        raise KeyboardInterrupt
    assert file.read_bytes() == b'{"n": 1}\n{"n": 2}\n{"n": 3}\n'
    file.write_bytes(b'{"n": 1}\n{"n"')
    with Journal(path) as third:
        assert third.rows == [{"n": 1}]
        third.append({"n": 4})
    assert file.read_bytes() == b'{"n": 1}\n{"n": 4}\n'
    file.write_bytes(b"[]\n")
    with pytest.raises(InputError, match="gs://bucket/a/b.jsonl, line 1: found list"):
        Journal(path)


def test_mid_training_from_a_corpus_to_a_model(bucket, orbax, monkeypatch, one_device_mesh):
    """Cache of the base, run directory, report."""
    monkeypatch.setenv("RA3_CACHE", "gs://bucket/cache")
    config = dataclasses.replace(MICRO, method="ntp", out="gs://bucket/runs/mid", mesh=ONE)
    midtrain_job.run_job(config)
    run = bucket / "bucket/runs/mid"
    names = {"config.json", "model.json", "metrics.jsonl", "results.json", "summary.json", "report.html", "checkpoints"}
    assert names | {"tokenizer", "base"} <= {path.name for path in run.iterdir()}
    assert len(list((bucket / "bucket/cache/base").iterdir())) == 1
    trained = load_model(config.out, one_device_mesh)
    assert trained.origin.startswith("run gs://bucket/runs/mid step ")


def test_rlvr_from_a_run_to_a_run(bucket, orbax):
    micro.write_start("gs://bucket/runs/start", random_params(micro.MODEL.config))
    config = dataclasses.replace(
        micro.JOB, init="gs://bucket/runs/start", out="gs://bucket/runs/rlvr", steps=1, mesh=ONE,
        evaluation=EvaluationConfig(every=0, tasks=1, samples=0), rollout=RolloutConfig(2, 2, max_new=4, lanes=4),
    )  # fmt: skip
    scores = rlvr_job.run_job(config)
    run = bucket / "bucket/runs/rlvr"
    assert {"metrics.jsonl", "results.json", "samples.json", "report.html"} <= {path.name for path in run.iterdir()}
    assert [row["step"] for row in json.loads((run / "results.json").read_text())] == [s.step for s in scores]


def test_export_of_a_run(bucket, orbax, one_device_mesh):
    hf_model(bucket / "bucket", chat=False)
    export(ExportConfig(model="gs://bucket/model", out="gs://bucket/out", dtype="float32"))
    a, b = (load_model(f"gs://bucket/{name}", one_device_mesh) for name in ("model", "out"))
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


# --- what stays local


def test_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("RA3_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path == local_cache_dir()
    monkeypatch.delenv("RA3_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "ra3_jax" == local_cache_dir()
    monkeypatch.setenv("RA3_CACHE", "gs://bucket/cache")
    assert str(cache_dir()) == "gs://bucket/cache" and local_cache_dir() == Path.home() / ".cache" / "ra3_jax"


def test_what_must_be_local_says_so():
    assert local_path("~/x", "--out") == Path.home() / "x"
    with pytest.raises(InputError, match="^--out gs://bucket/x: expected a local path"):
        local_path("gs://bucket/x", "--out")
