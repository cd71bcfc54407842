"""A run that was stopped, or killed, and goes on ends as an undisturbed one: bit for bit."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from ra3_jax.core.checkpoint import CheckpointError, list_steps
from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.core.metrics import read_metrics
from ra3_jax.core.rundir import RunDir
from ra3_jax.model.checkpoint import load_model, save_model_artifacts
from ra3_jax.model.config import LoRAConfig
from ra3_jax.rlvr.config import RewardConfig
from tests.rlvr import micro
from tests.rlvr.micro import learn, same

ROOT = Path(__file__).parents[2]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what the clock says, or how much this process has compiled."""
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in lines]


# --- in this process ----------------------------------------------------------------------------------

BUSY = dataclasses.replace(
    micro.with_grpo(mask_truncated=False, dynamic_sampling=True, updates_per_batch=2),
    steps=4,
    minibatch=4,
    reward=RewardConfig(partial=True),
)
"""Everything that a run has to remember: moments, position among the tasks, order of the samples in an epoch."""


def odd_tasks_fail(task, text):
    return micro.verdict(0) if micro.TASKS.index(task) % 2 else micro.by_hash(task, text)


def train(out: Path, mesh, **options) -> micro.Learned:
    return learn(out, mesh, BUSY, micro.FakeJudge(odd_tasks_fail), **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> micro.Learned:
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        return train(tmp_path_factory.mktemp("undisturbed"), mesh)


@pytest.mark.parametrize("stop", [0, 2])
def test_a_run_that_was_stopped_goes_on(tmp_path, one_device_mesh, undisturbed, stop: int):
    first = train(tmp_path, one_device_mesh, stop_after=stop)
    assert first.at.step == stop and list_steps(RunDir.at(tmp_path).checkpoints)[-1] == stop
    second = train(tmp_path, one_device_mesh, start=stop)
    assert len(second.rollouts) == 4 - stop
    assert second.at == undisturbed.at and same(second.params, undisturbed.params)
    assert timeless(second.lines) == timeless(undisturbed.lines)
    assert undisturbed.at.position > 8 and not same(undisturbed.after[1], undisturbed.after[3])  # not vacuous


def test_adapters_go_on_and_leave_a_model(tmp_path, one_device_mesh):
    config = dataclasses.replace(BUSY, lora=LoRAConfig(rank=2))
    judge = micro.FakeJudge(odd_tasks_fail)
    whole = learn(tmp_path / "whole", one_device_mesh, config, judge)
    learn(tmp_path / "stopped", one_device_mesh, config, judge, stop_after=2)
    half, end = (save_artifacts(tmp_path / name) for name in ("stopped", "whole"))
    resumed = learn(tmp_path / "stopped", one_device_mesh, config, judge, start=2)
    assert resumed.at == whole.at and same(resumed.params, whole.params)
    assert timeless(resumed.lines) == timeless(whole.lines)
    start = micro.talker()
    changed = {name for name, w in whole.params["layers"].items() if not same(w, start["layers"][name])}
    assert changed == set(config.lora.targets) and same(whole.params["embed"], start["embed"])
    assert all(line["mismatch/max"] < 1e-4 for line in whole.lines)  # what samples is what learns
    assert same(micro.to_numpy(load_model(end, one_device_mesh).params), whole.params)
    middle = micro.to_numpy(load_model(half, one_device_mesh, step=2).params)
    assert not same(middle, whole.params) and not same(middle["layers"], start["layers"])


def save_artifacts(out: Path) -> str:
    save_model_artifacts(RunDir.at(out), micro.MODEL.config, micro.CODEC.tokenizer)
    return str(out)


def test_a_batch_that_was_being_sampled_is_given_up(tmp_path, one_device_mesh, undisturbed):
    """Asked to stop in the middle of the second batch: the first is saved, the second comes again, the same."""
    completions = itertools.count()
    half = train(tmp_path, one_device_mesh, should_stop=lambda: next(completions) > 20)
    assert (half.at.step, half.at.position) == (1, undisturbed.rollouts[0].position) and len(half.rollouts) == 1
    assert list_steps(RunDir.at(tmp_path).checkpoints) == [1]
    assert same(train(tmp_path, one_device_mesh, start=1).params, undisturbed.params)


def test_an_earlier_step_is_gone_back_to(tmp_path, one_device_mesh, undisturbed):
    train(tmp_path, one_device_mesh, stop_after=3)
    again = train(tmp_path, one_device_mesh, start=1, stop_after=1)
    assert list_steps(RunDir.at(tmp_path).checkpoints) == [1, 2]  # what came after 1 is gone
    assert same(again.params, undisturbed.after[1]) and [line["step"] for line in again.lines] == [1, 2]
    with pytest.raises(CheckpointError, match="holds no step 3"):
        train(tmp_path, one_device_mesh, start=3)


def test_checkpoints_come_as_often_as_asked(tmp_path, one_device_mesh):
    config = dataclasses.replace(BUSY, checkpoint_every=3)
    learn(tmp_path / "every third", one_device_mesh, config)
    assert list_steps(RunDir.at(tmp_path / "every third").checkpoints) == [3, 4]
    learn(tmp_path / "at the end", one_device_mesh, dataclasses.replace(config, checkpoint_every=0))
    assert list_steps(RunDir.at(tmp_path / "at the end").checkpoints) == [4]


# --- on other devices ---------------------------------------------------------------------------------

WIDE = dataclasses.replace(BUSY, minibatch=0)


def train_on(devices: int, out: Path, **options) -> micro.Learned:
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return learn(out, mesh, WIDE, micro.FakeJudge(odd_tasks_fail), **options)


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory) -> tuple[Path, micro.Learned]:
    out = tmp_path_factory.mktemp("eight")
    return out, train_on(8, out)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_saved_on_eight_devices_resumed_on_fewer(tmp_path, eight_devices, devices: int):
    """The same tasks, completions and verdicts; losses and rewards to 1e-5."""
    whole, expected = eight_devices
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    found = train_on(devices, out, start=2)
    assert found.at == expected.at and len(found.rollouts) == 2
    for a, b in zip(expected.rollouts[2:], found.rollouts, strict=True):
        for x, y in zip(a.groups, b.groups, strict=True):
            assert x.task == y.task
            for one, other in zip(x.samples, y.samples, strict=True):
                assert (one.text, one.verdict) == (other.text, other.verdict)
    for a, b in zip(timeless(expected.lines), timeless(found.lines), strict=True):
        assert a.keys() == b.keys()
        for name in ("step", "loss", "weight", "reward", "num_tokens"):
            assert b[name] == pytest.approx(a[name], abs=1e-5), name
    assert not same(found.after[0], found.after[1])


