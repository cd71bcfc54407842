"""Corpus sources: from files, the standard library and Hugging Face to documents.

Whatever a corpus holds (binary files, Python 2, minified code, broken rows), nothing of it stops
the reading: it is skipped and counted in a `SkipReport` by reason, with one example each. What the
user got wrong (a path, a column, a data set that cannot be reached) stops it with a message that
says what was found and what to do.
"""

import collections
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import os
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from ra3_jax.core.paths import is_remote, open_unpacked, size_of
from ra3_jax.data.config import DataConfig
from ra3_jax.data.functions import function_nodes, split_function
from ra3_jax.data.lines import DataError, logical_lines, parse, with_final_newline

SUFFIXES = (".py", ".jsonl", ".jsonl.gz", ".parquet")
# Never entered: installed packages, caches, hidden directories.
SKIPPED_DIRECTORIES = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})
# The interpreter's own tests: lists of assertions, some files broken on purpose. The rest of
# idlelib, tkinter, turtledemo and lib2to3 is ordinary code and stays.
STDLIB_TESTS = frozenset({"test", "tests", "idle_test"})


@dataclasses.dataclass(frozen=True)
class Document:
    """One example. `prompt + code` is Python; the prompt is "" or ends with a logical line."""

    name: str  # where it came from: file, file:row, or either with ::function
    prompt: str
    code: str


@dataclasses.dataclass
class SkipReport:
    """What was read and what was left out; the caller prints it."""

    source: str = ""  # the corpus, with the commit of a HF dataset
    kept: int = 0  # documents
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)  # reason -> first case
    notes: list[str] = dataclasses.field(default_factory=list)

    def skip(self, error: DataError) -> None:
        """Counts by reason, and keeps the first case of each: where, and what was found."""
        self.counts[error.reason] += 1
        where = error.name if error.row is None else f"{error.name}, line {error.row}"
        self.examples.setdefault(error.reason, ": ".join(filter(None, (where, error.detail))))

    def __str__(self) -> str:
        rows = [f"{self.source}: {self.kept} documents"]
        for reason, count in self.counts.most_common():
            rows.append(f"  skipped {count}: {reason} (such as {self.examples[reason]})")
        return "\n".join(rows + [f"  {note}" for note in self.notes])


@dataclasses.dataclass(frozen=True)
class _Raw:
    """One file or row before it is decoded, parsed and filtered."""

    name: str
    text: bytes | str
    prompt: str = ""


def documents(config: DataConfig, report: SkipReport) -> Iterator[Document]:
    """The documents of `config.corpus` that pass its limits, in a fixed order; fills `report`.

    Raises FileNotFoundError for a missing path and ValueError for what cannot be read as a corpus.
    """
    for raw in _raw_texts(config, report):
        try:
            found = _split(raw, config, report)
        except DataError as error:
            report.skip(error)
            continue
        for document in found:
            try:
                _check_size(document, config)
            except DataError as error:
                report.skip(error)
            else:
                yield document


def decode(data: bytes, name: str) -> str:
    """Source text of a .py file as Python reads it: PEP 263 encoding, universal newlines."""
    if b"\0" in data:
        raise DataError(name, None, "binary file")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return io.TextIOWrapper(io.BytesIO(data), encoding).read()
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise DataError(name, None, "undecodable", f"{error}") from error


