"""Builds the two tokenizers of the project; their JSON files are committed next to this script.

    python -m ra3_jax.data.tokenizers.build            # both, into this directory
    python -m ra3_jax.data.tokenizers.build --out DIR

`puzzles` is word-level with byte fallback: the 256 bytes, and every word of the lettered pipelines
as one id. `stdlib` is an ordinary byte-level BPE for small models of real Python, trained on the
standard library of the running interpreter; the committed one is of Python 3.11.7.
"""

import argparse
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from ra3_jax.data import puzzles

SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>")

# A newline alone; a word with the space before it and a "(" or "[" after it; a method with its "(";
# a "#" alone; punctuation with the space before it; indentation up to its last space.
PUZZLE_PIECES = r"\n| ?\w+[(\[]?|\.\w+\(?| ?#| ?[^\s\w#]+|[^\S\n]+(?= \S)|[^\S\n]+"

# As GPT-4 and Qwen2 (digit by digit), but a newline and a "#" are always pieces of their own.
STDLIB_PIECES = (
    r"\n| ?#|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n#\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}#]+|[^\S\n]+(?!\S)|[^\S\n]+"
)

STDLIB_VOCAB = 6144
STDLIB_MODULES = """
    abc argparse ast base64 bisect calendar cmd code codecs collections colorsys configparser
    contextlib copy csv dataclasses datetime difflib dis enum filecmp fileinput fnmatch
    fractions functools getopt glob graphlib gzip hashlib heapq html inspect io ipaddress
    json.decoder json.encoder keyword linecache locale numbers operator os pathlib pprint queue
    random reprlib sched secrets shelve shlex shutil socketserver statistics string tempfile
    textwrap threading timeit tokenize traceback types typing uuid warnings weakref zipfile
""".split()


def byte_pieces(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Splits text by `pattern`, then writes each piece in the byte-level alphabet."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build_puzzles() -> Tokenizer:
    """Specials, bytes, then every piece of the puzzle family in alphabetical order.

    There are no merges, and so no ids for parts of words: with `ignore_merges` a piece of the
    vocabulary is one id, and any other piece is spelt in bytes.
    """
    pieces = byte_pieces(PUZZLE_PIECES)
    words: set[str] = set()
    for puzzle in _covering_puzzles():
        text = puzzle.prompt + puzzle.commented_code
        words.update(piece for piece, _ in pieces.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*SPECIALS, *alphabet, *sorted(words - set(alphabet))]
    vocab = {entry: i for i, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_special_tokens())
    return tokenizer


def _covering_puzzles() -> Iterable[puzzles.Puzzle]:
    """Enough programs to contain every piece: all lengths, both styles, all kinds of comments."""
    habits = puzzles.Habits(full=0.4, phrase=0.2, vague=0.4, vague_rate=0.5)
    return puzzles.generate("base", 3000, habits=habits, ks=dict.fromkeys(range(1, 7), 1.0))


def build_stdlib() -> Tokenizer:
    """Byte-level BPE of `STDLIB_VOCAB` entries, trained on the source of `STDLIB_MODULES`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_pieces(STDLIB_PIECES)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=STDLIB_VOCAB,
        special_tokens=_special_tokens(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_module_source, STDLIB_MODULES), trainer)
    return tokenizer


def _module_source(name: str) -> str:
    root = Path(sysconfig.get_path("stdlib"), *name.split("."))
    return (root / "__init__.py" if root.is_dir() else root.with_suffix(".py")).read_text("utf-8")


def _special_tokens() -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in SPECIALS]


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds puzzles.json and stdlib.json.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="directory")
    out = parser.parse_args().out
    for name, tokenizer in (("puzzles", build_puzzles()), ("stdlib", build_stdlib())):
        path = out / f"{name}.json"
        path.write_text(tokenizer.to_str(pretty=False) + "\n", "utf-8")
        print(f"{path}: {tokenizer.get_vocab_size()} entries, {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
