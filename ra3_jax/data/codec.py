"""Programs in id space, and back to text.

A line's span is encode(line + "\\n"): Llama-3 and Qwen merge `):` and the newline into one id, so
the newline belongs to the line it ends. Spans are concatenated, never encoded together; how far
that is from the tokenizer's own ids of the whole text is `noncanonical_rate`. The events of the
trace policy are sets of ids (`EventSets`), chosen so that any sampled thought is a comment:
whatever ids stand between the mark and the newline, the program parses to the same syntax tree.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from ra3_jax.data.identity import content_id
from ra3_jax.data.lines import (
    Comments,
    DataError,
    logical_lines,
    split_comments,
    with_final_newline,
)
from ra3_jax.data.tokenizer import Tokenizer
from ra3_jax.data.trace import AnnotatedTrace, Latent, Program

_SPACES = b" \t\n\x0b\x0c"
_CODING = re.compile(r"[ \t\f]*#.*?coding[:=][ \t]*[-\w.]+", re.ASCII)  # PEP 263


@dataclasses.dataclass(frozen=True, eq=False)
class EventSets:
    """The events of the trace policy as sets of ids: bool arrays over the model's vocabulary."""

    mark_V: np.ndarray  # M: text begins with "#"
    newline_V: np.ndarray  # N: has a newline and after it only spaces; no "\r", no NUL
    banned_V: np.ndarray  # masked inside a rationale: no text, "\r", NUL, or text after a newline
    mark_id: int  # what <think> writes: exactly "#"
    newline_id: int  # what the end of a rationale writes: exactly "\n"
    eos_id: int
    bos_id: int
    pad_id: int  # may equal eos_id


