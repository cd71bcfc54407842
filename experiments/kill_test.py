"""Kills runs without notice and resumes them: `python -m experiments.kill_test [--kills 20] [--seed 0] [--out DIR]`.

The micro mid-training job (with the policy-gradient E-step, so that all phases of EM occur) and the micro RLVR job that
starts from it run once undisturbed. Then each kill: the same command anew, SIGKILL at a random moment of its life, the
same command again; and everything that the run leaves behind must be what the undisturbed one left, bit for bit.
Prints a table; ends with status 1 if anything differs.
"""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.cli import explain_errors
from ra3_jax.core.console import print_table, say
from ra3_jax.core.paths import local_path

MIDTRAIN = (
    "experiments.midtrain", "--preset", "micro", "--estep", "policy_gradient",
    "--mstep.epochs", "3", "--mstep.loop.checkpoint-every", "1",
)  # fmt: skip
RLVR = (
    "experiments.rlvr", "--preset", "micro", "--steps", "8",
    # This policy earns no reward; decay, and a KL term that pulls it back, move its weights in every update.
    "--optimizer.learning-rate", "1e-2", "--optimizer.weight-decay", "0.3", "--grpo.beta", "0.5",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class KillTestConfig:
    kills: int = 20
    """Kills in all; mid-training and RLVR take turns."""
    seed: int = 0
    """Of the moments."""
    out: str = ""
    """Local directory where the runs are kept ('': a temporary one, removed at the end)."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where the runs lie. Compiled programs are shared by all of them, everything else is each run's own."""

    root: Path

    def command(self, job: str, name: str) -> list[str]:
        argv = [sys.executable, "-m", *(MIDTRAIN if job == "midtrain" else RLVR), "--out", str(self.run(job, name))]
        return argv if job == "midtrain" else [*argv, "--init", str(self.run("midtrain", "undisturbed"))]

    def run(self, job: str, name: str) -> Path:
        return self.root / f"{job}-{name}"

    def start(self, job: str, name: str) -> subprocess.Popen:
        cache = self.root / f"cache-{job}-{name}"  # the base is trained in each run anew, and may be killed as well
        if not cache.exists():
            cache.mkdir(parents=True)
            (self.root / "xla").mkdir(exist_ok=True)
            (cache / "xla").symlink_to(self.root / "xla")
        with self.log(job, name).open("a") as log:
            env = os.environ | {"RA3_CACHE": str(cache)}
            return subprocess.Popen(self.command(job, name), env=env, stdout=log, stderr=subprocess.STDOUT)

    def log(self, job: str, name: str) -> Path:
        return self.root / f"{job}-{name}.txt"

    def finish(self, job: str, name: str) -> float:
        """Runs to the end; seconds. Raises RuntimeError with the last words of a run that fails."""
        began = time.monotonic()
        status = self.start(job, name).wait()
        if status:
            raise RuntimeError(f"{job} {name}: status {status}\n" + self.log(job, name).read_text()[-3000:])
        return time.monotonic() - began

    def last_words(self, job: str, name: str) -> str:
        lines = [line for line in self.log(job, name).read_text().splitlines() if line.strip()]
        return lines[-1].split("took")[0][:60] if lines else "(nothing said yet)"


def differences(expected: Path, found: Path) -> list[str]:
    """What two run directories do not have in common: weights (bitwise), metrics, measured rows, traces.

    Clock times and speeds are left out.
    """
    out = [f"metrics line {i + 1}: {a} against {b}" for i, (a, b) in enumerate(_pairs(expected, found)) if a != b]
    names = [p.relative_to(expected) for p in expected.glob("traces/*.jsonl")]
    for name in [*names, Path("results.json"), Path("samples.json")]:
        there = [p / name for p in (expected, found) if (p / name).exists()]
        if len(there) == 1 or (there and there[0].read_bytes() != there[1].read_bytes()):
            out.append(str(name))
    return out + _weight_differences(expected, found)


def _pairs(expected: Path, found: Path) -> list[tuple]:
    from ra3_jax.core.metrics import read_metrics

    lines = [[timeless(line) for line in read_metrics(p / "metrics.jsonl")] for p in (expected, found)]
    longest = max(map(len, lines))
    a, b = ([*x, *[None] * (longest - len(x))] for x in lines)
    return list(zip(a, b, strict=True))


def timeless(record: dict) -> dict:
    return {k: v for k, v in record.items() if k != "time" and not k.startswith("perf/")}


def _weight_differences(expected: Path, found: Path) -> list[str]:
    """Names of the arrays that differ in any bit, of all run directories below the two (base, baselines, the run)."""
    import jax
    import numpy as np

    from ra3_jax.core.config import MeshConfig
    from ra3_jax.core.mesh import make_mesh
    from ra3_jax.model.checkpoint import load_model

    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    out = []
    for run in [expected, *(p.parent for p in expected.glob("*/model.json"))]:
        with jax.set_mesh(mesh):
            a, b = (load_model(str(p), mesh) for p in (run, found / run.relative_to(expected)))
        if a.origin.split()[-1] != b.origin.split()[-1]:
            out.append(f"{run.name}: {a.origin} against {b.origin}")
        pairs = zip(jax.tree_util.tree_leaves_with_path(a.params), jax.tree.leaves(b.params), strict=True)
        for (path, x), y in pairs:
            if np.asarray(x).tobytes() != np.asarray(y).tobytes():
                out.append(f"{run.name}: weights {jax.tree_util.keystr(path)}")
    return out


def kill_at(bench: Bench, job: str, name: str, moment: float) -> bool:
    """Whether a run was still alive after `moment` seconds, and so was killed. Raises RuntimeError when it failed."""
    process = bench.start(job, name)
    try:
        if process.wait(timeout=moment):
            raise RuntimeError(f"{job} {name} failed:\n" + bench.log(job, name).read_text()[-3000:])
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def run_kills(config: KillTestConfig, root: Path) -> bool:
    """Whether every run that was killed ended as the undisturbed one."""
    bench, rng = Bench(root), random.Random(config.seed)
    seconds = {}
    for job in ("midtrain", "rlvr"):
        bench.finish(job, "undisturbed")
        seconds[job] = bench.finish(job, "timed")  # nothing is compiled in it, as in those to come
        found = differences(bench.run(job, "undisturbed"), bench.run(job, "timed"))
        if found:
            raise RuntimeError(f"two undisturbed runs of {job} differ, so nothing can be said: {found[:5]}")
        say(f"{job}: {seconds[job]:.0f} s undisturbed")
    rows = []
    for i in range(config.kills):
        job = ("midtrain", "rlvr")[i % 2]
        name, moment = f"kill-{i}", rng.uniform(0, seconds[job])
        while not kill_at(bench, job, name, moment):  # the machine is less busy than it was
            shutil.rmtree(bench.run(job, name))
            shutil.rmtree(bench.root / f"cache-{job}-{name}")
            seconds[job] = moment
            moment = rng.uniform(0, moment)
        words = bench.last_words(job, name)
        bench.finish(job, name)
        found = differences(bench.run(job, "undisturbed"), bench.run(job, name))
        outcome = "bitwise equal" if not found else "; ".join(found[:3])
        rows.append([str(i + 1), job, f"{moment:.1f}", words, outcome])
        say(" | ".join(rows[-1]))
    print_table("SIGKILL, then the same command again", ("", "job", "at s", "last words", "outcome"), rows)
    (root / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
    return all(row[-1] == "bitwise equal" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    config = tyro.cli(KillTestConfig, args=argv, description=__doc__)
    if config.out:
        with explain_errors():
            root = local_path(config.out, "--out").absolute()
        root.mkdir(parents=True)
        return 0 if run_kills(config, root) else 1
    with tempfile.TemporaryDirectory() as root:
        return 0 if run_kills(config, Path(root)) else 1


if __name__ == "__main__":
    sys.exit(main())
