"""Tasks that stay on disk: a row of a .jsonl file becomes a task when it is asked for, found by its byte offset.

The file is local: what lies elsewhere (the hub, a bucket) is copied into the cache first.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.core.paths import local_cache_dir, local_path
from ra3_jax.tasks.rows import MAX_LINE, Row, parse_json
from ra3_jax.tasks.sources import Source
from ra3_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Line:
    """Where a row is: a line of a .jsonl file."""

    path: epath.PathLike
    number: int  # from 1
    offset: int  # bytes
    i: int  # number of the row in its data set, from 0
    digest: bytes  # of its text
    wrapped: bool  # {file, line, unit, data}: a row of another place, kept in the cache

    def row(self, line: bytes) -> Row:
        """Raises InputError."""
        place = f"{self.path}, line {self.number}"
        data = parse_json(line, place)
        if type(data) is not dict:
            raise InputError(f"{place}: found JSON {type(data).__name__}, expected an object")
        return Row(**data) if self.wrapped else Row(data, str(self.path), self.number)


class OnDisk(Sequence[Task]):
    """Tasks that are read from their lines when they are asked for."""

    def __init__(self, lines: Sequence[Line], make: Callable[[Row, int], Task]):
        self._lines, self._make = lines, make

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, i):
        """Raises InputError when the file is no longer what it was, OSError when it is gone."""
        if isinstance(i, slice):
            return OnDisk(self._lines[i], self._make)
        line = self._lines[i]
        with open(line.path, "rb") as file:
            file.seek(line.offset)
            text = file.readline(MAX_LINE + 1)
        if _digest(text) != line.digest:
            raise InputError(f"{line.path}, line {line.number}: the file has changed since the run began to read it")
        return self._make(line.row(text), line.i)


def read_lines(paths: Sequence[epath.PathLike], wrapped: bool) -> Iterator[tuple[bytes, Line]]:
    """Text and place of every row of .jsonl files. Raises InputError."""
    i = 0
    for path in paths:
        offset = 0
        with open(path, "rb") as file:
            for number in itertools.count(1):
                text = file.readline(MAX_LINE + 1)
                if len(text) > MAX_LINE:
                    raise InputError(f"{path}, line {number}: longer than {MAX_LINE >> 20} MiB")
                if not text:
                    break
                if text.strip():
                    yield text, Line(path, number, offset, i, _digest(text), wrapped)
                    i += 1
                offset += len(text)


def cached_rows(name: str, source: Source, limit: int | None, folder: epath.PathLike | None) -> Path:
    """A .jsonl file with the first `limit` rows of a source, each with the place it came from. It is there from an
    earlier run, or written now; `folder` is a local one. Raises InputError."""
    folder = local_cache_dir() / "task_rows" if folder is None else local_path(folder, "cache")
    key = json.dumps([name, source.origin.place, source.origin.version, limit])
    path = folder / f"{name.replace('/', '-')}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
    if path.exists():
        return path
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "w", encoding="ascii") as file:
            for row in itertools.islice(source.rows(), limit):
                try:
                    file.write(json.dumps(dataclasses.asdict(row)) + "\n")
                except (TypeError, ValueError) as error:
                    raise InputError(f"{row.place}: found values that JSON has not ({error})") from error
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{folder}: rows cannot be kept there ({error.strerror or error}); cache=DIR") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).digest()
