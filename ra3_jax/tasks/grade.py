"""Completions -> verdicts. Outputs are compared here, in a process that never runs a program."""

import dataclasses
import hashlib
from collections.abc import MutableMapping, Sequence
from typing import Literal

from ra3_jax.tasks.runner import DEFAULT_LIMITS, Job, Limits, Outcome, run_programs
from ra3_jax.tasks.task import Task

VerdictStatus = Literal["passed", "wrong", "error", "limit", "syntax", "refused", "missing", "timeout", "infra"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a completion did on its task.

    `status` is `passed`, or what its first failing test met (`wrong` output, `error` raised, step
    or size `limit`), or why no test was run (`syntax`, `refused`, `missing`). `timeout` and `infra`
    depend on the machine, not on the program alone: a reward must mask them.
    """

    status: VerdictStatus
    n_passed: int  # tests
    n_tests: int
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def valid(self) -> bool:
        """False when the machinery failed, not the program."""
        return self.status not in ("timeout", "infra")


Memo = MutableMapping[str, Verdict]


def grade(
    tasks: Sequence[Task],
    completions: Sequence[str],
    limits: Limits = DEFAULT_LIMITS,
    memo: Memo | None = None,
) -> list[Verdict]:
    """The verdict of `completions[i]` (the text after the prompt) on `tasks[i]`.

    Each distinct (task, program without its comments) runs once; pass the same `memo` again to
    remember verdicts across calls. Verdicts that are not valid are not remembered. Raises
    ValueError when the two sequences differ in length.
    """
    if len(tasks) != len(completions):
        raise ValueError(f"{len(completions)} completions for {len(tasks)} tasks")
    memo = {} if memo is None else memo
    keys = [_key(task, text, limits) for task, text in zip(tasks, completions, strict=True)]
    new = {key: i for i, key in enumerate(keys) if key not in memo}
    outcomes = run_programs([_job(tasks[i], completions[i]) for i in new.values()], limits)
    fresh = {key: _verdict(tasks[new[key]], outcome) for key, outcome in zip(new, outcomes, strict=True)}
    memo.update({key: verdict for key, verdict in fresh.items() if verdict.valid})
    return [fresh[key] if key in fresh else memo[key] for key in keys]


def _job(task: Task, completion: str) -> Job:
    return Job(task.prompt + completion, task.entry_point, tuple(test.args for test in task.tests))


def _verdict(task: Task, outcome: Outcome) -> Verdict:
    n = len(task.tests)
    if outcome.status != "ran":
        return Verdict(outcome.status, 0, n, outcome.detail)
    first, detail, n_passed = "passed", "", 0
    for test, result in zip(task.tests, outcome.results, strict=True):
        if result.status == "returned" and result.value == test.expected:
            n_passed += 1
        elif first == "passed":
            first = "wrong" if result.status == "returned" else result.status
            call = f"{task.entry_point}({', '.join(map(repr, test.args))})"
            detail = f"{call} is {result.value!r}" if first == "wrong" else result.detail
    return Verdict(first, n_passed, n, detail[:200])


def _key(task: Task, completion: str, limits: Limits) -> str:
    parts = (task.content_id, f"{limits.steps} {limits.items}", without_comments(completion))
    content = "\0".join(parts)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def without_comments(code: str) -> str:
    """`code` without its full-line comments where that surely changes nothing, else `code` itself.

    Left alone: code in which a line that looks like a comment may be part of a string or of a
    continued line, and comments with control characters (a carriage return ends a comment).
    """
    if '"""' in code or "'''" in code or "\\\n" in code:
        return code
    return "\n".join(line for line in code.split("\n") if not _is_comment(line))


def _is_comment(line: str) -> bool:
    return line.lstrip(" ").startswith("#") and line.isprintable()
