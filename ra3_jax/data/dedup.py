"""Which documents are the same, nearly the same, or part of an evaluation benchmark.

Each filter takes documents and yields those it keeps, in order; what it drops goes to the report.
"""

import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator

import numpy as np

from ra3_jax.data.lines import DataError
from ra3_jax.data.sources import Document, SkipReport

_LAYOUT = frozenset({tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER})
_BLOCKS = {tokenize.NEWLINE: "\n", tokenize.INDENT: "\t", tokenize.DEDENT: "\b"}


def code_tokens(text: str, name: str = "<code>") -> list[str]:
    """Python's tokens without comments and layout; marks for ends of lines and of blocks stay."""
    try:
        return [
            _BLOCKS.get(token.type, token.string)
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type not in _LAYOUT
        ]
    except (tokenize.TokenError, SyntaxError) as error:
        raise DataError(name, None, "not Python", f"its tokenizer stopped: {error}") from error


def code_key(text: str, name: str = "<code>") -> bytes:
    """Equal for programs of equal tokens, whatever their comments, blank lines and spacing."""
    joined = "\0".join(code_tokens(text, name)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).digest()[:16]


def drop_duplicates(documents: Iterable[Document], report: SkipReport) -> Iterator[Document]:
    """Keeps the first of the documents with one `code_key`; names and docstrings are content."""
    seen: dict[bytes, str] = {}
    for document in documents:
        try:
            key = code_key(document.prompt + document.code, document.name)
            if key in seen:
                raise DataError(document.name, None, "duplicate", f"same tokens as {seen[key]}")
        except DataError as error:
            report.skip(error)
            continue
        seen[key] = document.name
        yield document


class MinHash:
    """Signatures of sets: the share of equal entries of two estimates their Jaccard similarity.

    Buckets for look-up (LSH): `bands` bands of `rows` entries; two sets of similarity s share a
    bucket with probability 1 - (1 - s^rows)^bands, for 14 x 9: .03 at s = .5, .44 at .7, .9 at .8.
    """

    def __init__(self, bands: int = 14, rows: int = 9, seed: int = 0):
        random = np.random.default_rng(seed)
        self.bands, self.rows = bands, rows
        shape = (bands * rows,)
        self._factor = random.integers(0, 2**64, shape, np.uint64, endpoint=False) | np.uint64(1)
        self._offset = random.integers(0, 2**64, shape, np.uint64, endpoint=False)

    def signature(self, items: Iterable[str]) -> np.ndarray:
        """uint32 [bands * rows]: the least of each hash function over the items (at least one)."""
        hashes = [
            int.from_bytes(hashlib.blake2b(item.encode("utf-8"), digest_size=8).digest(), "little")
            for item in set(items)
        ]
        x_N1 = np.asarray(hashes, np.uint64)[:, None]
        return ((x_N1 * self._factor + self._offset) >> np.uint64(32)).min(0).astype(np.uint32)

    def buckets(self, signature: np.ndarray) -> list[tuple[int, bytes]]:
        return [(i, band.tobytes()) for i, band in enumerate(signature.reshape(self.bands, -1))]


def drop_near_duplicates(
    documents: Iterable[Document], report: SkipReport, threshold: float, shingle: int = 5
) -> Iterator[Document]:
    """Drops a document whose sets of `shingle` neighbouring tokens resemble those of a kept one.

    `threshold`: least estimated Jaccard similarity to drop at. Candidates come from the buckets of
    `MinHash`, which miss few pairs above .8 and more below.
    """
    minhash = MinHash()
    buckets: dict[tuple[int, bytes], list[int]] = {}
    kept: list[tuple[str, np.ndarray]] = []
    for document in documents:
        try:
            tokens = code_tokens(document.prompt + document.code, document.name)
            grams = range(max(1, len(tokens) - shingle + 1))
            signature = minhash.signature("\0".join(tokens[i : i + shingle]) for i in grams)
            keys = minhash.buckets(signature)
            for candidate in sorted({i for key in keys for i in buckets.get(key, ())}):
                name, other = kept[candidate]
                similarity = float((signature == other).mean())
                if similarity >= threshold:
                    detail = f"{similarity:.2f} like {name}"
                    raise DataError(document.name, None, "near duplicate", detail)
        except DataError as error:
            report.skip(error)
            continue
        for key in keys:
            buckets.setdefault(key, []).append(len(kept))
        kept.append((document.name, signature))
        yield document
