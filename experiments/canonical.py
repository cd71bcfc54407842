"""Do the reference solutions pass? `python -m experiments.canonical --data-dir DIR`

Judges the canonical solution of every task of HumanEval, HumanEval+, MBPP and MBPP+ as if a model had written it. All
must pass, also when the machine is busy with something else: what fails here is a mistake of the harness.
"""

import collections
import dataclasses
import resource
import sys
import time
from typing import Literal

import tyro

NAMES = ("humaneval", "humaneval+", "mbpp", "mbpp+")


@dataclasses.dataclass(frozen=True)
class CanonicalConfig:
    """`python -m experiments.canonical`."""

    data_dir: str
    """Folder (may be gs://) of HumanEval.jsonl.gz, HumanEvalPlus.jsonl.gz, mbpp.jsonl, MbppPlus.jsonl.gz."""
    benchmark: Literal["all", "humaneval", "humaneval+", "mbpp", "mbpp+"] = "all"
    repeat: int = 1
    """Runs in a row."""
    workers: int | None = None
    """Programs at the same time (none: one for each core)."""
    level: int = 1
    """Least isolation that will do, 0 to 3."""
    allow_unsandboxed: bool = False
    """Run without isolation where the machine offers none."""
    cache: str | None = None
    """Local folder of expected outputs (none: `expected` in $RA3_CACHE or ~/.cache/ra3_jax)."""


def main(argv: list[str] | None = None) -> int:
    config = tyro.cli(CanonicalConfig, args=argv, description=__doc__)
    from experiments.cli import explain_errors

    with explain_errors():
        return 0 if check(config) else 1


def check(config: CanonicalConfig) -> bool:
    """Prints a table and what did not pass. Raises InputError, IsolationError."""
    from ra3_jax.core.console import print_table
    from ra3_jax.sandbox.pool import Pool
    from ra3_jax.tasks.expected import Store

    rows, problems = [], []
    store = Store(config.cache)
    with Pool(config.workers, level=config.level, allow_unsandboxed=config.allow_unsandboxed) as pool:
        print(f"isolation {pool.isolation}, {pool.workers} at the same time")
        for run in range(1, config.repeat + 1):
            for name in NAMES if config.benchmark == "all" else (config.benchmark,):
                row, failed = judge(name, config.data_dir, pool, store)
                rows.append([name, str(run), *row])
                problems += [f"{name}, run {run}: {line}" for line in failed]
    columns = ["benchmark", "run", "passed", "reference s", "wall s", "CPU s", "timeouts", "flags"]
    print_table("Canonical solutions", columns, rows)
    rss = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"peak memory: {rss[0]:.0f} MB of this process, {rss[1]:.0f} MB of the largest program")
    print("\n".join(problems) or "all pass")
    return not problems


def judge(name: str, data_dir: str, pool, store) -> tuple[list[str], list[str]]:
    """(cells of the table, lines about what did not pass)."""
    from ra3_jax.tasks import humaneval, mbpp
    from ra3_jax.tasks.grade import grade, prepare
    from ra3_jax.tasks.sources import find

    parse = {
        "humaneval": humaneval.tasks,
        "humaneval+": humaneval.plus_tasks,
        "mbpp": lambda rows: mbpp.tasks(rows, "all"),
        "mbpp+": mbpp.plus_tasks,
    }[name]
    tasks = parse(find(name, data_dir=data_dir).rows())
    start = time.monotonic()
    prepare(pool, tasks, store)
    prepared = time.monotonic()
    verdicts = list(grade(pool, tasks, [task.canonical or "" for task in tasks], store))
    wall_s = time.monotonic() - prepared
    flags = collections.Counter(flag for verdict in verdicts for flag in verdict.flags)
    cells = [
        f"{sum(v.passed for v in verdicts)}/{len(tasks)}",
        f"{prepared - start:.1f}",
        f"{wall_s:.1f}",
        f"{sum(v.cpu_s for v in verdicts):.1f}",
        str(sum(v.status == "timeout" for v in verdicts)),
        "; ".join(f"{n} {flag}" for flag, n in flags.items()),
    ]
    failed = [f"{t.task_id}: {v.status} {v.detail}" for t, v in zip(tasks, verdicts, strict=True) if not v.passed]
    return cells, failed


if __name__ == "__main__":
    sys.exit(main())
