"""`Task`: a prompt and its tests. The one type for puzzles, benchmarks and RL tasks."""

import dataclasses
import functools
import hashlib
import json
from typing import Any, ClassVar

from ra3_jax.tasks.values import NotPlain, encode


@dataclasses.dataclass(frozen=True)
class TestCase:
    """One call: `entry_point(*args)` must equal `expected`. Plain builtin values only."""

    __test__: ClassVar[bool] = False  # not a class for pytest to collect

    args: tuple[Any, ...]
    expected: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """What to write and how it is judged. A program is `prompt + completion`.

    Raises ValueError when there is no test (such a task would pass everything), when the entry
    point is no name, and when a test holds a value that is not made of None, bool, int, float, str,
    list, tuple, set and dict.
    """

    task_id: str
    prompt: str
    entry_point: str
    tests: tuple[TestCase, ...]
    source: str  # where it came from: "puzzles", a data set's id

    def __post_init__(self):
        if not self.tests:
            raise ValueError(f"task {self.task_id} ({self.source}) has no tests")
        if not self.entry_point.isidentifier():
            raise ValueError(f"task {self.task_id}: entry_point {self.entry_point!r} is not a name")
        for i, test in enumerate(self.tests):
            try:
                encode([test.args, test.expected])
            except NotPlain as error:
                raise ValueError(f"task {self.task_id}, test {i}: {error}") from error

    @functools.cached_property
    def content_id(self) -> str:
        """Hash of everything that a verdict can depend on, apart from the completion."""
        tests = [encode([test.args, test.expected]) for test in self.tests]
        content = json.dumps([self.prompt, self.entry_point, tests])
        return hashlib.sha256(content.encode()).hexdigest()
