"""A .jsonl file that only grows, and that survives the process that writes it."""

import json
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.core.paths import is_remote

SYNC_SECONDS = 1.0
REMOTE_SECONDS = 30.0


class Journal:
    """Opens (or makes) the file for appending; `rows` are those it had.

    A last line that was cut short by a kill is removed; any other line that cannot be read is an InputError with its
    number: somebody else has written it. Appended rows reach the system at once and the disk within SYNC_SECONDS (of
    the next row), or at the end of the `with` block. A bucket cannot append: there the whole object is written again,
    at most every REMOTE_SECONDS and at the end, and a kill without notice loses the rows since. Raises InputError where
    the file cannot be written.
    """

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path)
        self._remote = is_remote(path)
        try:
            if self._remote:
                self._data = bytearray(self.path.read_bytes() if self.path.exists() else b"")
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "a+b")
                self._file.seek(0)
                self._data = bytearray(self._file.read())
        except OSError as error:
            raise self._unwritable(error) from error
        lines = self._data.split(b"\n")
        torn = lines.pop()
        if torn:
            del self._data[-len(torn) :]
            if not self._remote:
                self._file.truncate(len(self._data))
        self.rows: list[dict[str, Any]] = [self._parse(line, n) for n, line in enumerate(lines, start=1)]
        if not self._remote:
            self._data.clear()  # the file has them
        self._synced = time.monotonic()

    def append(self, row: Mapping[str, Any]) -> None:
        """Raises InputError when the disk is full."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            if self._remote:
                self._data += line
            else:
                self._file.write(line)
                self._file.flush()
            if time.monotonic() - self._synced > (REMOTE_SECONDS if self._remote else SYNC_SECONDS):
                self.sync()
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> None:
        if self._remote:
            self.path.write_bytes(bytes(self._data))
        else:
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        if not self._remote:
            self._file.close()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: cannot be written ({error.strerror or error})")

    def _parse(self, line: bytes | bytearray, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{self.path}, line {number}: not JSON ({error}); remove the line or the file") from error
        if type(row) is not dict:
            raise InputError(f"{self.path}, line {number}: found {type(row).__name__}, expected an object")
        return row
