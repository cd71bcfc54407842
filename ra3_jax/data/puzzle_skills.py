"""The skills of the built-in task family: functions of lists, their phrases and their two idioms.

Every word and number stands after a space, in phrases and in code, so that the built-in tokenizer
gives it one id wherever it appears.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

Ints = list[int]
Style = Literal["loop", "line"]

NUMBERS = range(2, 10)  # the values of N


@dataclasses.dataclass(frozen=True)
class Skill:
    """A function of lists with its two idioms, as lines of the body of `f`. N is its number."""

    phrase: str
    loop: tuple[str, ...]
    line: str
    apply: Callable[[Ints, int], Ints]

    @property
    def has_number(self) -> bool:
        return self.phrase.endswith(" N")


def _each(phrase: str, value: str, apply: Callable[[Ints, int], Ints]) -> Skill:
    """Puts `value` in the place of every item v."""
    loop = ("out = []", "for v in xs:", f"    out.append( {value} )", "xs = out")
    return Skill(phrase, loop, f"xs = [ {value} for v in xs ]", apply)


def _keep(phrase: str, condition: str, apply: Callable[[Ints, int], Ints]) -> Skill:
    """Keeps the items v of which `condition` holds."""
    loop = (
        "out = []",
        "for v in xs:",
        f"    if {condition}:",
        "        out.append( v )",
        "xs = out",
    )
    return Skill(phrase, loop, f"xs = [ v for v in xs if {condition} ]", apply)


def _whole(phrase: str, value: str, apply: Callable[[Ints, int], Ints]) -> Skill:
    """One expression in both styles."""
    return Skill(phrase, (f"out = {value}", "xs = out"), f"xs = {value}", apply)


SKILLS = (
    _keep("keep evens", "v % 2 == 0", lambda xs, n: [v for v in xs if v % 2 == 0]),
    _keep("keep odds", "v % 2 == 1", lambda xs, n: [v for v in xs if v % 2 == 1]),
    _keep("keep above N", "v > N", lambda xs, n: [v for v in xs if v > n]),
    _keep("keep below N", "v < N", lambda xs, n: [v for v in xs if v < n]),
    _each("increase by N", "v + N", lambda xs, n: [v + n for v in xs]),
    _each("decrease by N", "v - N", lambda xs, n: [v - n for v in xs]),
    _each("scale by N", "v * N", lambda xs, n: [v * n for v in xs]),
    _each("remainder by N", "v % N", lambda xs, n: [v % n for v in xs]),
    _each("squares", "v * v", lambda xs, n: [v * v for v in xs]),
    _each("negate", "- v", lambda xs, n: [-v for v in xs]),
    _each("magnitudes", "abs( v )", lambda xs, n: [abs(v) for v in xs]),
    _whole("sort up", "sorted( xs )", lambda xs, n: sorted(xs)),
    _whole("skip first N", "xs[ N : ]", lambda xs, n: xs[n:]),
    _whole("take first N", "xs[ : N ]", lambda xs, n: xs[:n]),
    Skill(
        "drop repeats",
        ("out = []", "for v in xs:", "    if v not in out:", "        out.append( v )", "xs = out"),
        "xs = list( dict.fromkeys( xs ) )",
        lambda xs, n: list(dict.fromkeys(xs)),
    ),
    Skill(
        "running max",
        (
            "out = []",
            "for v in xs:",
            "    if out and out[ - 1 ] > v:",
            "        v = out[ - 1 ]",
            "    out.append( v )",
            "xs = out",
        ),
        "xs = [ max( xs[ : i + 1 ] ) for i in range( len( xs ) ) ]",
        lambda xs, n: [max(xs[: i + 1]) for i in range(len(xs))],
    ),
    Skill(
        "running sum",
        (
            "total = 0",
            "out = []",
            "for v in xs:",
            "    total += v",
            "    out.append( total )",
            "xs = out",
        ),
        "xs = [ sum( xs[ : i + 1 ] ) for i in range( len( xs ) ) ]",
        lambda xs, n: [sum(xs[: i + 1]) for i in range(len(xs))],
    ),
    Skill(
        "flip order",
        ("out = []", "for v in xs:", "    out = [ v ] + out", "xs = out"),
        "xs = xs[ : : - 1 ]",
        lambda xs, n: xs[::-1],
    ),
    Skill(
        "gaps",
        (
            "out = []",
            "for i in range( 1, len( xs ) ):",
            "    out.append( xs[ i ] - xs[ i - 1 ] )",
            "xs = out",
        ),
        "xs = [ q - p for p, q in zip( xs, xs[ 1 : ] ) ]",
        lambda xs, n: [q - p for p, q in zip(xs, xs[1:], strict=False)],
    ),
    Skill(
        "alternate items",
        ("out = []", "for i in range( 0, len( xs ), 2 ):", "    out.append( xs[ i ] )", "xs = out"),
        "xs = xs[ : : 2 ]",
        lambda xs, n: xs[::2],
    ),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A skill with its number (0 where it has none)."""

    skill: Skill
    number: int

    @property
    def phrase(self) -> str:
        return self._fill(self.skill.phrase)

    def lines(self, style: Style) -> list[str]:
        """The code lines of the block, indented for the body of `f`."""
        lines = self.skill.loop if style == "loop" else (self.skill.line,)
        return ["    " + self._fill(line) for line in lines]

    def apply(self, xs: Ints) -> Ints:
        return self.skill.apply(xs, self.number)

    def _fill(self, text: str) -> str:
        return text.replace("N", str(self.number))


PHRASES = frozenset(Step(s, n).phrase for s in SKILLS for n in (NUMBERS if s.has_number else (0,)))
