"""Codeforces problems: rows -> tasks, and a rating where standings are given.

Two forms:
- DeepCoder's 408 problems (rLLM): the statement and its *sample* tests only, most often one, compared by text. A pass
  there is weak evidence. 17 statements are interactive, which no comparison can judge, and about 50 accept any of
  several answers while one is in the test: both are flagged in `metadata["flags"]`. As there, a test has 12 s.
- open-r1/codeforces: official tests (`official_tests_complete` says whether all of them), each problem's limits, and a
  checker where several answers are right (stdio.py). Its generated tests are separate files, which are not read.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.tasks.livecodebench import PREFIX
from ra3_jax.tasks.rows import Row, read_json
from ra3_jax.tasks.task import StdioCase, StdioTests, Task

DEEPCODER_CPU_S = 12.0
INTERPRETER_MB = 256
"""Added to a problem's memory limit: the sandbox limits address space, of which the interpreter maps more than it
uses."""

_INTERACTIVE = re.compile(r"\binteractive\b", re.IGNORECASE)
_ANY_ANSWER = re.compile(
    r"any of (them|the)|(print|output) any\b|(multiple|several) (possible |valid |suitable |correct )?"
    r"(answers|solutions|outputs)",
    re.IGNORECASE,
)


def deepcoder_tasks(rows: Iterable[Row], problem_ids: Sequence[str] | None = None) -> list[Task]:
    """Rows {problem, tests: [{input, output}]}; `tests` may be JSON text. `problem_ids` ("1971A") in row order."""
    tasks = []
    for i, row in enumerate(rows):
        statement = row.text("problem")
        cases = [row.child(f"tests[{n}]", case) for n, case in enumerate(row.value_or_json("tests", list))]
        if not cases:
            raise row.error("tests", "no test", "at least one")
        metadata = {"flags": _flags(statement)} if _flags(statement) else {}
        if problem_ids is not None:
            if i >= len(problem_ids):
                raise InputError(f"{row.place}: found a row without a problem id, expected {len(problem_ids)} rows")
            metadata["problem"] = problem_ids[i]
        tests = StdioTests(
            tuple(StdioCase(case.text("input"), case.text("output")) for case in cases), cpu_s=DEEPCODER_CPU_S
        )
        tasks.append(Task(f"codeforces/{i}", statement.strip(), tests, "codeforces", metadata=metadata, prefix=PREFIX))
    if problem_ids is not None and len(tasks) != len(problem_ids):
        raise InputError(f"found {len(tasks)} rows and {len(problem_ids)} problem ids, expected as many of both")
    return tasks


def _flags(statement: str) -> str:
    flags = []
    if _INTERACTIVE.search(statement):
        flags.append("interactive: cannot be judged by comparison")
    if _ANY_ANSWER.search(statement):
        flags.append("several answers are right, one is accepted")
    return "; ".join(flags)


def open_r1_tasks(rows: Iterable[Row]) -> list[Task]:
    """Rows of open-r1/codeforces that can be judged: with tests, and read from standard input. The others (interactive,
    input from files, no tests) are left out, as its `executable` subset does."""
    return [_open_r1_task(row) for row in rows if _judgeable(row)]


def _judgeable(row: Row) -> bool:
    has_tests = bool(row.list_of("official_tests", dict, []))
    return has_tests and row.text("input_mode", "stdio") == "stdio" and not row.text("interaction_format", "").strip()


def _open_r1_task(row: Row) -> Task:
    cases = [row.child(f"official_tests[{n}]", case) for n, case in enumerate(row.list_of("official_tests", dict))]
    time_limit, memory_limit = row.get("time_limit", float), row.get("memory_limit", float)
    if not (0 < time_limit < 1000 and 0 < memory_limit < 65536):
        raise row.error("time_limit, memory_limit", f"{time_limit}, {memory_limit}", "seconds and MB")
    tests = StdioTests(
        tuple(StdioCase(case.text("input"), case.text("output")) for case in cases),
        checker=row.text("generated_checker", "") or None,
        cpu_s=time_limit,
        memory_mb=int(memory_limit) + INTERPRETER_MB,
    )
    metadata = {"difficulty": str(row.get("rating", int, 0) or "unrated"), "problem": row.text("id").replace("/", "")}
    if not row.get("official_tests_complete", bool, False):
        metadata["flags"] = "official tests incomplete"
    elif tests.checker is None and _ANY_ANSWER.search(_statement(row)):
        metadata["flags"] = "several answers are right, one is accepted"
    return Task(
        f"codeforces/{row.text('id')}", _statement(row), tests, "open-r1/codeforces", metadata=metadata, prefix=PREFIX
    )


def _statement(row: Row) -> str:
    """The parts of the statement in the order in which Codeforces shows them."""
    parts = [row.text("title", ""), row.text("description")]
    for heading, field in (("Input", "input_format"), ("Output", "output_format")):
        if text := row.text(field, ""):
            parts.append(f"{heading}\n{text}")
    for n, data in enumerate(row.list_of("examples", dict, [])):
        example = row.child(f"examples[{n}]", data)
        parts.append(f"Example input\n{example.text('input')}\nExample output\n{example.text('output')}")
    if note := row.text("note", ""):
        parts.append(f"Note\n{note}")
    limits = f"Time limit: {row.get('time_limit', float):g} s. Memory limit: {row.get('memory_limit', float):g} MB."
    return "\n\n".join(part.strip() for part in (*parts, limits) if part.strip())


# Rating, as DeepCoder computes it (its cf_elo_calc.py, after CodeElo, arXiv 2501.01257)

MIN_RATED = 200
"""Contests with no more rated participants than this are left out."""


@dataclasses.dataclass(frozen=True)
class Rating:
    rating: float  # mean over the contests
    percentile: float | None  # share of users with a lower rating, in %; None without the file of ratings
    contests: Mapping[str, int]  # rating in each contest
    left_out: tuple[str, ...]  # contests without standings, or with too few rated participants


def rating(
    solved: Mapping[str, Sequence[bool]], standings: epath.PathLike, users: epath.PathLike | None = None
) -> Rating:
    """`solved`: problem id ("1971A") -> verdicts of the tries, in order.

    `standings`: JSON {contest id: {"standings": ..., "rating_changes": ...}}, the results of the Codeforces API methods
    contest.standings (showUnofficial=false) and contest.ratingChanges. `users`: JSON {rating: number of users}.

    The rating in a contest is that of which the expected rank equals the rank that these tries would have had: a
    problem solved at try i (from 0) counts its points less 50 i, or else 1 with 10 i of penalty. Raises InputError.
    """
    contests = read_json(standings)
    if type(contests) is not dict:
        raise InputError(f"{standings}: found JSON {type(contests).__name__}, expected an object by contest id")
    by_contest: dict[str, dict[str, Sequence[bool]]] = {}
    for problem, tries in solved.items():
        match = re.fullmatch(r"(\d+)[A-Z]\d*", problem)
        if match is None:
            raise InputError(f"problem id: found {problem!r}, expected one like 1971A or 1972D2")
        by_contest.setdefault(match[1], {})[problem] = tries
    ratings: dict[str, int] = {}
    left_out = []
    for contest, problems in by_contest.items():
        result = None
        if contest in contests:
            place = Row({}, str(standings), int(contest), "contest")
            result = _contest_rating(problems, place.child("standings and changes", contests[contest]))
        if result is None:
            left_out.append(contest)
        else:
            ratings[contest] = result
    if not ratings:
        raise InputError(f"{standings}: none of the contests {', '.join(by_contest)} has usable standings")
    mean = sum(ratings.values()) / len(ratings)
    percentile = None if users is None else _percentile(mean, users)
    return Rating(mean, percentile, ratings, tuple(left_out))


def _contest_rating(problems: Mapping[str, Sequence[bool]], contest: Row) -> int | None:
    """None where too few rated people took part."""
    table = contest.child("standings", contest.get("standings", dict))
    changes = [contest.child("rating_changes", change) for change in contest.list_of("rating_changes", dict)]
    old_ratings = {change.text("handle"): change.get("oldRating", int) for change in changes}
    rows = [table.child("rows", row) for row in table.list_of("rows", dict)]
    rows = [row for row in rows if _handle(row) in old_ratings]
    if len(rows) <= MIN_RATED:
        return None
    score = penalty = 0.0
    for problem in (table.child("problems", data) for data in table.list_of("problems", dict)):
        tries = problems.get(f"{problem.get('contestId', int)}{problem.text('index')}", ())
        failed = next((i for i, passed in enumerate(tries) if passed), None)
        if failed is None:
            continue
        if problem.has("points"):
            score += max(0.0, problem.get("points", float) - 50 * failed)
        else:
            score += 1
            penalty += 10 * failed
    rank = len(rows)
    for i, row in enumerate(rows):  # from 0, as there: who beats everyone has rank 0
        points = row.get("points", float)
        if points < score or (points == score and row.get("penalty", float) > penalty):
            rank = i
            break
    return rating_of_rank(rank, [old_ratings[_handle(row)] for row in rows])


def _handle(row: Row) -> str:
    party = row.child("party", row.get("party", dict))
    members = party.list_of("members", dict)
    if not members:
        raise row.error("party.members", "nobody", "at least one member")
    return party.child("members[0]", members[0]).text("handle")


def rating_of_rank(rank: int, ratings: Sequence[int]) -> int:
    """The largest rating r whose expected rank, 1 + sum_i 1 / (1 + 10^((r - rating_i) / 400)), is not below `rank`
    (0 where there is none), up to 100 above the best rating."""
    low, high = 0, max(ratings) + 100
    while high - low > 1:
        middle = (low + high) // 2
        expected = 1 + sum(1 / (1 + 10 ** ((middle - rating) / 400)) for rating in ratings)
        low, high = (low, middle) if expected < rank else (middle, high)
    return low


def _percentile(rating: float, users: epath.PathLike) -> float:
    counts = read_json(users)
    try:
        pairs = sorted((float(key), int(count)) for key, count in counts.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{users}: found something else ({error}), expected an object {{rating: number of users}}"
        ) from None
    below = sum(count for value, count in pairs if value < rating)
    return 100 * below / sum(count for _, count in pairs)
