"""A fake of gs:// for `etils.epath`: objects are files below a temporary directory, with the manners of a bucket.

Nothing is appended to or renamed, an object is seen once its writer has closed it, and a folder is there while an
object is in it. (Checkpoints are not for it: Orbax does not write through `epath` alone.)
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils.epath import backend, gpath


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory that gs:// stands for. At the end: nothing took gs:// for a local folder."""
    root, cwd = tmp_path / "buckets", tmp_path / "cwd"
    for folder in (root, cwd):
        folder.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Bucket(root))
    yield root
    assert not (cwd / "gs:").exists(), f"written locally: {sorted((cwd / 'gs:').rglob('*'))}"


class Bucket:
    """An `etils` backend."""

    def __init__(self, root: Path):
        self._root = root

    def _here(self, path: str) -> str:
        assert str(path).startswith("gs://"), path
        return str(self._root / str(path).removeprefix("gs://"))

    def open(self, path: str, mode: str):
        if "r" in mode:
            return open(self._here(path), mode)
        assert "w" in mode, f"a bucket has no mode {mode!r}"
        return Upload(self._here(path), "b" in mode)

    def exists(self, path: str) -> bool:
        return os.path.exists(self._here(path))

    def isdir(self, path: str) -> bool:
        return os.path.isdir(self._here(path))

    def listdir(self, path: str) -> list[str]:
        return os.listdir(self._here(path))

    def glob(self, path: str) -> list[str]:
        return [f"gs://{os.path.relpath(x, self._root)}" for x in backend.os_backend.glob(self._here(path))]

    def makedirs(self, path: str, **options) -> None:
        """There are no folders."""

    mkdir = makedirs

    def remove(self, path: str) -> None:
        file = self._here(path)
        os.remove(file)
        folder = os.path.dirname(file)
        while not os.listdir(folder):
            os.rmdir(folder)
            folder = os.path.dirname(folder)

    def rmtree(self, path: str) -> None:
        backend.os_backend.rmtree(self._here(path))

    def stat(self, path: str):
        return backend.os_backend.stat(self._here(path))


class Upload:
    """Collects what is written; the object appears at the end."""

    def __init__(self, target: str, binary: bool):
        self._target, self._data = target, io.BytesIO() if binary else io.StringIO()

    def __enter__(self):
        return self._data

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        os.makedirs(os.path.dirname(self._target), exist_ok=True)
        content = self._data.getvalue()
        with open(self._target, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
