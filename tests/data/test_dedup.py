"""Duplicates by tokens, near duplicates by MinHash."""

import numpy as np
import pytest

from ra3_jax.data.dedup import MinHash, code_key, drop_duplicates, drop_near_duplicates
from ra3_jax.data.sources import Document, SkipReport

PROMPT = "def f(xs):\n"
CODE = "    n = 0\n    for x in xs:\n        n += x\n    return n\n"


@pytest.mark.parametrize(
    "same",
    [
        "def f( xs ) :\n  # count\n  n=0\n\n  for x in xs:  # all\n      n+=x\n  return n",
        "def f(\n    xs\n):\n\tn = 0\n\tfor x in xs:\n\t\tn += x\n\treturn n\n# end\n",
    ],
)
def test_layout_and_comments_do_not_count(same):
    assert code_key(same) == code_key(PROMPT + CODE)


@pytest.mark.parametrize(
    "other",
    [
        PROMPT + CODE.replace("    return", "        return"),  # another block
        PROMPT + CODE.replace("n = 0", "n = 1"),
        PROMPT.replace("f(", "g(") + CODE,
        PROMPT + '    "doc"\n' + CODE,
        PROMPT + CODE.replace("n = 0\n", 'n = "#"\n'),
    ],
)
def test_other_programs_have_other_keys(other):
    assert code_key(other) != code_key(PROMPT + CODE)


def test_first_of_the_duplicates_is_kept_and_the_others_counted():
    stream = [
        Document("a", PROMPT, CODE),
        Document("b", PROMPT, "    return 1\n"),
        Document("c", "", PROMPT + "# note\n" + CODE),
        Document("d", "", "x = (\n"),
    ]
    report = SkipReport()
    assert [d.name for d in drop_duplicates(stream, report)] == ["a", "b"]
    assert report.counts == {"duplicate": 1, "not Python": 1}
    assert report.examples["duplicate"] == "c: same tokens as a"


def test_minhash_estimates_jaccard_similarity():
    minhash = MinHash(bands=64, rows=8)
    random = np.random.default_rng(0)
    for shared in (0, 20, 60, 95, 100):
        words = [str(i) for i in random.permutation(1000)[: 200 - shared]]
        a, b = words[:100], words[100 - shared :]
        estimate = (minhash.signature(a) == minhash.signature(b)).mean()
        assert len(b) == 100
        assert estimate == pytest.approx(shared / (200 - shared), abs=0.08)


def test_near_duplicates_are_dropped_at_the_threshold():
    body = "".join(f"    x{i} = f(x{i - 1}, {i})\n" for i in range(1, 40))
    stream = [
        Document("a", "def f(x0):\n", body),
        Document("b", "def f(x0):\n", body.replace("x20 =", "y20 =")),
        Document("c", "def f(x0):\n", body.replace("= f(", "+= g.h(")),
        Document("d", "def f(x0):\n", "    return x0\n"),
    ]
    report = SkipReport()
    assert [d.name for d in drop_near_duplicates(stream, report, 0.7)] == ["a", "c", "d"]
    assert report.counts == {"near duplicate": 1}
    assert report.examples["near duplicate"].endswith("like a")
    # only exact copies reach a similarity of 1
    assert len(list(drop_near_duplicates([*stream, stream[0]], SkipReport(), 1.0))) == 4
