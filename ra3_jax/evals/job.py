"""An evaluation from flags to results: tasks, samples (generated, or those of a file), verdicts, results, report.

Everything lies in one directory, and every part of it goes on where an interrupted run stopped:

    config.json       settings and versions
    samples.jsonl     what the model wrote (only with a model)
    verdicts.jsonl    verdicts by content of task and program
    results.json, report.html
"""

import contextlib
import dataclasses
import datetime
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from ra3_jax.core.console import Progress, say
from ra3_jax.core.errors import InputError
from ra3_jax.core.rundir import RunDir, environment, to_json
from ra3_jax.data import puzzles
from ra3_jax.evals.config import EvaluateConfig
from ra3_jax.evals.harness import Grade, grade_puzzles, judge
from ra3_jax.evals.report import print_results, write_report
from ra3_jax.evals.results import summarize
from ra3_jax.evals.samples import SampleFile, read_samples
from ra3_jax.sandbox.level import IsolationError
from ra3_jax.sandbox.pool import Pool
from ra3_jax.tasks import codeforces, prompts
from ra3_jax.tasks.benchmarks import load_benchmark
from ra3_jax.tasks.expected import Store
from ra3_jax.tasks.extract import strip_thoughts
from ra3_jax.tasks.grade import grade, prepare
from ra3_jax.tasks.puzzles import puzzle_task
from ra3_jax.tasks.sources import sha256_of
from ra3_jax.tasks.task import OracleTests, Task
from ra3_jax.tasks.verdict import Verdict

PUZZLES, PUZZLE_SEED = 192, 9001  # those that mid-training's table measures on
DATA_OPTIONS = ("data_dir", "file", "revision", "form", "release", "start_date", "end_date")


