"""Paths that may be gs://, and where caches lie. Imports nothing heavy.

What a user names is opened through `etils.epath`: `pathlib` would take gs://bucket/x for the local folder gs:/bucket/x.
"""

import contextlib
import gzip
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from etils import epath

from ra3_jax.core.errors import InputError


def is_remote(path: epath.PathLike) -> bool:
    """Object stores (gs://, s3://) have no append, no fsync, no map into memory and no free space to ask for."""
    return "://" in os.fspath(path)


def local_path(path: epath.PathLike, what: str) -> pathlib.Path:
    """For what only a local file system can do. Raises InputError, which begins with `what`, for a bucket."""
    if is_remote(path):
        raise InputError(f"{what} {os.fspath(path)}: expected a local path; this cannot lie in a bucket")
    return pathlib.Path(path).expanduser()


def optional_path(path: epath.PathLike | None) -> epath.Path | None:
    """Of a flag that need not be given."""
    return None if path is None else epath.Path(path)


@contextlib.contextmanager
def open_unpacked(path: epath.PathLike) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """A file to read from, local or in a bucket; one that ends with .gz is unpacked on the way."""
    with epath.Path(path).open("rb") as file:
        if not os.fspath(path).endswith(".gz"):
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked


def size_of(path: epath.PathLike) -> int:
    """Bytes of a file."""
    return epath.Path(path).stat().length if is_remote(path) else os.stat(path).st_size


def cache_dir() -> epath.Path:
    """Trained bases and compiled programs, kept between runs: $RA3_CACHE (may be gs://) or ~/.cache/ra3_jax."""
    return epath.Path(os.environ.get("RA3_CACHE") or _DEFAULT_CACHE).expanduser()


def local_cache_dir() -> pathlib.Path:
    """What is written and read in many small pieces: in `cache_dir`, or ~/.cache/ra3_jax where that is a bucket."""
    found = cache_dir()
    return pathlib.Path(_DEFAULT_CACHE if is_remote(found) else found).expanduser()


_DEFAULT_CACHE = "~/.cache/ra3_jax"
