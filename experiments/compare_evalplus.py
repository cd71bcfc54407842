"""Are wrong programs found? `python -m experiments.compare_evalplus --data-dir DIR`

Mutants of the canonical solutions of HumanEval+ Mini, judged by our harness and by evalplus 0.3.1 (in an environment of
its own). Verdicts on base and on base + plus tests must agree, or differ for a documented reason:

- HumanEval/32: evalplus 0.3.1 marks every solution wrong (mended in its git HEAD, whose semantics are ours);
- the flags of tasks/grade.py, which the verdict itself carries;
- a program that one of the two stopped for its time.
"""

import collections
import dataclasses
import gzip
import json
import sys
import tempfile
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """`python -m experiments.compare_evalplus`."""

    data_dir: str
    """Folder (may be gs://) of HumanEvalPlus-Mini.jsonl.gz."""
    mutants: int = 12
    """Of each task."""
    seed: int = 0
    workers: int = 2
    """Programs at the same time, in both harnesses."""
    tasks: int | None = None
    """Only the first so many tasks (none: all)."""


def main(argv: list[str] | None = None) -> int:
    config = tyro.cli(CompareConfig, args=argv, description=__doc__)
    from experiments.cli import explain_errors

    with explain_errors():
        return 0 if compare(config) else 1


def compare(config: CompareConfig) -> bool:
    """Prints the agreement and every difference. Raises InputError."""
    from experiments.mutants import mutants
    from experiments.peers import evalplus
    from ra3_jax.core.console import print_table, say
    from ra3_jax.sandbox.pool import Pool
    from ra3_jax.tasks import humaneval
    from ra3_jax.tasks.expected import Store
    from ra3_jax.tasks.grade import grade
    from ra3_jax.tasks.sources import find
    from ra3_jax.tasks.task import OracleTests

    found = find("humaneval+/mini", data_dir=config.data_dir)
    tasks = humaneval.plus_tasks(found.rows())[: config.tasks]
    pairs = []
    for task in tasks:
        assert task.canonical is not None and isinstance(task.tests, OracleTests)
        programs = mutants(task.canonical, task.tests.entry_point, config.mutants, config.seed)
        pairs += [(task, program) for program in programs]
    say(f"{len(pairs)} mutants of {len(tasks)} tasks")
    with tempfile.TemporaryDirectory() as folder, Pool(config.workers) as pool:
        home = Path(folder)
        ours = list(grade(pool, [t for t, _ in pairs], [p for _, p in pairs], Store(home / "expected")))
        data = home / "tasks.jsonl.gz"
        with gzip.open(data, "wt") as file:
            for row in list(found.rows())[: config.tasks]:
                file.write(json.dumps(row.data) + "\n")
        samples = home / "samples.jsonl"
        samples.write_text("".join(json.dumps({"task_id": t.task_id, "solution": p}) + "\n" for t, p in pairs))
        run, theirs = evalplus("humaneval+", data, samples, workers=config.workers, cache=home, min_time_limit=4.0)
    counts, lines, unexplained = collections.Counter(), [], 0
    position = collections.Counter[str]()
    for (task, program), verdict in zip(pairs, ours, strict=True):
        row = theirs[task.task_id][position[task.task_id]]
        position[task.task_id] += 1
        assert row["solution"].strip() == program.strip(), task.task_id
        mine = (verdict.base_status == "pass", verdict.passed)
        other = (row["base_status"] == "pass", row["base_status"] == row["plus_status"] == "pass")
        if mine == other:
            counts["agree, passed" if mine[1] else "agree, not passed"] += 1
            continue
        reason = _reason(task.task_id, verdict, row)
        counts[f"differ: {reason or 'UNEXPLAINED'}"] += 1
        if not reason:
            unexplained += 1
            lines.append(f"{task.task_id}: ours {verdict}, theirs {row['base_status']}/{row['plus_status']}\n{program}")
    print_table("Mutants of canonical solutions, HumanEval+ Mini", ["verdicts", "mutants"], sorted(counts.items()))
    say(f"evalplus took {run.wall_s:.0f} s of clock, {run.cpu_s:.0f} s of CPU")
    say("\n".join(lines) or "no difference without a documented reason")
    return not unexplained


def _reason(task_id: str, verdict, row: dict) -> str:
    """The documented difference that explains two verdicts, "" if none does."""
    if task_id == "HumanEval/32":
        return "HumanEval/32, wrong in 0.3.1 for every solution"
    if verdict.flags:
        return "; ".join(verdict.flags)
    if verdict.status == "timeout" or "timeout" in (row["base_status"], row["plus_status"]):
        return "stopped for its time by one of the two"
    return ""


if __name__ == "__main__":
    sys.exit(main())
