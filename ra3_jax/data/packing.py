"""Traces -> rows of one fixed length, several traces a row."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ra3_jax.data.trace import AnnotatedTrace, PackedRows

_DTYPES = {
    "tokens_RT": np.int32,
    "segment_ids_RT": np.int32,
    "positions_RT": np.int32,
    "kinds_RT": np.int8,
    "lines_RT": np.int32,
    "example_RT": np.int32,
}


def pack(traces: Sequence[AnnotatedTrace], length: int, pad_id: int = 0) -> tuple[PackedRows, int]:
    """Packs traces into rows of `length` tokens; also the number of traces dropped as too long.

    `example_RT` counts in the order of `traces`. Rows come in the order of packing, long traces
    first: the pipeline shuffles them. Raises ValueError where no trace fits.
    """
    lengths = [len(trace) for trace in traces]
    bins = best_fit(lengths, length)
    if not bins:
        found = f"the shortest has {min(lengths)} tokens" if lengths else "there is none"
        raise ValueError(f"no trace fits into rows of {length} tokens: {found}")
    arrays = {name: np.zeros((len(bins), length), dtype) for name, dtype in _DTYPES.items()}
    arrays["tokens_RT"].fill(pad_id)
    arrays["example_RT"].fill(-1)
    for row, members in enumerate(bins):
        start = 0
        for segment, example in enumerate(members, start=1):
            trace = traces[example]
            span = (row, slice(start, start + len(trace)))
            arrays["tokens_RT"][span] = trace.tokens_T
            arrays["segment_ids_RT"][span] = segment
            arrays["positions_RT"][span] = np.arange(len(trace))
            arrays["kinds_RT"][span] = trace.kinds_T
            arrays["lines_RT"][span] = trace.lines_T
            arrays["example_RT"][span] = example
            start += len(trace)
    return PackedRows(**arrays), len(traces) - sum(map(len, bins))


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit decreasing: longest first, each into the fullest bin that still takes it.

    Returns the indices in each bin; lengths of 0 or beyond `capacity` are in none. O(n) look-ups:
    bins lie in a stack per free space, and bit f of one integer says that the stack of f has any.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    for i in order:
        n = lengths[i]
        if not 0 < n <= capacity:
            continue
        fitting = spaces >> n
        if fitting:
            space = n + (fitting & -fitting).bit_length() - 1  # the least that is at least n
            number = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, number = capacity, len(bins)
            bins.append([])
        bins[number].append(i)
        by_space[space - n].append(number)
        spaces |= 1 << (space - n)
    return bins


def take_rows(rows: PackedRows, indices_B: np.ndarray) -> PackedRows:
    """The rows at `indices_B`, in that order, copied."""
    fields = dataclasses.fields(rows)
    return PackedRows(**{f.name: np.asarray(getattr(rows, f.name)[indices_B]) for f in fields})


def save_rows(rows: PackedRows, directory: Path) -> None:
    """Writes one .npy file per array, for `load_rows`; for corpora larger than memory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _DTYPES:
        np.save(directory / f"{name}.npy", getattr(rows, name))
    # written last: a directory without it was left incomplete
    (directory / "rows.json").write_text(json.dumps({"shape": rows.tokens_RT.shape}))


def load_rows(directory: Path, *, mmap: bool = True) -> PackedRows:
    """Reads what `save_rows` wrote. `mmap`: arrays stay on disk, only rows taken are read."""
    meta = directory / "rows.json"
    if not meta.exists():
        raise FileNotFoundError(f"{directory}: no packed rows, or an unfinished copy (no rows.json)")
    shape = tuple(json.loads(meta.read_text())["shape"])
    arrays = {}
    for name, dtype in _DTYPES.items():
        path = directory / f"{name}.npy"
        array = np.load(path, mmap_mode="r" if mmap else None)
        if array.shape != shape or array.dtype != dtype:
            found = f"{array.dtype} {array.shape}"
            raise ValueError(f"{path}: found {found}, expected {np.dtype(dtype)} {shape}")
        arrays[name] = array
    return PackedRows(**arrays)
