"""Rows of a data set: read from files as a stream, and their fields checked by type.

Data come from elsewhere and may be broken or hostile: whatever is wrong with them is an InputError that names file,
line and field, and a compressed file may not unpack to more than a generous multiple of its size.
"""

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.core.paths import open_unpacked, size_of

T = TypeVar("T")

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
MAX_LINE = 512 << 20
"""Bytes of one line of a .jsonl file, and of a whole .json file. The largest rows of LiveCodeBench take tens of MB."""
MAX_RATIO = 100
"""Bytes that a byte of a .gz file may unpack to, beyond the first 64 MiB. The benchmarks' files reach 9; a bomb of
zeros, 1,000."""
_REQUIRED: Any = object()


@dataclass(frozen=True)
class Row:
    """One row of a data set and where it stands. Its fields are read by type; InputError says what was found where."""

    data: Mapping[str, Any]
    file: str  # path, or id of a data set
    line: int  # from 1
    unit: str = "line"  # "row" where rows are no lines
    inside: str = ""  # of which part of the row this is

    @property
    def place(self) -> str:
        return f"{self.file}, {self.unit} {self.line}{self.inside}"

    def error(self, field: str, found: str, expected: str) -> InputError:
        """The error to raise for a field that cannot be used."""
        return InputError(f"{self.place}, field {field!r}: found {found}, expected {expected}")

    def has(self, field: str) -> bool:
        """Present, and not null."""
        return self.data.get(field) is not None

    def get(self, field: str, kind: type[T], default: T = _REQUIRED) -> T:
        """The field's value, of exactly that type (a bool is no int; an int is a float). A field that is missing or
        null has the default, where there is one."""
        value = self.data.get(field)
        if value is None:
            if default is _REQUIRED:
                there = "null" if field in self.data else f"no such field (only {', '.join(map(str, self.data))})"
                raise self.error(field, there, kind.__name__)
            return default
        if kind is float and type(value) is int:
            value = float(value)
        return self._of_kind(field, value, kind)

    def _of_kind(self, field: str, value: Any, kind: type[T]) -> T:
        if type(value) is not kind:
            raise self.error(field, f"{type(value).__name__} {_short(value)}", kind.__name__)
        if kind is str and not str(value).isascii():
            try:
                str(value).encode()
            except UnicodeEncodeError as error:  # half a character, which JSON can hold
                raise self.error(field, f"no text (at character {error.start})", "text") from None
        return value

    def text(self, field: str, default: str = _REQUIRED) -> str:
        return self.get(field, str, default)

    def list_of(self, field: str, kind: type[T], default: list[T] = _REQUIRED) -> list[T]:
        """A list, every item of which is of that type."""
        items = self.get(field, list, default)
        for i, item in enumerate(items):
            self._of_kind(f"{field}[{i}]", item, kind)
        return items

    def json(self, field: str, kind: type[T]) -> T:
        """The value, of that type, of a field that holds it as JSON text."""
        value = parse_json(self.text(field), f"{self.place}, field {field!r}")
        if type(value) is not kind:
            raise self.error(field, f"JSON {type(value).__name__} {_short(value)}", f"JSON {kind.__name__}")
        return value

    def value_or_json(self, field: str, kind: type[T]) -> T:
        """A value that some data sets hold as it is and others as JSON text."""
        return self.json(field, kind) if type(self.data.get(field)) is str else self.get(field, kind)

    def child(self, field: str, data: Any) -> "Row":
        """Something inside a field as a row of its own, for the same checks and messages."""
        if not isinstance(data, Mapping):
            raise self.error(field, f"{type(data).__name__} {_short(data)}", "an object")
        return Row(data, self.file, self.line, self.unit, f"{self.inside}, field {field!r}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_json(text: str | bytes, place: str) -> Any:
    """json.loads. Raises InputError that names the place."""
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{place}: JSON nested too deeply") from None
    except ValueError as error:  # malformed, not UTF-8, or an integer beyond Python's limit of digits
        raise InputError(f"{place}: not JSON ({error}); found {_short(text[:200])}") from None


def read_rows(path: epath.PathLike) -> Iterator[Row]:
    """The rows of a .jsonl, .jsonl.gz, .json (a list of objects) or .parquet file, one at a time but for .json.

    Raises InputError for a file that cannot be read, naming the line, and for one that unpacks to too much."""
    path = epath.Path(path)
    try:
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            allowance = (64 << 20) + MAX_RATIO * size_of(path) if path.name.endswith(".gz") else None
            with open_unpacked(path) as file:
                yield from _json_lines(file, path, allowance)
        elif path.name.endswith(".json"):
            for number, data in enumerate(_json_list(path), start=1):
                yield _row(data, path, number, "row")
        elif path.name.endswith(".parquet"):
            yield from _parquet(path)
        else:
            raise InputError(f"{path}: found suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged or incomplete gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path: epath.PathLike) -> Any:
    """The value of a .json file. Raises InputError."""
    try:
        with epath.Path(path).open("rb") as file:
            data = file.read(MAX_LINE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_LINE:
        raise InputError(f"{path}: larger than {MAX_LINE >> 20} MiB; store it as .jsonl, which is streamed")
    return parse_json(data, str(path))


def _json_lines(file: IO[bytes] | gzip.GzipFile, path: epath.Path, allowance: int | None) -> Iterator[Row]:
    left = allowance
    for number in itertools.count(1):
        most = MAX_LINE if left is None else min(MAX_LINE, left)
        line = file.readline(most + 1)
        if not line:
            return
        if len(line) > most:
            if most == MAX_LINE:
                raise InputError(f"{path}, line {number}: longer than {MAX_LINE >> 20} MiB")
            raise InputError(
                f"{path}, line {number}: unpacks to more than {allowance} bytes, which is beyond what such data do"
                " (an archive bomb?); unpack it yourself if you trust it"
            )
        left = None if left is None else left - len(line)
        if line.strip():
            yield _row(parse_json(line, f"{path}, line {number}"), path, number, "line")


def _json_list(path: epath.Path) -> list[Any]:
    data = read_json(path)
    if type(data) is not list:
        raise InputError(f"{path}: found JSON {type(data).__name__}, expected a list of objects")
    return data


def _parquet(path: epath.Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with path.open("rb") as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=16):
                for data in batch.to_pylist():
                    number += 1
                    yield Row(data, str(path), number, "row")
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a parquet file, or a damaged one, after row {number} ({error})") from error


def _row(data: Any, path: epath.Path, number: int, unit: str) -> Row:
    if type(data) is not dict:
        raise InputError(
            f"{path}, {unit} {number}: found JSON {type(data).__name__} {_short(data)}, expected an object"
        )
    return Row(data, str(path), number, unit)


def sha256_of(path: epath.PathLike) -> str:
    try:
        with epath.Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
