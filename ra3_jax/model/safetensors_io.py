"""The safetensors format, tensor by tensor: read from a local file or a bucket, written as a stream.

    8 bytes     length of the header, little endian
    header      JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {...}}
    data        row-major, little endian; offsets count from here

(https://huggingface.co/docs/safetensors, "Format".) The library's own functions open local files only, and write what
lies in memory as a whole.
"""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
from etils import epath

from ra3_jax.core.paths import is_remote

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_HEADER = 100 << 20  # bytes; the library's own limit

assert sys.byteorder == "little"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: epath.Path
    dtype: str  # as the format calls it; only those of DTYPES can be read
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file

    def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Its rows `first:last`, in their own dtype. Of a local file they are mapped: pages are read when touched, and
        are the system's to drop. From a bucket their bytes are fetched."""
        dtype = DTYPES[self.dtype]
        rows = range(*slice(first, last).indices(self.shape[0]))
        shape = (len(rows), *self.shape[1:])
        offset = self.offset + rows.start * math.prod(self.shape[1:]) * dtype.itemsize
        if not is_remote(self.path):
            return np.asarray(np.memmap(self.path, dtype, "r", offset, shape))
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)


def read_header(path: epath.Path) -> dict[str, Stored]:
    """The tensors of a file, by name. Raises ValueError for a file that is damaged or none of safetensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= MAX_HEADER else b""
        size = file.seek(0, os.SEEK_END)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        spans = {name: entry["data_offsets"] for name, entry in header.items()}
        found = {
            name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + spans[name][0])
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its beginning is not the header of a safetensors file ({error!r})") from error
    needed = 8 + length + max((end for _, end in spans.values()), default=0)
    if size != needed:
        raise ValueError(f"{path}: {size} bytes, but by its header {needed}: damaged or incomplete; fetch it again")
    for name, (begin, end) in spans.items():
        dtype = DTYPES.get(found[name].dtype)
        if dtype is not None and end - begin != math.prod(found[name].shape) * dtype.itemsize:
            raise ValueError(f"{path}: {name} has {end - begin} bytes, expected {dtype} {found[name].shape}")
    return found


def write_file(
    path: epath.Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, tensors: Iterable[np.ndarray]
) -> None:
    """Writes `tensors`, which come in the order of their sorted names: byte for byte what the library would write."""
    code = next(code for code, known in DTYPES.items() if known == dtype)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        begin, end = end, end + math.prod(shapes[name]) * dtype.itemsize
        header[name] = {"dtype": code, "shape": shapes[name], "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in zip(sorted(shapes), tensors, strict=True):
            assert tensor.dtype == dtype and tensor.shape == shapes[name], name
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