# --- killed -------------------------------------------------------------------------------------------

STEPS = 8
FLAGS = """
    --preset micro --steps 8 --tasks.limit 2 --tasks.blocks 1 --rollout.prompts 2 --rollout.samples 4
    --rollout.max-new 32 --optimizer.learning-rate 1e-3 --evaluation.every 3 --evaluation.tasks 2 --evaluation.samples 0
""".split()  # fmt: skip


def command(start: Path, out: Path) -> tuple[list[str], dict[str, str]]:
    cache = Path(tempfile.gettempdir()) / "ra3_jax_tests_cache"
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "RA3_CACHE": str(cache)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    return [sys.executable, "-m", "experiments.rlvr", *FLAGS, "--init", str(start), "--out", str(out)], env


def run(start: Path, out: Path) -> str:
    argv, env = command(start, out)
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def batches(out: Path) -> int:
    """Lines of metrics.jsonl about batches that were learned from."""
    path = out / "metrics.jsonl"
    return path.read_text().count('"phase": "rlvr"') if path.exists() else 0


def test_a_killed_run_goes_on(tmp_path):
    """SIGKILL at a random moment between the first batch and the last but one, then the same command again."""
    start, undisturbed, killed = micro.write_start(tmp_path / "start"), tmp_path / "undisturbed", tmp_path / "killed"
    said = run(start, undisturbed)
    assert "held-out after 0 batches" in said and "report: " in said and "Traceback" not in said

    argv, env = command(start, killed)
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(argv, env=env, cwd=ROOT, stdout=errors, stderr=errors)
    after, pause = random.randint(1, STEPS - 4), random.uniform(0, 0.1)
    deadline = time.monotonic() + 300
    while batches(killed) < after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL, (after, pause, (tmp_path / "errors").read_text())
    saved = list_steps(killed / "checkpoints")
    assert not (killed / "report.html").exists()

    again = run(start, killed)
    where = f"killed {pause} s after batch {after}; checkpoints: {saved}"
    assert ("held-out after 0 batches" in again) == (not saved), where
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    expected, found = (micro.to_numpy(load_model(str(out), mesh).params) for out in (undisturbed, killed))
    assert same(found, expected), where
    assert not same(found, micro.half_trained()), "nothing was learned"
    assert timeless(read_metrics(killed / "metrics.jsonl")) == timeless(read_metrics(undisturbed / "metrics.jsonl"))
    for name in ("results.json", "samples.json", "summary.json"):
        assert json.loads((killed / name).read_text()) == json.loads((undisturbed / name).read_text()), (name, where)
    assert (killed / "report.html").stat().st_size > 10_000