def _split(raw: _Raw, config: DataConfig, report: SkipReport) -> list[Document]:
    """The documents of one file or row. Raises DataError where it has none."""
    text = raw.text
    size = len(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    if size > config.max_file_bytes:
        raise DataError(raw.name, None, "larger than max_file_bytes", f"{size} bytes")
    text = decode(text, raw.name) if isinstance(text, bytes) else text
    text, prompt = with_final_newline(text.removeprefix("\ufeff")), with_final_newline(raw.prompt)
    tree = parse(prompt + text, raw.name)
    if config.unit == "file":
        return [Document(raw.name, prompt, text)]
    rows = text.split("\n")
    found = list(function_nodes(tree))
    if not found:
        raise DataError(raw.name, None, "no function in it")
    documents = []
    for qualified_name, node in found:
        name = f"{raw.name}::{qualified_name}"
        try:
            documents.append(Document(name, *split_function(rows, node, name)))
        except DataError as error:
            report.skip(error)
    return documents


def _check_size(document: Document, config: DataConfig) -> None:
    """Raises DataError for a document outside the limits, or one that is not Python on its own."""
    longest = max(len(row.encode("utf-8")) for row in (document.prompt + document.code).split("\n"))
    if longest > config.max_line_bytes:
        raise DataError(document.name, None, "line longer than max_line_bytes", f"{longest} bytes")
    n_lines = len(logical_lines(document.code, document.prompt, "strip", document.name))
    if n_lines < config.min_lines:
        raise DataError(document.name, None, "fewer lines than min_lines", f"{n_lines}")
    if config.max_lines is not None and n_lines > config.max_lines:
        raise DataError(document.name, None, "more lines than max_lines", f"{n_lines}")


def _raw_texts(config: DataConfig, report: SkipReport) -> Iterator[_Raw]:
    if config.corpus == "puzzles":
        raise ValueError("corpus='puzzles' is generated by ra3_jax.data.puzzles; it is not a source of documents")
    if config.corpus.startswith("hf:"):
        yield from _hf_rows(config, report)
        return
    if config.corpus == "stdlib":
        root = epath.Path(sysconfig.get_paths()["stdlib"])
        report.source = f"standard library ({root})"
        files = _files(root, (".py",), SKIPPED_DIRECTORIES | STDLIB_TESTS)
    else:
        root = epath.Path(config.corpus).expanduser()
        report.source = str(root)
        files = _corpus_files(root)
    if not files:
        raise ValueError(f"corpus {config.corpus!r}: no {', '.join(SUFFIXES)} file under {root}")
    for path in files:
        name = path.name if path == root else path.relative_to(root).as_posix()
        name = name.encode("utf-8", "replace").decode("utf-8")  # always printable
        if path.name.endswith(".py"):
            try:
                yield _python_file(path, name, config)
            except DataError as error:
                report.skip(error)
        elif path.name.endswith(".parquet"):
            yield from _parquet_rows(path, name, config, report)
        else:
            yield from _jsonl_rows(path, name, config, report)


def _corpus_files(root: epath.Path) -> list[epath.Path]:
    if not root.exists():
        raise FileNotFoundError(
            f"corpus {str(root)!r}: no such file or directory; expected 'puzzles', 'stdlib', 'hf:ID' or a path"
        )
    if root.is_dir():
        return _files(root, SUFFIXES, SKIPPED_DIRECTORIES)
    if not root.name.endswith(SUFFIXES):
        raise ValueError(f"corpus {str(root)!r}: found suffix {root.suffix!r}, expected {', '.join(SUFFIXES)}")
    return [root]


def _files(root: epath.Path, suffixes: tuple[str, ...], skipped: frozenset[str]) -> list[epath.Path]:
    """Files under `root`, ordered by a hash of their paths so that a beginning is a sample."""

    def order(path: epath.Path) -> bytes:
        relative = path.relative_to(root).as_posix()
        return hashlib.sha256(relative.encode("utf-8", "surrogateescape")).digest()

    def enter(name: str) -> bool:
        return name not in skipped and not name.startswith(".")

    found = []
    if is_remote(root):
        folders = [root]
        while folders:  # by hand: `epath.walk` loses the gs:// of what it finds there
            for path in folders.pop().iterdir():
                if path.name.endswith(suffixes):
                    found.append(path)
                elif enter(path.name) and path.is_dir():
                    folders.append(path)
    else:
        for directory, inside, names in os.walk(root):
            inside[:] = filter(enter, inside)
            found += [epath.Path(directory, name) for name in names if name.endswith(suffixes)]
    return sorted(found, key=order)


def _python_file(path: epath.Path, name: str, config: DataConfig) -> _Raw:
    try:
        size = size_of(path)
        if size > config.max_file_bytes:  # before it is read
            raise DataError(name, None, "larger than max_file_bytes", f"{size} bytes")
        return _Raw(name, path.read_bytes())
    except OSError as error:
        raise DataError(name, None, "unreadable", f"{error}") from error


def _jsonl_rows(path: epath.Path, name: str, config: DataConfig, report: SkipReport) -> Iterator[_Raw]:
    """One object a line; empty lines are nothing, broken ones are counted by line number."""
    has_column = False
    try:
        with open_unpacked(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        found = f"{type(row).__name__}, not an object"
                        raise DataError(f"{name}:{number}", None, "broken row", found)
                    if not has_column:
                        _check_columns(row, config, f"{path}:{number}")
                        has_column = True
                    yield _row(row, f"{name}:{number}", config)
                except DataError as error:
                    report.skip(error)
                except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                    report.skip(DataError(f"{name}:{number}", None, "broken row", f"{error}"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or incomplete gzip file ({error}); fetch it again") from error


def _parquet_rows(path: epath.Path, name: str, config: DataConfig, report: SkipReport) -> Iterator[_Raw]:
    import pyarrow
    import pyarrow.parquet

    with path.open("rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path}: not a parquet file ({error})") from error
        _check_columns(dict.fromkeys(table.schema_arrow.names), config, str(path))
        columns = [name for name in (config.text_column, config.prompt_column) if name is not None]
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield _row(row, f"{name}:{number}", config)
                except DataError as error:
                    report.skip(error)


def _hf_rows(config: DataConfig, report: SkipReport) -> Iterator[_Raw]:
    """Streams a HF dataset at the commit that its revision stands for now."""
    import datasets
    import huggingface_hub

    dataset_id = config.corpus.removeprefix("hf:")
    try:
        # asked first: it fails at once where the loader would retry for half a minute
        sha = huggingface_hub.HfApi().dataset_info(dataset_id, revision=config.hf_revision).sha
        rows = datasets.load_dataset(
            dataset_id,
            config.hf_name,
            data_dir=config.hf_data_dir,
            split=config.hf_split,
            revision=sha,
            streaming=True,
        )
        rows = iter(rows)
        first: dict[str, Any] | None = next(rows, None)
    except Exception as error:
        # of whatever type: the hub passes on the errors of its transport, the ways out are the same
        raise ValueError(
            f"HF dataset {dataset_id!r} (hf_name={config.hf_name!r},"
            f" hf_data_dir={config.hf_data_dir!r}, hf_split={config.hf_split!r},"
            f" hf_revision={config.hf_revision!r}) cannot be read:"
            f" {type(error).__name__}: {error}\nCheck these names. For a gated data set accept its"
            " terms on its page and run `hf auth login`. Without network, give the path of"
            " downloaded .parquet or .jsonl files as the corpus."
        ) from error
    report.source = f"hf:{dataset_id}@{sha}"
    if first is None:
        return
    _check_columns(first, config, report.source)
    for number, row in enumerate(itertools.chain([first], rows), start=1):
        try:
            yield _row(row, f"{dataset_id}:{number}", config)
        except DataError as error:
            report.skip(error)


def _check_columns(row: dict[str, Any], config: DataConfig, where: str) -> None:
    for field in ("text_column", "prompt_column"):
        column = config.text_column if field == "text_column" else config.prompt_column
        if column is not None and column not in row:
            raise ValueError(f"{where}: {field}={column!r} is not a column; found {', '.join(sorted(row))}")


def _row(row: dict[str, Any], name: str, config: DataConfig) -> _Raw:
    prompt = "" if config.prompt_column is None else row.get(config.prompt_column)
    text = row.get(config.text_column)
    if not isinstance(text, str) or not isinstance(prompt, str):
        raise DataError(name, None, "row without text", "a column is missing or not a string")
    return _Raw(name, text, prompt)
