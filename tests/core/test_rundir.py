import dataclasses
import enum
import json
import pathlib

import pytest

from ra3_jax.core import rundir
from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.rundir import RunDir, RunDirError, open_run


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "a"
    inner: Inner = Inner()
    log_every: int = 10
    color: Color = Color.RED
    path: pathlib.Path | None = None


def save(run: RunDir, *steps: int) -> None:
    checkpoints = Checkpoints(run.checkpoints, keep=None)
    for step in steps:
        checkpoints.save(step, {"w": 1.0 * step}, {})
    checkpoints.close()


def test_fresh_run_records_config_and_environment(tmp_path):
    run, start = open_run(tmp_path / "run", Config(path=pathlib.Path("x")))
    assert start is None
    saved = json.loads(run.config.read_text())
    assert saved["config"] == {
        "name": "a",
        "inner": {"lr": 0.1, "betas": [0.9, 0.95]},
        "log_every": 10,
        "color": "RED",
        "path": "x",
    }
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(saved["versions"])
    assert saved["device"]["platform"] == "cpu" and saved["device"]["count"] == 8
    assert run.read_config() == saved["config"]


def test_resume_auto_never_step(tmp_path):
    run, _ = open_run(tmp_path, Config())
    assert open_run(tmp_path, Config())[1] is None  # no checkpoint yet: afresh
    assert open_run(tmp_path, Config(), resume="never")[1] is None
    save(run, 3, 6)
    assert open_run(tmp_path, Config())[1] == 6
    assert open_run(tmp_path, Config(), resume="3")[1] == 3
    with pytest.raises(RunDirError, match=r"steps \[3, 6\].*never will not overwrite"):
        open_run(tmp_path, Config(), resume="never")
    with pytest.raises(RunDirError, match=r"--resume 4: .*it has \[3, 6\]"):
        open_run(tmp_path, Config(), resume="4")
    with pytest.raises(RunDirError, match="'yes': expected auto, never, or"):
        open_run(tmp_path, Config(), resume="yes")


def test_resume_refuses_another_config_field_by_field(tmp_path):
    run, _ = open_run(tmp_path, Config())
    save(run, 1)
    other = Config(name="b", inner=Inner(lr=0.2), log_every=5)
    with pytest.raises(RunDirError) as error:
        open_run(tmp_path, other, ignore={"log_every"})
    lines = str(error.value).splitlines()
    assert lines[1:3] == ['  name: "a" -> "b"', "  inner.lr: 0.1 -> 0.2"]
    assert "log_every" not in str(error.value)
    assert run.read_config()["name"] == "a"  # a refused run leaves the directory as it was
    assert open_run(tmp_path, other, ignore={"log_every", "name", "inner"})[1] == 1
    assert run.read_config()["inner"]["lr"] == 0.2


def test_config_fields_that_came_or_went_are_differences():
    differences = rundir.config_differences({"a": 1, "c": {"d": 2}}, {"a": 1, "b": {}, "c": None})
    assert differences == ["c.d: 2 -> (absent)", "b: (absent) -> {}", "c: (absent) -> null"]
    assert rundir.config_differences({"ab": 1}, {"ab": 2}, {"a"}) == ["ab: 1 -> 2"]


def test_artifacts_belong_to_the_whole_run(tmp_path):
    run = RunDir.at(tmp_path)
    files = {"model.json": "{}", "tokenizer/tokenizer.json": b"\x00\xff"}
    run.save_artifacts(files)
    run.save_artifacts(files)  # a resumed run
    assert run.artifact("tokenizer/tokenizer.json") == b"\x00\xff"
    run.save_artifacts({"model.json": "{1}"})  # nothing depends on it yet
    save(run, 1)
    with pytest.raises(RunDirError, match="model.json differs"):
        run.save_artifacts(files)
    assert run.artifact("model.json") == b"{1}"
    with pytest.raises(RunDirError, match="has no other.json"):
        run.artifact("other.json")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    run = RunDir.at(tmp_path)
    run.write("summary.json", "old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rundir.os, "fsync", full)
    with pytest.raises(RunDirError, match="cannot write .*summary.json.*No space left"):
        run.write("summary.json", "new")
    assert run.summary.read_text() == "old"
    with pytest.raises(RunDirError, match="No space left"):
        open_run(tmp_path / "run", Config())


def test_unusable_place_is_refused_before_work_starts(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirError, match="cannot write .*file/run"):
        open_run(tmp_path / "file" / "run", Config())
    with pytest.raises(RunDirError, match="GiB are needed"):
        open_run(tmp_path / "run", Config(), need_bytes=1 << 60)
    assert not (tmp_path / "run" / "config.json").exists()


def test_config_values_that_json_cannot_hold_are_refused():
    with pytest.raises(TypeError, match="type set"):
        rundir.to_json({"a": {1, 2}})


def test_git_revision_never_fails():
    revision = rundir.git_revision()
    assert revision is None or len(revision.removesuffix("+changes")) == 40
