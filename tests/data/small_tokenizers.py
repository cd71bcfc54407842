"""Small tokenizers of the families that the codec has to handle, trained on the spot."""

import functools
import sysconfig
import tokenize
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

import ra3_jax.data.tokenizer as ours
from ra3_jax.data.tokenizer import _byte_alphabet

STDLIB = Path(sysconfig.get_path("stdlib"))

# The pre-tokenizer patterns of the published tokenizer.json files.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Bytes that a vocabulary may well contain and that could end a comment, swallow a newline or
# redeclare the encoding.
ODD_BYTES = (
    b"\r", b"\r\n", b"\0", b"x\0", b"\n#", b"\n\n", b"):\n", b"\n    ", b"x\ny = 1", b"\n\x85",
    b"\n\r", b"#\n", b"##", b"#!", b"# -*- coding: ", b" coding: utf-16", b" coding=utf-7",
    b"coding:latin-1", b"\x0c", b"\x0b", b"\x1a", b"\x1c\x1d\x1e", "\x85".encode(),
    "\u2028".encode(), "\u2029".encode(), "\ufeff".encode(), "\u202e".encode(), b"\xe2\x80",
    b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\x8a", b"\xc3", b"\x80\x80", b"\\", b"\\\n", b'"""',
    b"'''", b"type: ignore", b"\t", b"    ",
)  # fmt: skip


def read_source(path: Path) -> str:
    """A file as Python reads it."""
    with tokenize.open(path) as file:
        return file.read()


@functools.cache
def stdlib_sources(start: int, count: int, max_bytes: int = 20_000) -> tuple[tuple[str, str], ...]:
    """(name, text) of `count` modules no larger than `max_bytes`, from the given place on."""
    small = [p for p in sorted(STDLIB.glob("*.py")) if p.stat().st_size <= max_bytes]
    return tuple((p.name, read_source(p)) for p in small[start:][:count])


def _train(pattern: str, vocab_size: int, specials: list[str], normalizer=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in stdlib_sources(0, 40)), trainer)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return tokenizer


@functools.cache
def llama3() -> Tokenizer:
    """Like Llama 3: its pattern, and a post-processor that adds <|begin_of_text|>."""
    tokenizer = _train(LLAMA3, 2000, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=None, special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


@functools.cache
def qwen2() -> Tokenizer:
    """Like Qwen 2.5: its pattern, NFC, and an added token that is not special."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _train(QWEN2, 2000, names, normalizers.NFC())
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer


@functools.cache
def gpt2() -> Tokenizer:
    return _train(GPT2, 2000, ["<|endoftext|>"])


@functools.cache
def odd() -> Tokenizer:
    """Single bytes and ODD_BYTES, the latter out of reach of `encode`."""
    stand_in = {byte: char for char, byte in _byte_alphabet().items()}
    entries = [stand_in[b] for b in range(256)]
    entries += ["".join(stand_in[b] for b in text) for text in ODD_BYTES if len(text) > 1]
    tokenizer = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def byte_fallback(prepend: bool) -> Tokenizer:
    """Like Gemma, or with `prepend` like Llama 2: U+2581 for a space, <0xNN> for other bytes."""
    entries = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    entries += ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "#", "\u2581\u2581"]
    vocab = {entry: i for i, entry in enumerate(entries)}
    merges = [("\u2581", "\u2581")]
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prepend else spaces
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def wrap(tokenizer: Tokenizer, source: str = "test tokenizer", **files: bytes) -> ours.Tokenizer:
    """Our view of it, as if read from a lone tokenizer.json."""
    return ours.Tokenizer({"tokenizer.json": tokenizer.to_str().encode(), **files}, source)