class Codec:
    """Text <-> programs and traces for one tokenizer and one model vocabulary.

    `sets`: the events. `vocab_size`: width of the logits, at least the tokenizer's (HF models pad).
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None):
        vocab_size = tokenizer.size if vocab_size is None else vocab_size
        if vocab_size < tokenizer.size:
            raise ValueError(
                f"{tokenizer.source}: {tokenizer.size} ids, but the vocabulary of the model has {vocab_size}"
            )
        self.tokenizer = tokenizer
        self.sets = _event_sets(tokenizer, vocab_size)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The exact text of the ids, control tokens left out (see Tokenizer.decode)."""
        return self.tokenizer.decode(ids)

    def prompt_ids(self, prompt: str, name: str = "<prompt>") -> np.ndarray:
        """[begin-of-text] + ids of the prompt, a final newline added where a text lacks one."""
        prompt = with_final_newline(prompt)
        spans = self._exact([prompt], name) if prompt else []
        return np.asarray([self.sets.bos_id, *(i for span in spans for i in span)], np.int32)

    def program(self, prompt: str, code: str, name: str, comments: Comments = "strip") -> Program:
        """The program whose actions are the logical lines of `code` (see lines.py) and end-of-text.

        `comments="observe"` gives the corpus's comments as `Program.observed`. The example id is a
        hash of prompt and lines without comments: the same in all three modes. Raises DataError
        where prompt + code is not Python, where no line of code is left, or where the tokenizer
        does not give the text back exactly.
        """
        kept = logical_lines(code, prompt, "keep", name)
        lines, observed = split_comments(kept)
        if not lines:
            raise DataError(name, None, "no line of code")
        example_id = content_id(with_final_newline(prompt), *(line.text for line in lines))
        lines = kept if comments == "keep" else lines
        texts, rows = [line.text for line in lines], [line.row for line in lines]
        program = self._program(prompt, texts, rows, name, example_id)
        if comments != "observe":
            return program
        return dataclasses.replace(program, observed=self._latents(observed, name))

    def program_of_lines(self, prompt: str, lines: Sequence[str], name: str) -> Program:
        """`program` of code that is known to be these logical lines (generated code): nothing is parsed."""
        example_id = content_id(with_final_newline(prompt), *lines)
        return self._program(prompt, lines, None, name, example_id)

    def _program(
        self, prompt: str, lines: Sequence[str], rows: Sequence[int] | None, name: str, example_id: int
    ) -> Program:
        texts = [line + "\n" for line in lines]
        spans = [np.asarray(span, np.int32) for span in self._exact(texts, name, rows)]
        return Program(
            example_id=example_id,
            name=name,
            prompt_ids=self.prompt_ids(prompt, name),
            lines=(*spans, np.asarray([self.sets.eos_id], np.int32)),
            code_bytes=sum(len(text.encode("utf-8")) for text in texts),
        )

    def source(self, trace: AnnotatedTrace) -> str:
        """Python text of prompt and annotated code, safe to be read as a file's bytes.

        A comment in the first two lines that reads like an encoding declaration (PEP 263) would
        change how the file is decoded; blank lines above take that effect away.
        """
        text = self.decode(trace.tokens_T)
        if any(_CODING.match(row) for row in text.split("\n", 2)[:2]):
            return "\n\n" + text
        return text

    def noncanonical_rate(
        self,
        programs: Sequence[Program],
        attachment: Literal["trailing", "leading"] = "trailing",
    ) -> float:
        """Share of tokens, over all programs, that are not the tokenizer's own.

        A token is canonical when the tokenizer's encoding of the whole text has the same id over
        the same bytes. The whole text is what the policy sees: prompt and lines, without control
        tokens. `trailing` is the codec's own spans; `leading` attaches each newline to the line
        after it. (Llama-3 and Qwen merge `):` with the newline and are canonical under trailing;
        GPT-2 merges the newline with the indentation behind it and is so under leading.)
        """
        strange = total = 0
        for program in programs:
            prompt = self.decode(program.prompt_ids)
            lines = [self.decode(line) for line in program.lines[:-1]]
            if attachment == "trailing":
                ids = np.concatenate([program.prompt_ids[1:], *program.lines[:-1]]).tolist()
            else:
                text = [prompt, *lines] if prompt else lines
                pieces = [text[0][:-1], *("\n" + piece[:-1] for piece in text[1:]), "\n"]
                ids = [i for span in self.tokenizer.encode_batch(pieces) for i in span]
            whole = set(self._placed(self.encode(prompt + "".join(lines))))
            strange += sum(place not in whole for place in self._placed(ids))
            total += len(ids)
        return strange / max(total, 1)

    def _placed(self, ids: Iterable[int]) -> list[tuple[int, int]]:
        """(first byte, id) of each token."""
        places, start = [], 0
        for i in map(int, ids):
            places.append((start, i))
            start += len(self.tokenizer.token_bytes(i) or b"")
        return places

    def _exact(self, texts: Sequence[str], name: str, rows: Sequence[int] | None = None) -> list[list[int]]:
        """Ids of each text. Raises DataError where they do not decode to exactly that text."""
        spans = self.tokenizer.encode_batch(texts)
        for n, (text, span) in enumerate(zip(texts, spans, strict=True)):
            back = self.decode(span)
            if back != text:
                row = rows[n] if rows is not None else None
                detail = f"{_around(text, back)} becomes {_around(back, text)}"
                raise DataError(name, row, "the tokenizer changes the text", detail)
        return spans

    def _latents(self, comments: Sequence[str | None], name: str) -> tuple[Latent | None, ...]:
        spans = iter(self._exact([c for c in comments if c is not None], name))
        return tuple(None if c is None else Latent(tuple(next(spans))) for c in comments)


def _event_sets(tokenizer: Tokenizer, vocab_size: int) -> EventSets:
    mark_V = np.zeros(vocab_size, bool)
    newline_V = np.zeros(vocab_size, bool)
    banned_V = np.ones(vocab_size, bool)  # stays so for ids without text
    for i in range(tokenizer.size):
        text = tokenizer.token_bytes(i)
        if text is None:
            continue
        _, newline, rest = text.partition(b"\n")
        mark_V[i] = text.startswith(b"#")
        banned_V[i] = b"\r" in text or b"\0" in text or bool(rest.strip(_SPACES))
        newline_V[i] = bool(newline) and not banned_V[i]
    return EventSets(
        mark_V=mark_V,
        newline_V=newline_V,
        banned_V=banned_V,
        mark_id=_single_id(tokenizer, "#"),
        newline_id=_single_id(tokenizer, "\n"),
        eos_id=tokenizer.eos_id,
        bos_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
    )


def _single_id(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text)
    if len(ids) != 1 or tokenizer.token_bytes(ids[0]) != text.encode("utf-8"):
        found = [tokenizer.token_bytes(i) for i in ids]
        raise ValueError(
            f"{tokenizer.source}: the trace policy needs one id that is exactly {text!r}; encoding it gives {found}"
        )
    return ids[0]


def _around(text: str, other: str) -> str:
    """The few characters of `text` where it leaves `other`, for an error message."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), None)
    same = min(len(text), len(other)) if same is None else same
    return ascii(text[max(0, same - 8) : same + 8])
