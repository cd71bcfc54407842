"""The committed tokenizers have the properties that the codec and the tiny model count on."""

import ast
import inspect
import textwrap

import pytest

from ra3_jax.data import puzzles
from ra3_jax.data.tokenizer import BUILTIN_DIR, load_tokenizer
from ra3_jax.data.tokenizers.build import SPECIALS, STDLIB_VOCAB, build_puzzles

WORDS = load_tokenizer("puzzles")
STDLIB = load_tokenizer("stdlib")
BOTH = pytest.mark.parametrize("tokenizer", [WORDS, STDLIB], ids=["puzzles", "stdlib"])

REAL_CODE = textwrap.dedent(inspect.getsource(textwrap)) + inspect.getsource(ast)
ODD_TEXTS = (
    "", "\n\n\n", "\t x\r\n", "#", "##!x", " #  y", "é 日本語 🙂\u200b", "<|eos|>", "a\x00b",
    "x" * 300, "    \n        z\n",
)  # fmt: skip


@BOTH
def test_round_trip_of_anything(tokenizer):
    for text in (*ODD_TEXTS, REAL_CODE, *(p.prompt + p.code for p in puzzles.generate("mid", 50))):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.special_ids.isdisjoint(ids)


@BOTH
def test_every_byte_and_the_specials_have_an_id(tokenizer):
    spelt = [tokenizer.token_bytes(i) for i in range(tokenizer.size)]
    assert {bytes([b]) for b in range(256)} <= set(spelt)
    assert [i for i, text in enumerate(spelt) if text is None] == [0, 1, 2]
    assert [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id] == [SPECIALS.index(s) for s in SPECIALS] == [0, 1, 2]


@BOTH
def test_newline_and_mark_stand_alone(tokenizer):
    assert len(tokenizer.encode("\n")) == len(tokenizer.encode("#")) == 1
    spelt = [tokenizer.token_bytes(i) or b"" for i in range(tokenizer.size)]
    assert [text for text in spelt if b"\n" in text] == [b"\n"]
    assert [text for text in spelt if text.startswith(b"#")] == [b"#"]


@BOTH
def test_lines_alone_are_encoded_as_in_the_whole_text(tokenizer):
    texts = [p.prompt + p.commented_code for p in puzzles.generate("base", 200, habits=puzzles.BASE_S)]
    for text in [*texts, REAL_CODE, "\n".join(ODD_TEXTS) + "\n"]:
        lines = text.split("\n")
        spans = [i for line in lines[:-1] for i in tokenizer.encode(line + "\n")] + tokenizer.encode(lines[-1])
        assert spans == tokenizer.encode(text)


def puzzle_texts() -> list[str]:
    human = puzzles.generate("base", 600, seed=11, habits=puzzles.BASE_S, ks=puzzles.BASE_LONG_KS)
    texts = [p.prompt + p.commented_code for p in human + puzzles.generate("test", 300, ks=puzzles.LONG_KS)]
    return texts + [f"# {c}\n" for p in human for c in p.oracle_comments if c]


def test_every_puzzle_word_is_one_id():
    """No piece of a puzzle is spelt in bytes but the newline, the mark and bare punctuation."""
    in_bytes = set()
    for text in puzzle_texts():
        in_bytes |= {WORDS.token_bytes(i) for i in WORDS.encode(text) if len(WORDS.token_bytes(i) or b"") == 1}
    assert in_bytes <= {b"\n", b"#", b",", b";", b":"}


def test_words_have_the_same_id_in_prompt_comment_and_code():
    for word in ("v", "xs", "4", "max", "a", "2nd", "repeats"):
        [token] = WORDS.encode(f" {word}")
        for text in (
            f'    """ a {word}, b',
            f"# {word}\n",
            f"    if v > {word}:\n",
            f"xs[ {word} : ]",
        ):
            assert token in WORDS.encode(text)


def test_indentation_is_one_id_and_leaves_a_space_to_the_word():
    for depth in (1, 2, 3):
        first, second, *_ = WORDS.encode("    " * depth + "for v in xs:\n")
        assert WORDS.token_bytes(first) == b" " * (4 * depth - 1)
        assert second == WORDS.encode(" for")[0]


def test_committed_puzzle_tokenizer_is_what_the_script_builds():
    committed = (BUILTIN_DIR / "puzzles.json").read_text("utf-8")
    assert build_puzzles().to_str(pretty=False) + "\n" == committed
    assert WORDS.size == 365


def test_lengths_of_the_tiny_setting():
    """The figures that the presets' row lengths rest on."""
    mid = puzzles.generate("mid", 1000)
    prompt = [1 + len(WORDS.encode(p.prompt)) for p in mid]
    code = [1 + len(WORDS.encode(p.code)) for p in mid]
    assert 33 < sum(prompt) / 1000 < 37
    assert 75 < sum(code) / 1000 < 83
    assert max(p + c for p, c in zip(prompt, code, strict=True)) <= 210


def test_stdlib_tokenizer_compresses_real_code():
    assert STDLIB.size == STDLIB_VOCAB
    assert len(REAL_CODE) / len(STDLIB.encode(REAL_CODE)) > 3.0
    assert (BUILTIN_DIR / "stdlib.json").stat().st_size < 500_000