@dataclasses.dataclass(frozen=True)
class Exam:
    """What is asked and how."""

    label: str
    tasks: tuple[Task, ...]
    style: prompts.Style
    origin: dict[str, Any]
    notes: tuple[str, ...] = ()


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The contents of results.json, which is written with the report. Raises InputError."""
    run = RunDir.at(out_dir(config))
    exam = load_exam(config)
    say(f"{exam.label}: {len(exam.tasks)} tasks from {exam.origin['text']} -> {run.path}")
    run.write_json("config.json", {"config": to_json(config), **environment()})
    path, settings, model = epath.Path(config.samples or ""), None, None
    if config.model:
        path = run.path / "samples.jsonl"
        settings, model = write_samples(config, exam, path)
    # A file of our own may have rows of more tasks or samples, from an earlier, longer run.
    partial = config.allow_partial or config.model is not None
    file = read_samples(path, exam.tasks, exam.style, allow_partial=partial)
    programs = [sample.program for sample in file.samples]
    if config.strip_thoughts:
        programs = [strip_thoughts(program) for program in programs]
        file = dataclasses.replace(
            file,
            samples=tuple(
                dataclasses.replace(sample, program=program)
                for sample, program in zip(file.samples, programs, strict=True)
            ),
        )
    verdicts, sandbox = run_judge(config, exam, file, run.path / "verdicts.jsonl")
    facts = {
        "benchmark": config.benchmark,
        "label": exam.label,
        "model": model,
        "samples": {"path": str(path), "sha256": sha256_of(path)},
        "origin": exam.origin,
        "notes": list(exam.notes),
        "settings": settings,
        "strip_thoughts": config.strip_thoughts,
        "sandbox": sandbox,
        "environment": environment(),
        "rating": codeforces_rating(config, exam, file, verdicts),
    }
    results = summarize(exam.tasks, file, verdicts, config.k, facts)
    run.write_json("results.json", results)
    print_results(results["summary"])
    write_report(run, results["summary"], exam.tasks, file.samples, verdicts)
    say(f"wrote {run.path}/results.json and report.html")
    return results


def codeforces_rating(
    config: EvaluateConfig, exam: Exam, file: SampleFile, verdicts: Sequence[Verdict]
) -> dict[str, Any] | None:
    """The rating that the samples, as tries in their order, would have earned; None without standings."""
    if config.standings is None:
        return None
    solved: dict[str, list[bool]] = {}
    for sample, verdict in zip(file.samples, verdicts, strict=True):
        if problem := exam.tasks[sample.task].metadata.get("problem"):
            solved.setdefault(problem, []).append(verdict.passed)
    return to_json(codeforces.rating(solved, config.standings, config.rated_users))


def out_dir(config: EvaluateConfig) -> str:
    """Raises InputError for flags that cannot go together."""
    if bool(config.samples) == bool(config.model):
        raise InputError("give either --samples FILE (to score it) or --model RUN_OR_HF (to generate samples first)")
    if not config.k or min(config.k) < 1:
        raise InputError(f"--k {config.k}: expected numbers from 1 on")
    if config.standings and config.benchmark != "codeforces":
        raise InputError(f"--standings: {config.benchmark} has no rating, only codeforces does")
    if config.max_tasks is not None and config.max_tasks < 1:
        raise InputError(f"--max-tasks {config.max_tasks}: expected at least 1")
    if config.samples_per_task < 1 or config.batch < 1:
        raise InputError("--samples-per-task and --batch must be at least 1")
    if config.temperature < 0 or not 0 < config.top_p <= 1:
        raise InputError(f"--temperature {config.temperature}, --top-p {config.top_p}: expected >= 0, and 0 < p <= 1")
    if config.model and config.temperature == 0 and config.samples_per_task > 1:
        raise InputError("greedy samples of a task are all the same: --temperature above 0 for --samples-per-task > 1")
    name = epath.Path(config.samples or config.model or "").name
    for suffix in (".gz", ".jsonl", ".json"):
        name = name.removesuffix(suffix)
    return config.out or f"runs/evaluate-{config.benchmark}-{name}"


# Tasks


def load_exam(config: EvaluateConfig) -> Exam:
    """The tasks of the benchmark. Raises InputError."""
    exam = _puzzle_exam(config) if config.benchmark == "puzzles" else _benchmark_exam(config, config.benchmark)
    n = config.max_tasks
    if n is None or n >= len(exam.tasks):
        return exam
    return dataclasses.replace(exam, label=f"{exam.label}, first {n} tasks only", tasks=exam.tasks[:n])


def _benchmark_exam(config: EvaluateConfig, name: Any) -> Exam:
    found = load_benchmark(
        name,
        data_dir=config.data_dir,
        file=config.file,
        revision=config.revision,
        variant=config.variant,
        form=config.form,
        release=config.release,
        start_date=_date("--start-date", config.start_date),
        end_date=_date("--end-date", config.end_date),
    )
    origin = {**dataclasses.asdict(found.origin), "text": str(found.origin)}
    return Exam(found.label, found.tasks, found.style, origin, found.notes)


def _puzzle_exam(config: EvaluateConfig) -> Exam:
    given = [name for name in DATA_OPTIONS if getattr(config, name) is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')}: puzzles are generated and have no such option")
    n = PUZZLES if config.max_tasks is None else config.max_tasks
    tasks = tuple(map(puzzle_task, puzzles.generate("test", n, PUZZLE_SEED)))
    origin = {"kind": "generated", "text": f"puzzles of split test, seed {PUZZLE_SEED}", "warnings": []}
    return Exam(f"puzzles ({n} held out)", tasks, prompts.PUZZLES, origin)


def _date(flag: str, text: str | None) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise InputError(f"{flag} {text}: expected a day such as 2024-08-01") from None


# Samples


def write_samples(config: EvaluateConfig, exam: Exam, path: epath.Path) -> tuple[dict[str, Any], str]:
    """Generates what `path` lacks. (settings of the sampling, where the model came from); raises InputError."""
    import jax

    from ra3_jax.core.mesh import make_mesh
    from ra3_jax.evals.generation import Settings, generate_samples
    from ra3_jax.model.checkpoint import load_model
    from ra3_jax.tasks.chat import has_template

    assert config.model
    try:
        mesh = make_mesh(config.mesh)
    except ValueError as error:
        raise InputError(str(error)) from error
    with jax.set_mesh(mesh):
        try:
            loaded = load_model(
                config.model, mesh, step=config.step, revision=config.model_revision, dtype=config.dtype
            )
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
        if loaded.model.config.dtype != "float32":  # decoding is bound by reading the weights
            params = jax.tree.map(lambda weight: weight.astype(loaded.model.config.dtype), loaded.params)
            loaded = dataclasses.replace(loaded, params=params)
        ours = loaded.origin.startswith("run ")
        chat = config.chat == "yes" or (config.chat == "auto" and not ours and has_template(loaded.tokenizer))
        max_new = config.max_new or exam.style.max_new
        settings = Settings(config.seed, config.temperature, config.top_p, max_new, chat)
        say(f"{loaded.origin}, " + ("asked by its chat template" if chat else "given prompts to continue"))
        with Progress("samples", len(exam.tasks) * config.samples_per_task, unit="sample") as bar:
            generate_samples(
                loaded, exam.tasks, exam.style, settings, path, mesh,
                samples_per_task=config.samples_per_task, batch=config.batch, on_sample=_counter(bar),
            )  # fmt: skip
    return dataclasses.asdict(settings), loaded.origin


def _counter(bar: Progress):
    done = 0

    def add(n: int) -> None:
        nonlocal done
        done += n
        bar.update(done)

    return add


# Verdicts


def run_judge(config: EvaluateConfig, exam: Exam, file: SampleFile, path: epath.Path) -> tuple[list[Verdict], str]:
    """(a verdict for each sample, how the programs were isolated). Raises InputError."""
    tasks = [exam.tasks[sample.task] for sample in file.samples]
    programs = [sample.program for sample in file.samples]
    with _grader(config, tasks) as (grade, level, sandbox), Progress("judged", len(programs), unit="sample") as bar:
        done = judged = passed = 0

        def on_verdict(samples: int, verdict: Verdict) -> None:
            nonlocal done, judged, passed
            done += samples
            judged += samples * verdict.valid
            passed += samples * verdict.passed
            bar.update(done, **{"pass@1": passed / judged} if judged else {})

        return judge(tasks, programs, grade, path, level=level, on_verdict=on_verdict), sandbox


@contextlib.contextmanager
def _grader(config: EvaluateConfig, tasks: Sequence[Task]) -> Iterator[tuple[Grade, int, str]]:
    """(the judge of these tasks, least level of isolation, its name)."""
    if config.benchmark == "puzzles":
        yield grade_puzzles, 0, "the language of puzzles, inside the sandbox"
        return
    try:
        pool = Pool(config.workers, level=config.level, allow_unsandboxed=config.allow_unsandboxed)
    except IsolationError as error:
        raise InputError(str(error)) from error
    with pool:
        store = Store()
        new = {t.task_id for t in tasks if isinstance(t.tests, OracleTests) and not store.path(t).exists()}
        if new:
            say(f"expected outputs of {len(new)} tasks have to be computed once, which can take minutes")
            prepare(pool, tasks, store)
        level = min(config.level, pool.isolation.level)  # as far as it can be reached here
        yield functools.partial(grade, pool, store=store), level, str(pool.isolation)
