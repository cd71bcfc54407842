"""Packing loses nothing, wastes little, and is the same every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3_jax.data.packing import best_fit, load_rows, pack, save_rows, take_rows
from ra3_jax.data.trace import AnnotatedTrace, Latent, Program, annotate


def make_trace(random: np.random.Generator, n_tokens: int, number: int = 0) -> AnnotatedTrace:
    """A trace of exactly `n_tokens` random ids: prompt, one thought, two lines."""
    ids = random.integers(1, 1000, n_tokens - 5).astype(np.int32)
    cut = len(ids) // 2
    program = Program(number, str(number), ids[:cut], (ids[cut:], np.array([2]), np.array([3])), 1)
    latents = [None, Latent((8,)), None]
    trace = annotate(program, latents, mark_id=1, newline_id=2)
    assert len(trace) == n_tokens
    return trace


@given(
    st.lists(st.integers(0, 40), max_size=60),
    st.integers(1, 32),
)
def test_bins_hold_each_fitting_item_once_and_never_overflow(lengths, capacity):
    bins = best_fit(lengths, capacity)
    assert all(0 < sum(lengths[i] for i in members) <= capacity for members in bins)
    placed = sorted(i for members in bins for i in members)
    assert placed == [i for i, n in enumerate(lengths) if 0 < n <= capacity]


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 40))
def test_same_number_of_bins_as_the_slow_definition(lengths, capacity):
    spaces: list[int] = []
    for n in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= n]
        if fitting:
            spaces[spaces.index(min(fitting))] -= n
        else:
            spaces.append(capacity - n)
    found = sorted(capacity - sum(lengths[i] for i in b) for b in best_fit(lengths, capacity))
    assert found == sorted(spaces)


LENGTHS = {
    "puzzles": lambda r: r.integers(80, 251, 2000),
    "few puzzles": lambda r: r.integers(80, 214, 512),
    "middle": lambda r: np.clip(r.normal(105, 30, 1000), 60, 213),
    "functions": lambda r: np.exp(r.normal(4.3, 1.1, 3000)) + 6,
    "short": lambda r: r.integers(6, 40, 2000),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_rows_are_at_least_95_percent_full(name):
    lengths = LENGTHS[name](np.random.default_rng(0)).astype(int).tolist()
    bins = best_fit(lengths, 512)
    used = sum(n for n in lengths if n <= 512)
    assert used / (512 * len(bins)) >= 0.95


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(6, 70), min_size=1, max_size=30), st.integers(0, 9))
def test_packed_rows_hold_exactly_the_traces(lengths, seed):
    length, random = 64, np.random.default_rng(seed)
    traces = [make_trace(random, n, i) for i, n in enumerate(lengths)]
    fitting = [i for i, n in enumerate(lengths) if n <= length]
    if not fitting:
        with pytest.raises(ValueError, match="no trace fits into rows of 64 tokens"):
            pack(traces, length)
        return
    rows, n_dropped = pack(traces, length, pad_id=7)
    assert n_dropped == len(traces) - len(fitting)
    assert rows.tokens_RT.dtype == np.int32 and rows.kinds_RT.dtype == np.int8
    seen = []
    for r in range(len(rows)):
        segments = rows.segment_ids_RT[r]
        n_used = int((segments > 0).sum())
        assert (np.diff(segments[:n_used]) >= 0).all() and (segments[n_used:] == 0).all()
        for segment in range(1, int(segments.max()) + 1):
            where = segments == segment
            (example,) = set(rows.example_RT[r][where].tolist())
            trace = traces[example]
            np.testing.assert_array_equal(rows.tokens_RT[r][where], trace.tokens_T)
            np.testing.assert_array_equal(rows.kinds_RT[r][where], trace.kinds_T)
            np.testing.assert_array_equal(rows.lines_RT[r][where], trace.lines_T)
            np.testing.assert_array_equal(rows.positions_RT[r][where], np.arange(len(trace)))
            seen.append(example)
    assert sorted(seen) == fitting
    padding = rows.segment_ids_RT == 0
    assert (rows.tokens_RT[padding] == 7).all() and (rows.example_RT[padding] == -1).all()
    for array in (rows.kinds_RT, rows.lines_RT, rows.positions_RT):
        assert not array[padding].any()
    assert rows.fill == pytest.approx(sum(lengths[i] for i in fitting) / padding.size)
    again, _ = pack(traces, length, pad_id=7)
    np.testing.assert_array_equal(again.tokens_RT, rows.tokens_RT)


def test_nothing_to_pack_is_an_error():
    with pytest.raises(ValueError, match="there is none"):
        pack([], 64)


@pytest.mark.parametrize("mmap", [True, False])
def test_saved_rows_come_back(tmp_path, mmap):
    random = np.random.default_rng(0)
    rows, _ = pack([make_trace(random, n) for n in (10, 20, 30, 40, 50)], 64)
    with pytest.raises(FileNotFoundError, match=r"rows\.json"):
        load_rows(tmp_path / "rows")
    save_rows(rows, tmp_path / "rows")
    back = load_rows(tmp_path / "rows", mmap=mmap)
    assert isinstance(back.tokens_RT, np.memmap) == mmap
    taken = take_rows(back, np.array([2, 0, 2]))
    assert not isinstance(taken.tokens_RT, np.memmap)
    for name in ("tokens_RT", "segment_ids_RT", "positions_RT", "kinds_RT", "lines_RT"):
        np.testing.assert_array_equal(getattr(back, name), getattr(rows, name))
        np.testing.assert_array_equal(getattr(taken, name), getattr(rows, name)[[2, 0, 2]])
    np.save(tmp_path / "rows" / "kinds_RT.npy", rows.kinds_RT[:1])
    with pytest.raises(ValueError, match=r"kinds_RT\.npy: found int8 \(1, 64\), expected int8"):
        load_rows(tmp_path / "rows", mmap=mmap)
